"""Where tasks go that wait where they must not stay: the router's choice, made anew."""

from __future__ import annotations

import logging
from typing import Final

from owl_celery.brokers.base import Broker, Permit
from owl_celery.controller.load import Load
from owl_celery.errors import NoOpenQueueError
from owl_celery.fleet import Fleet
from owl_celery.policies import make_policy
from owl_celery.policies.base import Policy
from owl_celery.records import Knowledge, decode_record
from owl_celery.sanity import sane_decision
from owl_celery.settings import Settings
from owl_celery.snapshot import policy_chain
from owl_celery.wire import TaskHeader

log = logging.getLogger(__name__)

LOOKED_AT: Final = 2_000
"""Messages that are looked at in one round, in all queues: no round may outlast the lease."""

MOVE_SECONDS: Final = 0.25
NOTHING_MOVED_SECONDS: Final = 1.0


class Placer:
    """Chooses queues as a producer does, from the controller's own load and knowledge.

    Parameters
    ----------
    settings
        Policy and its settings.
    default_queue
        Where a task goes when no queue is open for it.

    """

    def __init__(self, settings: Settings, default_queue: str) -> None:
        self._settings = settings
        self._default_queue = default_queue
        self._policies: list[Policy] = []
        self._knowledge = ""
        self._fleet = Fleet([], [])
        self._rows: dict[str, int] = {}
        self._now = 0.0
        self._failed: set[str] = set()

    def prepare(self, load: Load, knowledge: str, now: float) -> None:
        """Take in the load and the encoded knowledge of the moment; call before ``place``."""
        self._fleet, self._now = load.fleet(), now
        self._rows = {name: row for row, name in enumerate(self._fleet.names)}
        if not self._policies or knowledge != self._knowledge:
            self._knowledge = knowledge
            self._policies = self._informed(knowledge)

    def place(self, header: TaskHeader) -> str | None:
        """The best open queue for a waiting task; None when it is not ours to move.

        Each task that is placed counts as waiting there for the next.
        """
        if not header.is_routed:
            return None
        task = header.view()
        for policy in self._policies:
            if not policy.ready:
                continue
            try:
                decision = sane_decision(policy.choose(task, self._fleet, self._now))
                row = self._rows[decision.queue]
                if not self._fleet.is_open[row]:
                    raise ValueError("a queue that is not open")
            except NoOpenQueueError:
                break
            except Exception as error:
                if policy.name not in self._failed:
                    self._failed.add(policy.name)
                    log.error("owl controller: %s in policy %s", type(error).__name__, policy.name)
                continue
            self._fleet.waiting_count[row] += 1
            self._fleet.waiting_seconds[row] += (
                decision.service_seconds or header.service_seconds or 0.0
            )
            return decision.queue
        return self._default_queue

    def _informed(self, knowledge: str) -> list[Policy]:
        known = decode_record(Knowledge, knowledge) if knowledge else None
        policies = []
        for name in policy_chain(known.policy if known else self._settings.policy):
            policy = make_policy(self._settings.model_copy(update={"policy": name}))
            try:
                if known is not None:
                    policy.apply_snapshot(known.snapshot)
            except Exception as error:
                log.warning("owl controller: %s cannot read what it knows: %s", name, error)
            policies.append(policy)
        return policies


class Emptying:
    """Empties closed queues, a bounded amount of work at a time.

    Parameters
    ----------
    broker
        Moves the tasks.
    placer
        Says where to.
    what
        Why they are emptied, in a word for the log.

    """

    def __init__(self, broker: Broker, placer: Placer, what: str) -> None:
        self._broker = broker
        self._placer = placer
        self._what = what
        self._due_at: dict[str, float] = {}

    def due(self, queues: frozenset[str], load: Load, now: float) -> list[str]:
        """Those of these queues that should be looked at now, in order.

        Of a queue that no worker serves it is not known whether tasks wait there.
        """
        waiting = dict(zip(load.names, load.waiting_count, strict=True))
        self._due_at = {name: self._due_at.get(name, now) for name in queues}
        due = [
            name for name, due_at in self._due_at.items() if waiting.get(name, 1) and now >= due_at
        ]
        return sorted(due, key=self._due_at.__getitem__)

    def empty(
        self, queues: list[str], load: Load, knowledge: str, now: float, permit: Permit
    ) -> int:
        """Move what we sent to these queues, by right of a lease; count it.

        Raises
        ------
        BrokerError
            When the broker does not answer.

        """
        self._placer.prepare(load, knowledge, now)
        waiting = dict(zip(load.names, load.waiting_count, strict=True))
        # First, so that a broker that fails is not asked again in every round.
        before = dict(self._due_at)
        self._due_at.update(dict.fromkeys(queues, now + NOTHING_MOVED_SECONDS))
        total, left = 0, LOOKED_AT
        for queue in queues:
            if not left:
                self._due_at[queue] = before[queue]  # In the next round.
                continue
            moved = self._broker.redirect(queue, self._placer.place, left, permit)
            left -= min(max(waiting.get(queue, 0), moved), left)
            if moved or self._broker.has_unseen:
                self._due_at[queue] = now + MOVE_SECONDS
            if moved:
                log.info(
                    "owl controller: moved %d tasks from %s queue %s", moved, self._what, queue
                )
            total += moved
        return total
