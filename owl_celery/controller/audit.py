"""Now and again, read what the messages say that wait, and put the ledger right by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from owl_celery.brokers.base import Broker
from owl_celery.controller.ledger import LoadLedger

PAUSE_SECONDS: Final = 0.05
SHARE: Final = 0.02
"""Most of the controller's time that looking takes."""

RETRY_SECONDS: Final = 2.0
BLIND_SECONDS: Final = 60.0
NEW_AT_ONCE: Final = 8
LOOKED_AT: Final = 200


class Audit:
    """Looks into one queue at a time, that which was looked into longest ago; new ones come first.

    What producers and workers say is exact as long as all of them live. A producer that is killed
    does not report, a worker that is killed does not say what it took, tasks are moved, and a new
    controller knows nothing of what waits: only the messages do.

    Parameters
    ----------
    broker
        Reads the messages.
    ledger
        Is put right.
    clock
        Seconds, the ledger's clock.

    """

    def __init__(self, broker: Broker, ledger: LoadLedger, clock: Callable[[], float]) -> None:
        self._broker = broker
        self._ledger = ledger
        self._clock = clock
        self._looked_at: dict[str, float] = {}
        self._due_at = float("-inf")

    def step(self, now: float) -> None:
        """Look into a queue, if it is time to.

        Raises
        ------
        BrokerError
            When the broker does not answer.

        """
        if now < self._due_at:
            return
        never = float("-inf")
        self._looked_at = {
            name: self._looked_at.get(name, never) for name in self._ledger.queue_names
        }
        waiting = sorted(self._ledger.waiting_names(), key=self._looked_at.__getitem__)
        unseen = sum(self._looked_at[name] == never for name in waiting)
        self._due_at = now + RETRY_SECONDS  # Should the broker fail.
        for name in waiting[: min(max(unseen, 1), NEW_AT_ONCE)]:
            contents = self._broker.contents(name, LOOKED_AT)
            if contents is None:
                self._due_at = now + BLIND_SECONDS
                return
            self._ledger.audit(name, contents)
            self._looked_at[name] = now
        ended = self._clock()
        # A new controller goes on at once, until it has seen all.
        pause = max(PAUSE_SECONDS, (ended - now) / SHARE)
        self._due_at = now if unseen > NEW_AT_ONCE or not waiting else ended + pause
