"""What the controller asks of a broker beyond Celery: how much waits, and to move it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias

from owl_celery.wire import TaskHeader

TIMEOUT_SECONDS: Final = 1.0

Place: TypeAlias = Callable[[TaskHeader], str | None]
"""Says to which queue a task goes; None leaves it where it is. Must not raise."""


class Permit(NamedTuple):
    """The right of one controller to move messages, checked where they are moved.

    Parameters
    ----------
    lease_key, token
        Where the lease is, and what it says as long as it is ours; in another Redis than the
        broker it is not to be found.
    fence_key, fence
        Where the broker keeps the highest fencing number that has moved messages, and ours.

    """

    lease_key: str
    token: str
    fence_key: str
    fence: int


class Owner(NamedTuple):
    """Who may hand back what was delivered from a queue.

    Parameters
    ----------
    claim_key
        Where the claim on the queue is; in another Redis than the broker it is not to be found.
    claim
        The claim that is no hindrance: that of the worker which asks; empty when the queue must
        be nobody's.

    """

    claim_key: str
    claim: str = ""


class Seen(NamedTuple):
    """A message that waits, as a peek shows it.

    Parameters
    ----------
    step
        Which of the queue's lists it is in: 0 is the most urgent.
    position
        Messages that leave this list before it.
    ahead
        Messages that leave the queue before it.
    behind
        Messages that leave the queue after it.
    text
        JSON that begins with our header, and goes on or is cut; empty for a message that is
        not to be moved.

    """

    step: int
    position: int
    ahead: int
    behind: int
    text: str


class Contents(NamedTuple):
    """What the messages that wait in a queue say of their service times.

    Parameters
    ----------
    messages
        How many were read, the oldest ones.
    predicted_count, predicted_seconds
        Those of them that carry a prediction for this queue, and the sum of these.

    """

    messages: int
    predicted_count: int
    predicted_seconds: float


class Broker(Protocol):
    """Looks into queues. Used by the controller only, from one thread at a time.

    Connects at first use, and anew after an error. Every method raises ``BrokerError`` when the
    broker does not answer within a second or two.

    Attributes
    ----------
    has_more
        Whether the last ``restore`` left something that another can do: tasks to give up for which
        it had no time.
    has_unseen
        Whether the last ``redirect`` stopped at its limit; the next one goes on from there.
    trouble
        What keeps tasks from being given up, in a sentence: a result backend that takes no results;
        empty when nothing does.
    peek_disturbs
        Whether a peek takes messages out for a moment, and marks them as delivered before.

    """

    has_more: bool
    has_unseen: bool
    trouble: str
    peek_disturbs: bool

    def depths(self, queues: Sequence[str]) -> dict[str, int]:
        """Count the messages that wait in each queue; a queue is left out where unknown."""

    def contents(self, queue: str, most: int) -> Contents | None:
        """Sum up the oldest ``most`` messages that wait in a queue; None where unreadable."""

    def peek(self, queues: Sequence[str], each: int, wanted: int) -> Mapping[str, Sequence[Seen]]:
        """Show some of what waits, in the order in which it will leave; ``release`` after it.

        Parameters
        ----------
        queues
            Where to look.
        each
            Most messages to show from either end of each list of a queue.
        wanted
            Most messages that are to be moved: where a peek disturbs, it shows no more.

        Returns
        -------
        Mapping
            Messages by queue; empty where single messages cannot be moved.

        """

    def take(
        self, source: str, seen: Seen, decision_id: str, destination: str, permit: Permit
    ) -> bool:
        """Move one message, as seen just now, to a queue in which nothing waits.

        Returns
        -------
        bool
            False when it was not moved: it is gone, may not be moved, something waits in the
            destination, or another controller leads.

        """

    def release(self) -> None:
        """Put back, each at its place, what the last peek has shown and nobody has taken."""

    def move_all(self, source: str, destination: str) -> int:
        """Move what waits in one queue behind what waits in another, oldest first; count it.

        No message is lost and none is doubled if this process ends in the middle of it.
        """

    def redirect(self, source: str, place: Place, limit: int, permit: Permit | None = None) -> int:
        """Move each waiting task of ours to where ``place`` says, oldest first; count them.

        Looks at ``limit`` messages at most, or a few more. Messages without our header stay. As
        safe as ``move_all``.
        """

    def restore(
        self,
        owners: Mapping[str, Owner],
        permit: Permit | None = None,
        max_losses: int = 0,
        orphans: Mapping[str, float] | None = None,
    ) -> int:
        """Hand back to these queues what was delivered from them and never acknowledged.

        For queues whose worker is dead, since what a live one holds would run twice. Returns how
        many messages; 0 where the broker hands them back by itself.

        Parameters
        ----------
        owners
            The queues, with the claims that are checked where the messages are.
        permit
            The right of a controller; not needed by the worker that has claimed its queue.
        max_losses
            How many workers may die while they hold a task, before it fails; 0 for no limit.
        orphans
            Tasks to be handed back from whatever queue they came, with the Unix time after which
            they may have been delivered to somebody else.

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

    has_more = has_unseen = False
    trouble = ""
    peek_disturbs = False

    def depths(self, queues: Sequence[str]) -> dict[str, int]:
        """Know nothing."""
        return {}

    def contents(self, queue: str, most: int) -> Contents | None:
        """Read nothing."""
        return None

    def peek(self, queues: Sequence[str], each: int, wanted: int) -> Mapping[str, Sequence[Seen]]:
        """See nothing."""
        return {}

    def take(
        self, source: str, seen: Seen, decision_id: str, destination: str, permit: Permit
    ) -> bool:
        """Move nothing."""
        return False

    def release(self) -> None:
        """Do nothing."""

    def move_all(self, source: str, destination: str) -> int:
        """Move nothing."""
        return 0

    def redirect(self, source: str, place: Place, limit: int, permit: Permit | None = None) -> int:
        """Move nothing."""
        return 0

    def restore(
        self,
        owners: Mapping[str, Owner],
        permit: Permit | None = None,
        max_losses: int = 0,
        orphans: Mapping[str, float] | None = None,
    ) -> int:
        """Hand back nothing."""
        return 0

    def close(self) -> None:
        """Do nothing."""
