"""What the controller asks of a broker beyond Celery: how much waits, and to move it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Broker(Protocol):
    """Looks into queues. Used by the controller only, from one thread at a time.

    Connects at first use, and anew after an error. Every method raises ``BrokerError`` when the
    broker does not answer within about a second.
    """

    def depths(self, queues: Sequence[str]) -> dict[str, int]:
        """Count the messages that wait in each queue; a queue is left out where unknown."""

    def move_all(self, source: str, destination: str) -> int:
        """Move what waits in one queue behind what waits in another, oldest first; count it.

        No message is lost, and on Redis none is doubled, whatever happens in the middle of it.
        """

    def close(self) -> None:
        """Close the connection; the next use opens another."""


class BlindBroker:
    """Stands in for a broker whose queues we cannot look into: every depth is unknown.

    Examples
    --------
    >>> BlindBroker().depths(["gpu.a.0"])
    {}

    """

    def depths(self, queues: Sequence[str]) -> dict[str, int]:
        """Know nothing."""
        return {}

    def move_all(self, source: str, destination: str) -> int:
        """Move nothing."""
        return 0

    def close(self) -> None:
        """Do nothing."""
