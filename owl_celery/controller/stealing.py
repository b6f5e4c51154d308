"""Give workers that have nothing to do what waits elsewhere, by the prices that route."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from owl_celery.brokers.base import Broker, Seen
from owl_celery.controller.lease import Lease
from owl_celery.controller.ledger import LoadLedger
from owl_celery.controller.load import Load, Move
from owl_celery.controller.policy_host import PolicyHost
from owl_celery.controller.running import Recent
from owl_celery.controller.waiting import UNKNOWN_SECONDS
from owl_celery.fleet import Fleet, WaitingTasks
from owl_celery.types import TaskView
from owl_celery.wire import TaskHeader

SETTLE_SECONDS: Final = 0.02
"""A queue may look idle for a moment between a message's leaving it and the start of the task."""

ARRIVE_SECONDS: Final = 1.0
"""How long a task that was moved may take to be seen to run, before its queue counts as idle."""

LOOK_SECONDS: Final = 0.1
LOOK_SHARE: Final = 0.1
LOOK_DISTURBING_SECONDS: Final = 5.0
"""The longest pause between looks that disturb and find nothing, while nobody else falls idle."""

REFUSED_SECONDS: Final = 5.0
MAX_SOURCES: Final = 16
PEEKED_EACH: Final = 16


@dataclass(slots=True)
class Waiter:
    """A message that waits; not to be moved when it has no header that makes sense."""

    seen: Seen
    header: TaskHeader | None
    task: TaskView
    seconds: float


class Stealing:
    """Looks at what waits when a queue falls idle, and moves what the policy names.

    A look costs the broker a bounded peek, and happens once for each queue that falls idle and
    then now and again while it stays so. Where nothing waits or nobody is idle there is none.

    Parameters
    ----------
    broker
        Peeks and moves.
    ledger
        Told of every move.
    host
        Whose policy decides.
    lease
        What entitles us to move.
    counters
        Where ``stolen`` is counted.
    clock
        The ledger's clock, seconds.

    """

    def __init__(
        self,
        broker: Broker,
        ledger: LoadLedger,
        host: PolicyHost,
        lease: Lease,
        counters: Counter[str],
        clock: Callable[[], float],
    ) -> None:
        self._broker = broker
        self._ledger = ledger
        self._host = host
        self._lease = lease
        self._counters = counters
        self._clock = clock
        self._free_since: dict[str, float] = {}
        self._expecting: dict[str, float] = {}
        self._looked_for: set[str] = set()
        self._look_at = float("-inf")
        self._pause_seconds = LOOK_SECONDS
        self._refused: Recent[str] = Recent()
        self._headers: dict[str, TaskHeader | None] = {}
        self._fleet: tuple[list[str], list[str], list[int], Fleet] | None = None

    def step(self, load: Load, now: float) -> list[Move]:
        """Look for tasks to move if there may be any; the moves that were made.

        Raises
        ------
        BrokerError
            When the broker does not answer.

        """
        idle = self._idle(load, now) if self._host.steals else []
        is_new = not self._looked_for.issuperset(load.names[row] for row in idle)
        if not idle or not any(load.waiting_count) or (now < self._look_at and not is_new):
            return []
        self._looked_for = {load.names[row] for row in idle}
        moves: list[Move] = []
        try:
            moves = self._look(load, idle, now)
            return moves
        finally:
            longest = LOOK_DISTURBING_SECONDS if self._broker.peek_disturbs else LOOK_SECONDS
            self._pause_seconds = (
                LOOK_SECONDS if moves or is_new else min(2.0 * self._pause_seconds, longest)
            )
            ended = self._clock()
            self._look_at = ended + max(self._pause_seconds, (ended - now) / LOOK_SHARE)

    def _idle(self, load: Load, now: float) -> list[int]:
        """Rows of queues that have been idle for a moment, longest idle first."""
        free = {load.names[row]: row for row in self._ledger.free_rows(load)}
        self._free_since = {name: self._free_since.get(name, now) for name in free}
        self._expecting = {
            name: until
            for name, until in self._expecting.items()
            if until > now and not self._ledger.held_count(name)
        }
        self._looked_for &= free.keys()
        settled = [
            (since, free[name])
            for name, since in self._free_since.items()
            if now - since >= SETTLE_SECONDS and name not in self._expecting
        ]
        return [row for _, row in sorted(settled)]

    def _look(self, load: Load, idle: Sequence[int], now: float) -> list[Move]:
        rows = [row for row, count in enumerate(load.waiting_count) if count]
        rows = sorted(rows, key=lambda row: -load.waiting_seconds[row])[:MAX_SOURCES]
        try:
            peeked = self._broker.peek([load.names[row] for row in rows], PEEKED_EACH, len(idle))
            return self._choose(peeked, load, rows, idle, now)
        finally:
            self._broker.release()

    def _choose(
        self,
        peeked: Mapping[str, Sequence[Seen]],
        load: Load,
        rows: Sequence[int],
        idle: Sequence[int],
        now: float,
    ) -> list[Move]:
        """Ask the policy for each idle queue what of that to move there, and move it."""
        before, self._headers = self._headers, {}
        lines = {
            row: [self._waiter(seen, row, load, before, now) for seen in peeked[name]]
            for row in sorted(rows)
            if (name := load.names[row]) in peeked
        }
        fleet = self._fleet_of(load)
        moves: list[Move] = []
        for row in idle:
            waiting, where = columns_of(lines, load, fleet, now)
            index = self._host.steal(row, waiting, fleet, now) if where else None
            if index is None:
                continue
            source, place = where[index]
            move = self._take(load, source, lines[source][place], row, now)
            remove(lines[source], place)
            if move is not None:
                moves.append(move)
                fleet.running_seconds[row, 0] = max(move.seconds_here, 1e-9)
                fleet.running_since[row, 0] = now
        return moves

    def _take(self, load: Load, source: int, waiter: Waiter, row: int, now: float) -> Move | None:
        """Move one message; None when it is not where it was, or may not be moved."""
        header, destination = waiter.header, load.names[row]
        assert header is not None
        here = self._host.predict_task(waiter.task, load.gpu_models[row])
        if here is None or not self._lease.is_held:
            return None
        permit, name = self._lease.permit(), load.names[source]
        if not self._broker.take(name, waiter.seen, header.decision_id, destination, permit):
            self._refused.add(header.decision_id, now)
            return None
        counted = self._ledger.counted_seconds(header.decision_id, header.service_seconds)
        move = Move(header.decision_id, name, destination, counted, here)
        self._ledger.move(move, now)
        self._expecting[destination] = now + ARRIVE_SECONDS
        self._counters["stolen"] += 1
        return move

    def _waiter(
        self, seen: Seen, row: int, load: Load, before: dict[str, TaskHeader | None], now: float
    ) -> Waiter:
        """What is known of a message; the broker is not trusted with its header."""
        header = before[seen.text] if seen.text in before else header_of(seen.text)
        self._headers[seen.text] = header
        if header is None or now - self._refused.get(header.decision_id, -np.inf) < REFUSED_SECONDS:
            return Waiter(seen, None, TaskView(""), mean_waiting(load, row))
        task = header.view()
        seconds = self._ledger.counted_seconds(header.decision_id, header.service_seconds)
        if seconds is None:
            seconds = self._host.predict_task(task, load.gpu_models[row])
        return Waiter(seen, header, task, mean_waiting(load, row) if seconds is None else seconds)

    def _fleet_of(self, load: Load) -> Fleet:
        """The load as columns; the same queues as before, so that policies know them again."""
        known, laid = self._fleet, (load.names, load.gpu_models, load.concurrency)
        fleet = load.fleet(known[3] if known is not None and known[:3] == laid else None)
        self._fleet = (*laid, fleet)
        return fleet


