"""The table of all trials, and the page that is made of it."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.faults.fault import Check, Fault, Trial
from owl_celery.embedded import find_program, program_version

ARMS = {"owl": "owl_celery", "celery": "plain Celery", "celery_late": "plain Celery, late acks"}
HEAD = (
    "| fault | arm | trials | published | lost | finished twice | started twice | recovery, s "
    "| limit, s | verdict |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


@dataclass(frozen=True, slots=True)
class Row:
    """All trials of one arm of a fault."""

    fault: Fault
    arm: str
    trials: Sequence[Trial]
    verdict: str

    @property
    def holds(self) -> bool:
        """Whether what must hold does; nothing must with plain Celery."""
        return self.verdict in ("holds", "-")

    def cells(self) -> list[str]:
        """As in ``HEAD``."""
        times = [t.recovery_seconds for t in self.trials if t.recovery_seconds is not None]
        recovery = f"{min(times):.1f} to {max(times):.1f}" if times else "never"
        is_measured = self.fault.needs_cluster
        if times and len(times) < len(self.trials):
            recovery += f" ({len(times)} of {len(self.trials)})"
        published = str(sum(t.published for t in self.trials))
        if refused := sum(t.refused for t in self.trials):
            published += f" ({refused} refused)"
        return [
            self.fault.name,
            ARMS[self.arm],
            str(len(self.trials)),
            published,
            str(sum(t.lost for t in self.trials)),
            str(sum(t.doubled for t in self.trials)),
            str(sum(t.run_again for t in self.trials)),
            recovery if is_measured else "-",
            f"{self.fault.limit_seconds:g}" if self.arm == "owl" and is_measured else "-",
            self.verdict,
        ]


def rows(faults: Sequence[Fault], trials: Sequence[Trial]) -> list[Row]:
    """One row an arm of each fault that was tried."""
    found = []
    for fault in faults:
        by_arm = {
            arm: [t for t in trials if (t.fault, t.arm) == (fault.name, arm)] for arm in fault.arms
        }
        for arm, some in by_arm.items():
            if some:
                verdict = verdict_of(fault, some, by_arm) if arm == "owl" else "-"
                found.append(Row(fault, arm, some, verdict))
    return found


def verdict_of(fault: Fault, trials: Sequence[Trial], by_arm: dict[str, list[Trial]]) -> str:
    """``holds``, or what does not."""
    wrong = []
    if broken := [trial for trial in trials if trial.error]:
        wrong.append(f"{len(broken)} broke")
    sound = [trial for trial in trials if not trial.error]
    if lost := sum(trial.lost for trial in sound):
        wrong.append(f"{lost} lost")
    plain = max((sum(t.doubled for t in by_arm[arm]) for arm in by_arm if arm != "owl"), default=0)
    allowed = max(plain, sum(trial.held for trial in sound))
    if (doubled := sum(trial.doubled for trial in sound)) > allowed:
        wrong.append(f"{doubled} finished twice, {allowed} may")
    late = [
        t for t in sound if t.recovery_seconds is None or t.recovery_seconds > fault.limit_seconds
    ]
    if late:
        wrong.append(f"{len(late)} beyond the limit")
    failed = {check.what: check for trial in sound for check in trial.checks if not check.holds}
    wrong += [f"not: {check.what} ({check.found})" for check in failed.values()]
    wrong += fault.compare(by_arm)
    return "; ".join(wrong) or "holds"


def sentence(text: str) -> str:
    """The text as a sentence."""
    return f"{text[0].upper()}{text[1:]}."


def table(found: Sequence[Row]) -> str:
    """All rows as Markdown."""
    return "\n".join([HEAD, *("| " + " | ".join(row.cells()) + " |" for row in found)])


def machine() -> str:
    """What it ran on."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    redis = ".".join(map(str, program_version(find_program())))
    return (
        f"{len(os.sched_getaffinity(0))} cores of {model}, {memory:.0f} GiB, Linux "
        f"{platform.release().partition('-')[0]}, Python {platform.python_version()}, Celery "
        f"{version('celery')}, kombu {version('kombu')}, Redis {redis}"
    )


def page(found: Sequence[Row], command: str, minutes: float) -> str:
    """``docs/benchmarks/faults.md``."""
    holding = sum(row.holds for row in found if row.arm == "owl")
    judged = sum(row.arm == "owl" for row in found)
    lost = sum(t.lost for row in found if row.arm == "owl" for t in row.trials)
    published = sum(t.published for row in found if row.arm == "owl" for t in row.trials)
    lines = [
        "# Faults, and what became of every task",
        "",
        f"Written by `{command}`; nothing on this page is typed by hand. Real workers, controllers "
        "and servers are struck at random moments while tasks are published. A ledger that no "
        "fault reaches has for each task when it started and when it finished. The same fault "
        "with the same seed strikes plain Celery, where it can suffer it, at the same time beside: "
        "once with its defaults, and once with late acknowledgement, prefetch 1, "
        "`task_reject_on_worker_lost` and a visibility timeout of 10 s (the default, one hour, is "
        "beyond what is waited for here).",
        "",
        f"{machine()}; {minutes:.0f} minutes.",
        "",
        f"**Of {judged} faults {holding} hold what they must. owl_celery: {lost} of {published} "
        "tasks lost.**",
        "",
        table(found),
        "",
        "*Lost*: published without an error, and not finished when the patience was over. "
        "*Finished twice* must be no more than with plain Celery, or than what ran on the process "
        "that was struck. *Limit* is of the recovery. *Verdict*: whether nothing is lost, not more "
        "doubled, the recovery is within the limit, and all that is listed below holds.",
        "",
        "## The faults",
    ]
    for row in found:
        if row.arm != "owl":
            continue
        fault = row.fault
        lines += [
            "",
            f"### {sentence(fault.name)[:-1]}",
            "",
            f"{sentence(fault.strikes)} Must hold: {fault.must}. Recovery: {fault.recovery}.",
        ]
        checks: dict[str, list[Check]] = {}
        for trial in row.trials:
            for check in trial.checks:
                checks.setdefault(check.what, []).append(check)
        if checks:
            lines += ["", "| what must hold | found in each trial | |", "| --- | --- | --- |"]
        for what, some in checks.items():
            verdict = "yes" if all(check.holds for check in some) else "**no**"
            lines.append(f"| {what} | {'; '.join(check.found for check in some)} | {verdict} |")
    return "\n".join(lines) + "\n"
