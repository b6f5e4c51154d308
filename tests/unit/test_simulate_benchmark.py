"""The benchmark page: every figure from a run, in pieces if need be."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from benchmarks.policy.cost import measure
from benchmarks.policy.figures import draw_curve, draw_load
from benchmarks.policy.measures import Measure, Number, WeakSpot, measures
from benchmarks.policy.report import page
from benchmarks.policy.runs import FAULT_TASKS, Figures, Results, Spec, fingerprint, run

QUICK = Spec("shortest_queue", 0.5, 0, fleet="k80=2,v100=2", tasks=600, warmup=100)


class Known(Results):
    """Results that are made up instead of simulated."""

    def __init__(self, figures: dict[Spec, Figures]) -> None:
        self.figures = figures

    def get(self, spec: Spec) -> Figures | None:
        return self.figures.get(spec)


def made_up(mean: float, stable: bool = True) -> Figures:
    return {"mean": mean, "p50": mean, "p95": mean, "p99": mean, "stable": stable}


def specs(policy: str, *loads: float) -> tuple[Spec, ...]:
    return tuple(Spec(policy, load, seed) for load in loads for seed in (0, 1, 2))


def test_a_ratio_is_taken_seed_by_seed_and_its_median_shown() -> None:
    ours, other = specs("a", 0.5), specs("b", 0.5)
    results = Known({s: made_up(m) for s, m in zip(ours + other, (2, 3, 8, 1, 2, 2), strict=True)})
    value = Number(ours, other).value(results)
    assert value is not None
    assert (value.median, value.least, value.most) == (2.0, 1.5, 4.0)


def test_of_several_loads_the_worst_counts() -> None:
    ours = specs("a", 0.5, 0.9)
    results = Known({s: made_up(m) for s, m in zip(ours, (1, 9, 1, 2, 3, 4), strict=True)})
    value = Number(ours).value(results)
    assert value is not None
    assert value.median == 3.0


def test_a_number_is_unknown_while_a_run_is_missing() -> None:
    ours = specs("a", 0.5)
    assert Number(ours).value(Known({ours[0]: made_up(1.0)})) is None


def test_runs_are_kept_and_not_made_again(tmp_path: Path) -> None:
    path = tmp_path / "build" / "runs.jsonl"
    made = list(Results(path).complete([QUICK, QUICK], processes=1, until=math.inf))
    assert [spec for spec, _ in made] == [QUICK]
    again = Results(path)
    assert again.get(QUICK) == made[0][1]
    assert list(again.complete([QUICK], processes=1, until=math.inf)) == []


def test_no_run_is_begun_when_time_is_up(tmp_path: Path) -> None:
    assert list(Results(tmp_path / "r.jsonl").complete([QUICK], 1, until=-math.inf)) == []


def test_a_result_belongs_to_the_code_that_made_it() -> None:
    assert fingerprint("shared_fifo") != fingerprint("shortest_queue")
    assert QUICK.key() != replace(QUICK, seed=1).key()
    assert fingerprint("shortest_queue") in QUICK.key()


def test_out_of_memory_pairs_fail_and_a_prior_is_taught() -> None:
    figures = run(replace(QUICK, misfits=13))
    assert figures["failed_ratio"] > 0.05
    assert run(replace(QUICK, policy="jsed_oracle", misfits=13))["failed_ratio"] == 0.0
    naive = replace(QUICK, policy="expected_completion")
    assert run(naive)["mean"] != run(replace(naive, prior_error=0.4))["mean"]


def test_the_figure_in_the_fault_is_of_the_tasks_that_arrive_in_it() -> None:
    spec = replace(QUICK, tasks=FAULT_TASKS[1] + 1, slow_gpu=True, load=0.3)
    slow, fine = run(spec), run(replace(spec, slow_gpu=False))
    assert slow["p99_in_fault"] > fine["p99"]


def test_every_row_says_what_each_of_its_figures_must_be() -> None:
    rows = measures("q_learning")
    assert len(rows) == 17
    for row in rows:
        assert len(row.numbers) == len(row.must) == len(row.prototype)
        for number in row.numbers:
            assert not number.other or len(number.other) == len(number.ours)


def test_the_page_tells_met_from_missed_from_not_run(tmp_path: Path) -> None:
    rows = [
        Measure("s", "0.5", "met", (Number(specs("a", 0.5)),), (1.5,), (1.0,)),
        Measure("s", "0.6", "missed", (Number(specs("a", 0.6)),), (0.5,), (0.4,)),
        Measure("s", "0.7", "unknown", (Number(specs("a", 0.7)),), (1.5,), (1.0,)),
        Measure("s", "0.8", "share", (Number(specs("a", 0.8)),), (0.1,), (0.1,), percent=True),
    ]
    known = {s: made_up(1.0) for s in specs("a", 0.5)}
    known |= {s: made_up(1.0, stable=False) for s in specs("a", 0.6)}
    known |= {s: made_up(0.05) for s in specs("a", 0.8)}
    weak = [WeakSpot("w", "0.5", "figure", (Number(specs("a", 0.5)),), "0.9")]
    text = page(Known(known), "a", rows, weak, [], "make bench-policy")
    lines = {line.split(" | ")[2]: line for line in text.splitlines() if line.startswith("| s |")}
    assert "| 1.000 | 1.000-1.000 | yes |" in lines["met"]
    assert "**1.000** (unstable in 3 of 3 runs)" in lines["missed"]
    assert "| **0 of 1** |" in lines["missed"]
    assert "| not run | - | - |" in lines["unknown"]
    assert "5.000 %" in lines["share"]
    assert "Of 3 figures 2 meet the floor." in text
    assert "- s, load 0.6, missed: 1.000 against 0.4, 150.0 % more." in text
    assert "| w | 0.5 | figure | 0.9 | 1.000 | 1.000-1.000 |" in text


def test_pictures_are_the_same_bytes_for_the_same_figures(tmp_path: Path) -> None:
    curve = [2.0 - 0.02 * bin for bin in range(50)]
    known = {
        Spec(name, load, seed): {**made_up(1.0 + load), "curve": curve}
        for name in ("a", "priced_oracle", "shared_fifo")
        for load in (0.5, 0.7)
        for seed in (0, 1)
    }
    for draw in (draw_load, draw_curve):
        paths = [tmp_path / f"{draw.__name__}.{index}.svg" for index in range(2)]
        for path in paths:
            draw(Known(known), "a", path, seeds=(0, 1))
        assert paths[0].read_bytes() == paths[1].read_bytes()
        assert b"<svg" in paths[0].read_bytes()


def test_the_cost_of_a_decision_is_above_that_of_an_argmin() -> None:
    cost = measure("shortest_queue", 64)
    assert cost.queues == 64
    assert cost.decision_seconds > cost.argmin_seconds > 0.0
