"""The overview as tables that fit into 80 columns."""

from __future__ import annotations

from typing import Final

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from owl_celery.cli.terminal import shown
from owl_celery.overview import Overview, Status
from owl_celery.overview.values import QueueNow

COLOURS: Final = {Status.OK: "green", Status.DEGRADED: "yellow", Status.DOWN: "red"}
MOST_QUEUES: Final = 200
MOST_TYPES: Final = 10
ROWS_AROUND_QUEUES: Final = 22
"""Lines of a screen that the other tables need."""


def tables_of(overview: Overview, height: int | None = None) -> RenderableType:
    """Health, queues and task types, the busiest first where not all fit into the height."""
    most = MOST_QUEUES if height is None else max(height - ROWS_AROUND_QUEUES, 5)
    parts: list[RenderableType] = [_health(overview), Text()]
    if overview.queues:
        parts += [_queues(overview, most), Text()]
    if overview.has_rows:
        parts += [_learned(overview)]
    if overview.task_types:
        parts += [Text(), _task_types(overview)]
    return Group(*parts)


def _health(overview: Overview) -> Text:
    health = overview.health
    text = Text()
    text.append(health.status.value, style=f"bold {COLOURS[health.status]}")
    who = health.controller
    text.append(
        f"  mode {health.mode}, "
        f"{shown(f'policy {who.policy} on {who.name}') if who else 'no active controller'}, "
        f"database {health.database.kind} {health.database.status}"
    )
    for reason in health.reasons:
        text.append(f"\n  {shown(reason.part)}: ", style="bold")
        text.append(shown(reason.sentence))
    return text


def _queues(overview: Overview, most: int) -> Table:
    health = overview.health
    shown = sorted(overview.queues, key=lambda queue: (-queue.backlog_seconds, queue.name))[:most]
    title = (
        f"Queues: {health.open_queues} of {health.queues} open, {health.waiting_count} waiting, "
        f"{health.running_count} running, {duration(health.backlog_seconds)} of work"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("queue", overflow="ellipsis", no_wrap=True, max_width=20)
    table.add_column("GPU", overflow="ellipsis", no_wrap=True, max_width=12)
    table.add_column("", no_wrap=True, max_width=7)
    for name in ("wait", "work", "busy"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("runs", overflow="ellipsis", no_wrap=True, max_width=22)
    for queue in shown:
        table.add_row(
            printable(queue.name),
            printable(queue.gpu_model),
            _state(queue),
            str(queue.waiting_count),
            duration(queue.backlog_seconds),
            share(queue.gpu.utilization_ratio),
            printable(", ".join(task.task_type or "?" for task in queue.running)),
        )
    if len(overview.queues) > len(shown):
        table.caption = f"and {len(overview.queues) - len(shown)} with less work"
    return table


def _state(queue: QueueNow) -> str:
    if queue.is_drained:
        return "[yellow]drained[/]"
    if not queue.is_open:
        return "[red]closed[/]"
    return f"[yellow]x{queue.speed_factor:.1f}[/]" if queue.speed_factor != 1.0 else ""


def _learned(overview: Overview) -> Text:
    totals = overview.totals
    text = Text(
        f"Learned from {totals.tasks} tries of {totals.task_types} task types: "
        f"{share(totals.success_rate)} succeeded, service {duration(totals.mean_service_seconds)}, "
        f"response {duration(totals.mean_response_seconds)}, exploring "
        f"{share(overview.exploration_rate)}"
    )
    for ratio in (overview.improvement.service, overview.improvement.response):
        if ratio is not None:
            text.append(f"\n{ratio.sentence}", style="bold")
    return text


def _task_types(overview: Overview) -> Table:
    rows = sorted(overview.task_types, key=lambda row: (-row.tries, row.task_type))
    table = Table(box=None, pad_edge=False)
    table.add_column("task type", overflow="ellipsis", no_wrap=True, max_width=34)
    for name in ("tries", "succeed", "service", "99 %"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows[:MOST_TYPES]:
        table.add_row(
            printable(row.task_type),
            str(row.tries),
            share(row.success_rate),
            duration(row.mean_service_seconds),
            duration(overview.p99_seconds.get(row.task_type)),
        )
    if len(rows) > MOST_TYPES:
        table.caption = f"and {len(rows) - MOST_TYPES} with fewer tries"
    return table


def printable(name: str) -> str:
    """A name from outside as a cell: neither markup nor commands to the terminal.

    Examples
    --------
    >>> printable("a[b]\\x1b[31m")
    'a\\\\[b]\ufffd[31m'

    """
    return escape(shown(name, keep=""))


def duration(seconds: float | None) -> str:
    """A duration in at most six characters.

    Examples
    --------
    >>> [duration(s) for s in (None, 0.0, 0.0123, 5.25, 100.0, 7_300.0, 1e6)]
    ['-', '0 s', '12 ms', '5.2 s', '100 s', '122 m', '278 h']

    """
    if seconds is None:
        return "-"
    if 0.0 < seconds < 1.0:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 1_000.0:
        return f"{seconds:.1f} s" if 0.0 < seconds < 10.0 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} m" if seconds < 60_000.0 else f"{seconds / 3600:.0f} h"


def share(ratio: float | None) -> str:
    """A share in per cent.

    Examples
    --------
    >>> share(0.256)
    '26 %'

    """
    return "-" if ratio is None else f"{ratio:.0%}".replace("%", " %")
