"""Everything for which the controller moves tasks that wait, in one round of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from owl_celery.brokers.base import Broker
from owl_celery.controller.lease import Lease
from owl_celery.controller.ledger import LoadLedger
from owl_celery.controller.load import Load
from owl_celery.controller.placing import Emptying, Placer
from owl_celery.controller.policy_host import PolicyHost
from owl_celery.controller.stealing import Stealing
from owl_celery.controller.view import EncodedKnowledge
from owl_celery.settings import Settings


class Moving:
    """Empties drained queues, and gives idle workers what waits elsewhere.

    Parameters
    ----------
    broker, settings
        As in ``Controller``.
    ledger
        Told of what is moved.
    host
        The policy.
    lease
        What entitles us to move.
    counters
        Where ``tasks_drained`` and ``stolen`` are counted.
    clock
        The ledger's clock, seconds.
    default_queue
        Where a task goes when no queue is open for it.

    """

    def __init__(
        self,
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
        self._emptying = Emptying(broker, Placer(settings, default_queue))
        self._stealing = Stealing(broker, ledger, host, lease, counters, clock)

    def step(self, load: Load, mode: str, knowledge: EncodedKnowledge | None, now: float) -> bool:
        """Move what is to be moved; say whether the ledger's load has changed.

        Parameters
        ----------
        load
            As the ledger has it.
        mode
            The kill switch; nothing is stolen unless it is ``on``.
        knowledge
            What the policy knows, if anything.
        now
            The ledger's clock.

        Raises
        ------
        BrokerError
            When the broker does not answer.

        """
        queues = self._emptying.due(self._ledger.drained, load, now)
        if queues:
            text = knowledge.text if knowledge else ""
            # The next tick sees the load.
            self._counters["tasks_drained"] += self._emptying.empty(queues, load, text, now)
        if not self._settings.steal or mode != "on":
            return False
        return bool(self._stealing.step(load, now))
