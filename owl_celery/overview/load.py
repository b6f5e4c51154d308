"""The queues and workers of the moment, from load view, heartbeats and events."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from owl_celery.aggregates import OTHER, WorkerStats
from owl_celery.fleet import Fleet
from owl_celery.overview.live import Live
from owl_celery.overview.tail import Begun
from owl_celery.overview.values import GpuNow, QueueNow, RunningNow, WorkerNow
from owl_celery.snapshot import load_fleet
from owl_celery.wire import Heartbeat

UNKNOWN_GPU: Final = GpuNow()

MATCH_SECONDS: Final = 5.0
"""How far the elapsed time of a running task may be from that of the event that tells its name."""


def queues_of(
    live: Live, workers: Iterable[WorkerNow], begun: Callable[[str], Begun | None]
) -> tuple[QueueNow, ...]:
    """Every queue of the load view, sorted by name; none without a view.

    Parameters
    ----------
    workers
        With the readings of their GPUs.
    begun
        The latest try of a task that has begun and not ended.

    """
    view, record = live.view, live.fleet
    if view is None or record is None:
        return ()
    try:
        fleet = load_fleet(
            Fleet(record.names, record.gpu_models, record.concurrency), view, view.ledger_time
        )
    except (ValueError, IndexError):
        return ()
    age = max(live.redis_time - view.ledger_time, 0.0)
    residual = fleet.residual_seconds(view.ledger_time + age)
    # As lists: to take single numbers from arrays is slow.
    backlogs = (fleet.waiting_seconds + residual).tolist()
    waiting_seconds, waiting_count = fleet.waiting_seconds.tolist(), fleet.waiting_count.tolist()
    is_open, free = fleet.is_open.tolist(), fleet.free_memory_bytes.tolist()
    gpus = {worker.worker_id: worker.gpu for worker in workers}
    beliefs = live.knowledge.beliefs
    speeds = beliefs.speeds if beliefs is not None else {}
    beats: dict[str, list[Heartbeat]] = defaultdict(list)
    for beat in live.heartbeats.values():
        if beat.queue:
            beats[beat.queue].append(beat)
    running: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for row, predicted, elapsed in np.asarray(view.running, dtype=np.float64).tolist():
        running[int(row)].append((predicted, elapsed + age))
    found = []
    for row, name in enumerate(record.names):
        served = beats.get(name, [])
        found.append(
            QueueNow(
                name=name,
                gpu_model=record.gpu_models[row],
                worker_ids=tuple(sorted(beat.node for beat in served)),
                concurrency=record.concurrency[row],
                is_open=is_open[row],
                is_drained=name in live.drained,
                waiting_count=waiting_count[row],
                waiting_seconds=waiting_seconds[row],
                backlog_seconds=backlogs[row],
                running=_running(running.get(row, []), served, begun, live.redis_time),
                speed_factor=float(speeds.get(name, 1.0)),
                gpu=gpus.get(served[0].node, UNKNOWN_GPU) if served else UNKNOWN_GPU,
                idle_memory_bytes=None if math.isnan(free[row]) else free[row],
            )
        )
    return tuple(sorted(found, key=lambda queue: queue.name))


def _running(
    rows: Sequence[tuple[float, float]],
    served: Sequence[Heartbeat],
    begun: Callable[[str], Begun | None],
    redis_time: float,
) -> tuple[RunningNow, ...]:
    """Name what runs: the view tells how long, events tell which task."""
    if not rows:
        return ()
    named = [
        (redis_time - found.at, found)
        for beat in served
        for task_id in beat.active
        if (found := begun(task_id)) is not None
    ]
    tasks = []
    for predicted, elapsed in rows:
        best = min(named, key=lambda pair: abs(pair[0] - elapsed), default=None)
        if best is not None and abs(best[0] - elapsed) <= MATCH_SECONDS:
            named.remove(best)
            event = best[1].event
            tasks.append(RunningNow(event.task_id, event.task_type, predicted, elapsed))
        else:
            tasks.append(RunningNow(None, None, predicted, elapsed))
    return tuple(tasks)


def workers_of(
    heartbeats: Mapping[str, Heartbeat], stats: Sequence[WorkerStats]
) -> tuple[WorkerNow, ...]:
    """Every worker that lives or has a row of its own, by name; ``other`` is the last."""
    rows = {row.worker_id: row for row in stats}
    found = []
    for worker_id in sorted(
        heartbeats.keys() | rows.keys(), key=lambda name: (name == OTHER, name)
    ):
        beat, row = heartbeats.get(worker_id), rows.get(worker_id)
        if beat is None:
            model = row.gpu_model if row is not None else ""
            found.append(WorkerNow(worker_id, "", model, False, False, 0, 0, None, GpuNow(), row))
            continue
        held = len(beat.active)
        found.append(
            WorkerNow(
                worker_id=worker_id,
                queue=beat.queue,
                gpu_model=beat.gpu_model,
                is_alive=True,
                is_draining=beat.draining,
                active_count=held,
                concurrency=beat.concurrency,
                busy_ratio=min(held / beat.concurrency, 1.0) if beat.queue else None,
                gpu=gpu_of(beat),
                stats=row,
            )
        )
    return tuple(found)


def gpu_of(beat: Heartbeat) -> GpuNow:
    """What the GPU of a worker reports."""
    total, free = beat.memory_total_bytes, beat.memory_free_bytes
    used = max(total - free, 0) if total is not None and free is not None else None
    ratio = beat.utilization_ratio
    return GpuNow(
        utilization_ratio=None if ratio is None else min(max(ratio, 0.0), 1.0),
        memory_used_bytes=used,
        memory_total_bytes=total,
        temperature_celsius=beat.temperature_celsius,
        power_watts=beat.power_watts,
    )
