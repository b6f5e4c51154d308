"""Names of the Redis keys that the processes of one application share."""

from __future__ import annotations

from dataclasses import dataclass

from owl_celery.wire import MAX_NAME_LENGTH


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of the Redis keys of one application.

    Parameters
    ----------
    namespace
        Shared by the producers and workers of one application.
    prefix
        What all of them begin with: that of the broker, when it has one.

    """

    namespace: str
    prefix: str = ""

    def _key(self, name: str) -> str:
        return f"{self.prefix}owl:{self.namespace}:{name}"

    @property
    def nodes(self) -> str:
        """SET of node names that have sent a heartbeat."""
        return self._key("nodes")

    def heartbeat(self, node: str) -> str:
        """STRING, JSON of ``Heartbeat``, expires by itself."""
        return self._key(f"hb:{node}")

    def claim(self, queue: str) -> str:
        """STRING, the node that owns a queue, expires by itself."""
        return self._key(f"claim:{queue}")

    def gpu_claim(self, uuid: str) -> str:
        """The same for a GPU; of one name for all applications, since there is one GPU."""
        return f"{self.prefix}owl::claim:{uuid}"

    def lost(self, task_id: str) -> str:
        """STRING, tries of a task that began and never ended, expires by itself."""
        return self._key(f"lost:{task_id[:MAX_NAME_LENGTH]}")

    @property
    def assigned_count(self) -> str:
        """HASH queue -> tasks ever assigned; only grows, until idle for an hour."""
        return self._key("assigned:count")

    @property
    def assigned_seconds(self) -> str:
        """HASH queue -> predicted seconds ever assigned; as ``assigned_count``."""
        return self._key("assigned:seconds")

    @property
    def arrivals(self) -> str:
        """HASH task type -> tasks ever published; as ``assigned_count``."""
        return self._key("arrivals")

    @property
    def counters(self) -> str:
        """HASH of what producers and workers count, see ``counters.py``; only grows."""
        return self._key("counters")

    @property
    def view(self) -> str:
        """STRING, JSON of ``View``: what changes with every tick."""
        return self._key("view")

    @property
    def fleet(self) -> str:
        """STRING, JSON of ``FleetRecord``: queues and what rarely changes about them."""
        return self._key("fleet")

    @property
    def knowledge(self) -> str:
        """STRING, JSON of ``Knowledge``: the policy's snapshot."""
        return self._key("knowledge")

    @property
    def events(self) -> str:
        """STREAM of starts and outcomes, one field ``e`` of JSON."""
        return self._key("events")

    @property
    def lease(self) -> str:
        """STRING, ``<fencing number>:<random>`` of the active controller, expires by itself."""
        return self._key("lease:controller")

    @property
    def fencing(self) -> str:
        """Counter of fencing numbers."""
        return self._key("lease:fencing")

    @property
    def moves(self) -> str:
        """STRING in the broker, highest fencing number that moved messages; expires by itself."""
        return self._key("moves")

    @property
    def health(self) -> str:
        """STRING, JSON of the active controller's ``Health``, expires by itself."""
        return self._key("health")

    @property
    def mode(self) -> str:
        """STRING, the kill switch: ``on`` (also when missing), ``shadow`` or ``off``."""
        return self._key("mode")

    @property
    def drained(self) -> str:
        """SET of queues that an operator empties: no new tasks, and what waits moves away."""
        return self._key("drained")
