"""Publish the load and the policy's knowledge to the producers, under the lease."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Final, NamedTuple

from owl_celery.controller.lease import Lease, Write
from owl_celery.controller.load import Load
from owl_celery.keys import Keys
from owl_celery.records import FleetRecord, View

VERSIONS_PER_FENCE: Final = 10**10
PUBLISH_AT_LEAST_SECONDS: Final = 0.5


def versions(fence: int) -> Iterator[int]:
    """Count publications; no two controllers ever give the same number.

    The fencing number comes first, so that versions grow from one controller to the next without
    asking Redis, and a controller that is late cannot reuse a number. Ten digits last nine years
    at the highest rate, and the numbers stay exact in JSON readers that use doubles.

    Examples
    --------
    >>> next(versions(7))
    70000000001

    """
    return count(fence * VERSIONS_PER_FENCE + 1)


class EncodedKnowledge(NamedTuple):
    """A ``Knowledge`` record, encoded by the thread that owns the policy."""

    version: int
    text: str


class ViewPublisher:
    """Writes view, fleet and knowledge when they change, and the view twice a second anyway.

    Parameters
    ----------
    lease
        Ours; what is written depends on it.
    keys
        Where to write.
    known_knowledge_version
        Version of the knowledge that is in Redis already, 0 for none.

    Attributes
    ----------
    view_bytes
        Length of the last view.

    """

    def __init__(self, lease: Lease, keys: Keys, known_knowledge_version: int) -> None:
        self._lease = lease
        self._keys = keys
        self._knowledge_version = known_knowledge_version
        self._view_versions = versions(lease.fence)
        self._fleet_versions = versions(lease.fence)
        self._fleet: FleetRecord | None = None
        self._content: object = None
        self._published_at = float("-inf")
        self.view_bytes = 0

    def publish(
        self,
        load: Load,
        ledger_time: float,
        now: float,
        knowledge: EncodedKnowledge | None = None,
        assigned_seconds: Mapping[str, float] | None = None,
        further: list[Write] | None = None,
    ) -> bool:
        """Write what has changed; say whether the lease is still ours.

        Parameters
        ----------
        load
            As the ledger has it.
        ledger_time
            Redis clock at which it was taken.
        now
            The ledger's clock.
        knowledge
            The latest, if any.
        assigned_seconds
            Predicted seconds ever sent to each queue, by ``ledger_time``.
        further
            Other values to write along.

        Raises
        ------
        redis.RedisError
            When Redis does not answer.

        """
        writes = list(further or ())
        fleet = self._fleet
        if fleet is None or (load.names, load.gpu_models, load.concurrency) != (
            fleet.names,
            fleet.gpu_models,
            fleet.concurrency,
        ):
            fleet = FleetRecord(
                next(self._fleet_versions), load.names, load.gpu_models, load.concurrency
            )
            writes.append(Write(self._keys.fleet, fleet.encode()))
        knowledge_version = self._knowledge_version
        if knowledge is not None and knowledge.version != knowledge_version:
            knowledge_version = knowledge.version
            writes.append(Write(self._keys.knowledge, knowledge.text))
        content = (fleet.version, knowledge_version, load)
        is_due = now - self._published_at >= PUBLISH_AT_LEAST_SECONDS
        if not is_due and not writes and content == self._content:
            return self._lease.is_held
        view = View(
            version=next(self._view_versions),
            ledger_time=ledger_time,
            fleet_version=fleet.version,
            knowledge_version=knowledge_version,
            waiting_count=load.waiting_count,
            waiting_seconds=load.waiting_seconds,
            running=[(row, seconds, max(now - since, 0.0)) for row, seconds, since in load.running],
            closed=load.closed,
            free_memory_bytes=load.free_memory_bytes,
            assigned_seconds=by_model(load, assigned_seconds or {}),
        )
        text = view.encode()
        # A failed write changes nothing here, so that the next one says it all again.
        if not self._lease.publish([*writes, Write(self._keys.view, text)]):
            return False
        self._fleet, self._content, self._published_at = fleet, content, now
        self._knowledge_version = knowledge_version
        self.view_bytes = len(text)
        return True


def by_model(load: Load, seconds: Mapping[str, float]) -> list[float]:
    """Sum up seconds of queues by their GPU models, in order of the models' names.

    Examples
    --------
    >>> load = Load(["a.0", "a.1", "a.2"], ["V100", "K80", "V100"])
    >>> by_model(load, {"a.0": 1.0, "a.1": 2.0, "a.2": 4.0, "gone.0": 8.0})
    [2.0, 5.0]

    """
    sums = dict.fromkeys(sorted(set(load.gpu_models)), 0.0)
    for name, model in zip(load.names, load.gpu_models, strict=True):
        sums[model] += seconds.get(name, 0.0)
    return list(sums.values())
