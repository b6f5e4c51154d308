"""What the view says and what is true, read at one instant; and how far they are apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis import Redis

from owl_celery.keys import Keys
from owl_celery.records import FleetRecord, View, decode_record

BUSY_TASKS: Final = 20
"""Tasks in a queue, on average, from which on it counts as busy."""

FRESH_SECONDS: Final = 2.0
"""Age of the view up to which routing goes by it (``OWL_VIEW_STALE_SECONDS``)."""

READ: Final = r"""
-- KEYS: view, fleet, unacknowledged messages, the default queue.
-- Lists are named in the fleet record: no worker serves any other.
local function seconds_in(message)
  local milliseconds = string.match(message, '"argsrepr": "%((%d+)')
  local predicted = string.match(message, '"owl": {[^}]*"s": ([%d.e-]+)')
  return tonumber(predicted) or tonumber(milliseconds) / 1000, tonumber(milliseconds)
end
local view, fleet = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2])
local queues = {}
if fleet then
  for index, name in ipairs(cjson.decode(fleet).names) do
    local predicted, lengths = 0, {}
    for number, message in ipairs(redis.call('LRANGE', name, 0, -1)) do
      local seconds, milliseconds = seconds_in(message)
      predicted, lengths[number] = predicted + seconds, milliseconds
    end
    queues[index] = {name, tostring(predicted), lengths}
  end
end
local held = {}
for index, message in ipairs(redis.call('HVALS', KEYS[3])) do
  local seconds, milliseconds = seconds_in(message)
  held[index] = {string.match(message, '"([^"]*)"%]$') or '', tostring(seconds), milliseconds}
end
return {redis.call('TIME'), view, fleet, queues, held, redis.call('LLEN', KEYS[4])}
"""


@dataclass(frozen=True, slots=True)
class QueueSample:
    """What is true of one queue, and what the view says.

    Parameters
    ----------
    waiting
        Tasks that wait in the broker.
    lengths
        Milliseconds that a task is meant to take, and how many such wait or are held by a worker.
    predicted
        Sum of the predictions in the headers of these, seconds.
    said_waiting, said_count, said_seconds
        By the view: tasks that wait, those and what runs, and the predicted seconds of all.
    """

    waiting: int
    lengths: Mapping[int, int]
    predicted: float
    said_waiting: int
    said_count: int
    said_seconds: float

    @property
    def count(self) -> int:
        """Tasks that wait or are held."""
        return sum(self.lengths.values())

    def takes(self, seconds: Mapping[int, float]) -> float:
        """What they will take, when tasks of each length take so many seconds."""
        return sum(count * seconds[length] for length, count in self.lengths.items())


@dataclass(frozen=True, slots=True)
class Sample:
    """All queues of the view at one instant of Redis.

    Parameters
    ----------
    at
        Redis clock, Unix seconds.
    age_seconds
        Since the view's version last changed, or since what it says was read.
    queues
        Those of the view, by name.
    left_over
        Tasks that wait or are held anywhere else.
    """

    at: float
    age_seconds: float
    queues: dict[str, QueueSample]
    left_over: int

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits or runs anywhere."""
        return not self.left_over and all(queue.count == 0 for queue in self.queues.values())

    @property
    def says_empty(self) -> bool:
        """Whether the view says exactly 0 of every queue."""
        return bool(self.queues) and all(
            queue.said_count == 0 and queue.said_seconds == 0.0 for queue in self.queues.values()
        )


