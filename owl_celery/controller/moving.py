"""Everything for which the controller moves tasks that wait, in one round of it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection

from owl_celery.brokers.base import Broker, Permit
from owl_celery.controller.lease import Lease
from owl_celery.controller.ledger import LoadLedger
from owl_celery.controller.load import Load
from owl_celery.controller.orphans import Orphans
from owl_celery.controller.placing import Emptying, Placer
from owl_celery.controller.policy_host import PolicyHost
from owl_celery.controller.rescue import Rescue
from owl_celery.controller.stealing import Stealing
from owl_celery.controller.view import EncodedKnowledge
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings

log = logging.getLogger(__name__)


class Moving:
    """Empties drained, wedged and dead queues, and gives idle workers what waits elsewhere.

    Parameters
    ----------
    state, broker, settings
        As in ``Controller``.
    ledger
        Told of what is moved.
    host
        The policy.
    lease
        What entitles us to move.
    counters
        Where ``tasks_drained``, ``rescued`` and ``stolen`` are counted.
    clock
        The ledger's clock, seconds.
    default_queue
        Where a task goes when no queue is open for it.

    """

    def __init__(
        self,
        state: RedisState,
        broker: Broker,
        settings: Settings,
        ledger: LoadLedger,
        host: PolicyHost,
        lease: Lease,
        counters: Counter[str],
        clock: Callable[[], float],
        default_queue: str,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._counters = counters
        self._lease = lease
        placer = Placer(settings, default_queue)
        self._emptying = Emptying(broker, placer, "drained")
        self._freeing = Emptying(broker, placer, "wedged")
        self._broker = broker
        self._orphans = Orphans()
        self._rescue = Rescue(
            state,
            broker,
            placer,
            lease,
            counters,
            settings.heartbeat_ttl_seconds,
            settings.max_worker_losses,
        )
        self._stealing = Stealing(broker, ledger, host, lease, counters, clock)

    def step(
        self,
        load: Load,
        known: Collection[str],
        mode: str,
        knowledge: EncodedKnowledge | None,
        now: float,
    ) -> bool:
        """Move what is to be moved; say whether the ledger's load has changed.

        Parameters
        ----------
        load
            As the ledger has it.
        known
            Queues to which tasks were ever sent.
        mode
            The kill switch; only drained queues are emptied unless it is ``on``.
        knowledge
            What the policy knows, if anything.
        now
            The ledger's clock.

        Raises
        ------
        BrokerError
            When the broker does not answer.
        redis.RedisError
            When the state's Redis does not.

        """
        text, permit = knowledge.text if knowledge else "", self._lease.permit()
        # Of these two the next tick sees the load.
        drained = self._emptying.due(self._ledger.drained, load, now)
        if drained:
            self._counters["tasks_drained"] += self._emptying.empty(
                drained, load, text, now, permit
            )
        if mode != "on":
            return False
        wedged = frozenset(self._ledger.wedged) if self._settings.rescue else frozenset()
        # Where no worker is well, the broker may be away for all: they serve it when it is back.
        if len(load.closed) < len(load.names) and (stuck := self._freeing.due(wedged, load, now)):
            self._counters["rescued"] += self._freeing.empty(stuck, load, text, now, permit)
        if self._settings.rescue:
            self._hand_back_orphans(permit, now)
        if self._settings.rescue and (dead := self._rescue.due(load, known, now)):
            self._rescue.save(dead, load, text, now)
        return self._settings.steal and bool(self._stealing.step(load, now))

    def stay(self, nodes: Collection[str]) -> None:
        """Note which workers have not taken leave, alive or not."""
        self._orphans.stay(nodes)

    def _hand_back_orphans(self, permit: Permit, now: float) -> None:
        """Give back what dead workers held of queues that others serve, too."""
        orphans = self._orphans.due(self._ledger.heartbeats, now)
        if not orphans:
            return
        count = self._broker.restore({}, permit, self._settings.max_worker_losses, orphans)
        if not self._broker.has_more:  # Else again at the next look.
            self._orphans.settled(orphans, now)
        if count:
            log.warning("owl controller: %d tasks were held by dead workers; they run again", count)
            self._counters["handed_back"] += count
