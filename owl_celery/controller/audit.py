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
LOOKED_AT: Final = 200


class Audit:
    """Looks into one queue at a time: that which was never looked into, or longest ago.

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
        # One in which nothing waits for a moment counts as new afterwards.
        self._looked_at = {
            name: self._looked_at.get(name, never) for name in self._ledger.waiting_names()
        }
        name = min(self._looked_at, key=self._looked_at.__getitem__, default=None)
        if name is None:
            return
        self._due_at = now + RETRY_SECONDS  # Should the broker fail.
        contents = self._broker.contents(name, LOOKED_AT)
        ended = self._clock()
        if contents is None:
            self._due_at = ended + BLIND_SECONDS
            return
        self._ledger.audit(name, contents)
        self._looked_at[name] = now
        self._due_at = ended + max(PAUSE_SECONDS, (ended - now) / SHARE)
