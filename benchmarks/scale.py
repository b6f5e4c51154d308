"""How large the published snapshot is and what it costs, up to 1,000 queues and 500 task types.

    python -m benchmarks.scale --json scale.json --page docs/scale.md

One process, no servers: sizes and times of what the controller writes and a producer reads.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from owl_celery.controller.q_entries import QEntries
from owl_celery.fleet import Fleet
from owl_celery.policies.expected_completion import ExpectedCompletion
from owl_celery.policies.priced_q import PricedQ
from owl_celery.records import FleetRecord, Knowledge, View, decode_record
from owl_celery.snapshot import load_fleet
from owl_celery.store.base import MAX_Q_VALUES, encode_state
from owl_celery.types import Outcome, TaskView, TryState

SIZES: Final = ((12, 26, 3), (64, 50, 3), (1_000, 500, 3), (1_000, 500, 8))
"""Queues, task types, GPU models."""

TRIES: Final = 6
"""Of each task type on each GPU model: enough to judge single GPUs by."""

AT: Final = 10_000.0
MARKS: Final = ("<!-- begin figures -->", "<!-- end figures -->")


@dataclass(frozen=True, slots=True)
class Row:
    """One size; bytes, and milliseconds of processor time, medians of all repetitions.

    Parameters
    ----------
    knowledge_bytes, view_bytes, fleet_bytes
        What producers fetch: when the policy has learned, with every round, and when a queue
        comes or goes.
    state_bytes
        The policy's state in the database.
    encode_knowledge_ms, encode_view_ms
        In the controller.
    read_knowledge_ms, read_view_ms
        In a producer's thread, until the first decision can be made from it.
    json_ms
        ``json.loads`` of the knowledge alone, to compare with.
    read_ratio
        ``read_knowledge_ms / json_ms``.
    encode_ratio
        ``encode_knowledge_ms`` over ``json.dumps`` of what ``json.loads`` has read.
    q_values_ms
        Work out the readable Q table and find all of it changed.
    save_ms, restore_ms
        Encode the state for the database, and read it again.

    """

    queues: int
    types: int
    models: int
    knowledge_bytes: int
    view_bytes: int
    fleet_bytes: int
    state_bytes: int
    encode_knowledge_ms: float
    encode_ratio: float
    read_knowledge_ms: float
    read_ratio: float
    json_ms: float
    encode_view_ms: float
    read_view_ms: float
    q_values_ms: float
    save_ms: float
    restore_ms: float


def a_fleet(queues: int, models: int) -> Fleet:
    """Queues with waiting and running work."""
    random = np.random.default_rng(1)
    names = [f"gpu.host-{row // 8:03}.{row % 8}" for row in range(queues)]
    fleet = Fleet(names, [f"NVIDIA GPU Model {row % models}" for row in range(queues)])
    fleet.waiting_count[:] = random.integers(0, 5, queues)
    fleet.waiting_seconds[:] = fleet.waiting_count * random.lognormal(0.0, 0.5, queues)
    fleet.running_seconds[:, 0] = random.lognormal(0.0, 0.5, queues)
    fleet.running_since[:, 0] = AT - random.uniform(0.0, 1.0, queues)
    fleet.free_memory_bytes[:] = 15e9
    return fleet


def trained(fleet: Fleet, types: int) -> PricedQ:
    """A policy that has seen each type on each model, with slow GPUs, failures and memory peaks."""
    random, policy = np.random.default_rng(2), PricedQ(seed=1)
    names = [f"application.tasks.module_{number:03}.run" for number in range(types)]
    by_model = [np.flatnonzero(fleet.model_index == model) for model in range(len(fleet.models))]
    for number in range(TRIES * types * len(fleet.models)):
        model = number % len(fleet.models)
        row = int(by_model[model][number % len(by_model[model])])
        kind = number // len(fleet.models) % types
        # One GPU in 50 is slow, one pair in 20 fails now and then.
        factor = 3.0 if row % 50 == 7 else 1.0
        has_failed = (kind + model) % 20 == 0 and number % 7 == 0
        outcome = Outcome(
            task_id=str(number),
            decision_id="",
            attempt=0,
            task_type=names[kind],
            size=1.0,
            queue=fleet.names[row],
            worker_id="gpu0@host",
            gpu_model=fleet.models[model],
            state=TryState.FAILURE if has_failed else TryState.SUCCESS,
            service_seconds=factor * (1.0 + kind % 7) * float(random.lognormal(0.3 * model, 0.2)),
            finished_at=AT,
            peak_memory_bytes=int(1e9 + 1e7 * kind),
        )
        policy.learn_one(outcome, AT - 100.0)
    policy.tick(fleet, AT - 100.0)
    for number in range(4 * types):
        policy.arrived(TaskView(names[number % types]), AT - 50.0 + number / (8.0 * types))
    policy.tick(fleet, AT)
    return policy


def view_of(fleet: Fleet) -> View:
    """What the controller publishes of the load."""
    rows = np.arange(len(fleet), dtype=np.float64)
    elapsed = AT - fleet.running_since[:, 0]
    return View(
        version=70_000_000_001,
        ledger_time=AT,
        fleet_version=70_000_000_001,
        knowledge_version=70_000_000_001,
        waiting_count=fleet.waiting_count,
        waiting_seconds=fleet.waiting_seconds,
        running=np.column_stack([rows, fleet.running_seconds[:, 0], elapsed]),
        free_memory_bytes=fleet.free_memory_bytes,
    )


def milliseconds(work: Callable[[], object], repetitions: int) -> float:
    """Median processor time of one call: what else runs on the machine is not in it."""
    times = []
    for _ in range(repetitions):
        began = time.process_time()
        work()
        times.append(1e3 * (time.process_time() - began))
    return statistics.median(times)


def measure(queues: int, types: int, models: int, repetitions: int) -> Row:
    """Measure one size."""
    fleet = a_fleet(queues, models)
    policy, task = trained(fleet, types), TaskView("application.tasks.module_000.run")

    def encode() -> str:
        return Knowledge(70_000_000_001, policy.name, policy.snapshot()).encode()

    def read() -> None:
        knowledge = decode_record(Knowledge, text)
        assert knowledge is not None
        # A producer reads it for the policy and for the simpler one behind it.
        for reader in (PricedQ(seed=1), ExpectedCompletion(seed=1)):
            reader.apply_snapshot(knowledge.snapshot)
            reader.choose(task, fleet, AT)

    def read_view() -> None:
        decoded = decode_record(View, view_text)
        assert decoded is not None
        load_fleet(fleet, decoded, AT)

    def q_values() -> None:
        table = policy.q_values(fleet, AT, MAX_Q_VALUES)
        assert table is not None
        QEntries().changed(table, AT)

    def restore() -> None:
        PricedQ(seed=1).restore(json.loads(state))

    text, view = encode(), view_of(fleet)
    view_text, record = view.encode(), fleet_record(fleet)
    state, plain = encode_state(policy.name, policy.state()), json.loads(text)
    json_ms = milliseconds(lambda: json.loads(text), repetitions)
    dumps_ms = milliseconds(lambda: json.dumps(plain, separators=(",", ":")), repetitions)
    encode_ms, read_ms = milliseconds(encode, repetitions), milliseconds(read, repetitions)
    return Row(
        queues=queues,
        types=types,
        models=models,
        knowledge_bytes=len(text),
        view_bytes=len(view_text),
        fleet_bytes=len(record.encode()),
        state_bytes=len(state),
        encode_knowledge_ms=encode_ms,
        encode_ratio=encode_ms / dumps_ms,
        read_knowledge_ms=read_ms,
        read_ratio=read_ms / json_ms,
        json_ms=json_ms,
        encode_view_ms=milliseconds(view.encode, repetitions),
        read_view_ms=milliseconds(read_view, repetitions),
        q_values_ms=milliseconds(q_values, repetitions),
        save_ms=milliseconds(lambda: encode_state(policy.name, policy.state()), repetitions),
        restore_ms=milliseconds(restore, repetitions),
    )


def fleet_record(fleet: Fleet) -> FleetRecord:
    """What the controller publishes of the queues."""
    models = [fleet.gpu_model(row) for row in range(len(fleet))]
    return FleetRecord(70_000_000_001, list(fleet.names), models, fleet.concurrency.tolist())


def page_of(rows: Sequence[Row]) -> str:
    """The rows as tables for the documentation."""
    head = [f"{row.queues:,} queues, {row.types} types, {row.models} GPU models" for row in rows]
    lines = [
        ("knowledge, kB", [f"{row.knowledge_bytes / 1e3:.1f}" for row in rows]),
        ("view, kB", [f"{row.view_bytes / 1e3:.1f}" for row in rows]),
        ("fleet, kB", [f"{row.fleet_bytes / 1e3:.1f}" for row in rows]),
        ("policy state in the database, kB", [f"{row.state_bytes / 1e3:.1f}" for row in rows]),
        (
            "controller: encode knowledge, ms (times `json.dumps`)",
            [f"{row.encode_knowledge_ms:.2f} ({row.encode_ratio:.1f})" for row in rows],
        ),
        (
            "producer: read knowledge and decide, ms (times `json.loads`)",
            [f"{row.read_knowledge_ms:.2f} ({row.read_ratio:.1f})" for row in rows],
        ),
        ("controller: encode view, ms", [f"{row.encode_view_ms:.2f}" for row in rows]),
        ("producer: read view, ms", [f"{row.read_view_ms:.2f}" for row in rows]),
        ("controller: readable Q table, ms", [f"{row.q_values_ms:.1f}" for row in rows]),
        ("controller: encode policy state, ms", [f"{row.save_ms:.1f}" for row in rows]),
        ("controller: restore policy state, ms", [f"{row.restore_ms:.1f}" for row in rows]),
    ]
    return "\n".join(
        [
            f"| | {' | '.join(head)} |",
            "| --- |" + " --- |" * len(rows),
            *(f"| {name} | {' | '.join(cells)} |" for name, cells in lines),
        ]
    )


def fill(page: Path, rows: Sequence[Row]) -> None:
    """Put the tables between the marks of a page."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    filled = f"{before}{MARKS[0]}\n\n{page_of(rows)}\n\n{MARKS[1]}{after}"
    page.write_text(filled, encoding="utf-8")


@click.command()
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the rows here.")
@click.option("--page", type=click.Path(path_type=Path, exists=True), help="Page to fill in.")
@click.option("--repetitions", default=31, show_default=True, help="Calls of each kind.")
def main(path: Path | None, page: Path | None, repetitions: int) -> None:
    """Measure sizes and costs of what is published, from a small site to a large one."""
    rows = [measure(*size, repetitions) for size in SIZES]
    click.echo(page_of(rows))
    if path is not None:
        values: dict[str, Any] = {"rows": [asdict(row) for row in rows]}
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    if page is not None:
        fill(page, rows)


if __name__ == "__main__":
    main()
