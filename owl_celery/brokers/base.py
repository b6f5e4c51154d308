"""What the controller asks of a broker beyond Celery: how much waits, and to move it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from owl_celery.wire import TaskHeader

Place: TypeAlias = Callable[[TaskHeader], str | None]
"""Says to which queue a task goes; None leaves it where it is. Must not raise."""


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

    def redirect(self, source: str, place: Place, limit: int) -> int:
        """Move each waiting task of ours to where ``place`` says, oldest first; count them.

        Looks at ``limit`` messages at most, or a few more. Messages without our header stay. As
        safe as ``move_all``.
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

    def redirect(self, source: str, place: Place, limit: int) -> int:
        """Move nothing."""
        return 0

    def close(self) -> None:
        """Do nothing."""
