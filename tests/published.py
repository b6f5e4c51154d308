"""Publishing a load view as the controller would, to test a producer alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from owl_celery.records import FleetRecord, Knowledge, View
from owl_celery.redis_state import RedisState
from owl_celery.types import QueueView


class Publisher:
    """Plays the controller's last step: writes view, fleet and knowledge to Redis."""

    def __init__(self, state: RedisState) -> None:
        self._state = state
        self._version = 0
        self._fleet: FleetRecord | None = None
        self._knowledge: Knowledge | None = None

    def publish(
        self,
        queues: Sequence[QueueView],
        policy: str = "shortest_queue",
        snapshot: Mapping[str, Any] | None = None,
        ledger_time: float | None = None,
    ) -> None:
        """Publish the next version; by default everything told so far is included."""
        self._version += 1
        client, keys = self._state.client, self._state.keys
        if ledger_time is None:
            seconds, microseconds = client.time()
            ledger_time = seconds + microseconds / 1e6
        fleet = self._fleet or FleetRecord(0, [], [], [])
        names = [queue.name for queue in queues]
        models = [queue.gpu_model for queue in queues]
        concurrency = [queue.concurrency for queue in queues]
        if (fleet.names, fleet.gpu_models, fleet.concurrency) != (names, models, concurrency):
            fleet = self._fleet = FleetRecord(self._version, names, models, concurrency)
            client.set(keys.fleet, fleet.encode())
        knowledge = self._knowledge or Knowledge(0, "", {})
        if (knowledge.policy, knowledge.snapshot) != (policy, snapshot or {}):
            knowledge = self._knowledge = Knowledge(self._version, policy, snapshot or {})
            client.set(keys.knowledge, knowledge.encode())
        view = View(
            version=self._version,
            ledger_time=ledger_time,
            fleet_version=fleet.version,
            knowledge_version=knowledge.version,
            waiting_count=[queue.waiting_count for queue in queues],
            waiting_seconds=[queue.waiting_seconds for queue in queues],
            running=[
                (row, predicted, elapsed)
                for row, queue in enumerate(queues)
                for predicted, elapsed in queue.running
            ],
            closed=[row for row, queue in enumerate(queues) if not queue.is_open],
            free_memory_bytes=[queue.free_memory_bytes for queue in queues],
        )
        client.set(keys.view, view.encode())