def header_of(text: str) -> TaskHeader | None:
    """Read the header of a message that we routed; None for any other.

    Examples
    --------
    >>> header_of('{"d": "1f", "a": "q_learning", "q": "gpu.a.0", "k": "train"}, "more": ').queue
    'gpu.a.0'
    >>> header_of('{"d": "1f", "a": "user", "q": "gpu.a.0", "k": "train"}') is None
    True

    """
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    header = TaskHeader.decode(value)
    if header is None or not header.is_routed:
        return None
    return header if header.decision_id and header.task_type else None


def mean_waiting(load: Load, row: int) -> float:
    """Mean predicted seconds of what waits in a queue."""
    count = load.waiting_count[row]
    return load.waiting_seconds[row] / count if count else UNKNOWN_SECONDS


def columns_of(
    lines: dict[int, list[Waiter]], load: Load, fleet: Fleet, now: float
) -> tuple[WaitingTasks, list[tuple[int, int]]]:
    """The messages that may be moved, for the policy; and row and place of each."""
    residual = fleet.residual_seconds(now)
    where, ahead_seconds = [], []
    for row, line in lines.items():
        mean, known, before = mean_waiting(load, row), 0.0, 0
        for place, waiter in enumerate(line):
            if waiter.header is not None:
                where.append((row, place))
                # What is in the middle of a long queue was not looked at.
                unseen = max(waiter.seen.ahead - before, 0)
                ahead_seconds.append(residual.item(row) + known + unseen * mean)
            known, before = known + waiter.seconds, before + 1
    chosen = [lines[row][place] for row, place in where]
    waiting = WaitingTasks(
        tasks=[waiter.task for waiter in chosen],
        rows=np.array([row for row, _ in where], dtype=np.int64),
        service_seconds=np.array([waiter.seconds for waiter in chosen]),
        ahead_seconds=np.array(ahead_seconds),
        behind_count=np.array([waiter.seen.behind for waiter in chosen], dtype=np.int64),
        published_at=np.array([w.header.published_at for w in chosen if w.header is not None]),
    )
    return waiting, where


def remove(line: list[Waiter], place: int) -> None:
    """Take a message out of what was seen of a queue."""
    step = line.pop(place).seen.step
    for index, waiter in enumerate(line):
        seen = waiter.seen
        if index < place:
            waiter.seen = seen._replace(behind=seen.behind - 1)
        else:
            waiter.seen = seen._replace(
                ahead=seen.ahead - 1, position=seen.position - (seen.step == step)
            )