class Sampler:
    """Reads samples, and keeps what was decoded of a view that has not changed."""

    def __init__(self, client: Redis, keys: Keys, default_queue: str = "celery") -> None:
        self._script = client.register_script(READ)
        self._keys = [keys.view, keys.fleet, "unacked", default_queue]
        self._view_text = self._fleet_text = ""
        self._view: View | None = None
        self._fleet: FleetRecord | None = None
        self._changed_at = 0.0

    def read(self) -> Sample | None:
        """Take a sample; None before the first view."""
        (seconds, micros), view_text, fleet_text, queues, held, default = self._script(self._keys)
        at = int(seconds) + int(micros) / 1e6
        if view_text != self._view_text:
            self._view_text = view_text
            self._view = decode_record(View, view_text) if view_text else None
            self._changed_at = at
        if fleet_text != self._fleet_text:
            self._fleet_text = fleet_text
            self._fleet = decode_record(FleetRecord, fleet_text) if fleet_text else None
        view, fleet = self._view, self._fleet
        if view is None or fleet is None or view.fleet_version != fleet.version:
            return None
        return self._sample(at, view, queues, held, int(default))

    def _sample(
        self, at: float, view: View, queues: list[Any], held: list[Any], left_over: int
    ) -> Sample:
        running: dict[int, list[float]] = {}
        for row, predicted, _ in view.running:
            running.setdefault(int(row), []).append(float(predicted))
        of: dict[str, list[tuple[float, int]]] = {name: [] for name, *_ in queues}
        for name, predicted, length in held:
            if name in of:
                of[name].append((float(predicted), int(length)))
            else:
                left_over += 1
        samples = {}
        for row, (name, predicted, lengths) in enumerate(queues):
            runs, waiting = running.get(row, []), int(view.waiting_count[row])
            samples[name] = QueueSample(
                waiting=len(lengths),
                lengths=Counter([*map(int, lengths), *(length for _, length in of[name])]),
                predicted=float(predicted) + sum(seconds for seconds, _ in of[name]),
                said_waiting=waiting,
                said_count=waiting + len(runs),
                said_seconds=float(view.waiting_seconds[row]) + sum(runs),
            )
        age = max(at - self._changed_at, at - view.ledger_time)
        return Sample(at, age, samples, left_over)


@dataclass(frozen=True, slots=True)
class Error:
    """Relative errors of one kind over all busy samples.

    Parameters
    ----------
    what
        Of what.
    samples
        How many were busy.
    mean, median, p95, bias
        Of ``|view - truth| / truth``; ``bias`` of the same with its sign.
    """

    what: str
    samples: int
    mean: float
    median: float
    p95: float
    bias: float


def errors_of(samples: Sequence[Sample], seconds: Mapping[int, float]) -> list[Error]:
    """Sum up what the samples say.

    Parameters
    ----------
    seconds
        What tasks really take, by the milliseconds that they are meant to.

    Examples
    --------
    >>> queue = QueueSample(39, {5: 40}, 0.2, 39, 40, 0.22)
    >>> sample = Sample(0.0, 0.0, {"a": queue, "b": queue}, 0)
    >>> errors = errors_of([sample], {5: 0.0055})
    >>> [(error.what, abs(round(error.bias, 3))) for error in errors]
    ... # doctest: +NORMALIZE_WHITESPACE
    [('all queues: tasks', 0.0), ('all queues: predicted seconds', 0.1),
     ('all queues: seconds they take', 0.0),
     ('one queue: tasks', 0.0), ('one queue: predicted seconds', 0.1),
     ('one queue: seconds they take', 0.0)]

    """
    rows: dict[str, list[float]] = {}
    for sample in samples:
        queues = list(sample.queues.values())
        if sum(queue.count for queue in queues) >= BUSY_TASKS * len(queues) > 0:
            _add(rows, "all queues", queues, seconds)
        for queue in queues:
            if queue.count >= BUSY_TASKS:
                _add(rows, "one queue", [queue], seconds)
    order = sorted(rows, key=lambda what: what.startswith("one queue"))
    return [_error(what, rows[what]) for what in order]


def _add(
    rows: dict[str, list[float]],
    where: str,
    queues: Sequence[QueueSample],
    seconds: Mapping[int, float],
) -> None:
    said_seconds = sum(queue.said_seconds for queue in queues)
    pairs = {
        "tasks": (sum(q.said_count for q in queues), sum(q.count for q in queues)),
        "predicted seconds": (said_seconds, sum(q.predicted for q in queues)),
        "seconds they take": (said_seconds, sum(q.takes(seconds) for q in queues)),
    }
    for what, (said, true) in pairs.items():
        if true > 0:
            rows.setdefault(f"{where}: {what}", []).append(said / true - 1.0)


def _error(what: str, signed: list[float]) -> Error:
    sizes = sorted(abs(value) for value in signed)
    return Error(
        what,
        len(sizes),
        mean=sum(sizes) / len(sizes),
        median=sizes[len(sizes) // 2],
        p95=sizes[min(int(0.95 * len(sizes)), len(sizes) - 1)],
        bias=sum(signed) / len(signed),
    )
