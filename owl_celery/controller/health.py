"""What the active controller says of itself, and one log line whenever that changes."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field, fields
from typing import Self

from owl_celery.wire import dumps

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Health:
    """Published every second while a controller is active, with a short time to live.

    Parameters
    ----------
    controller
        Name of the process that leads: node name, or host and pid.
    fence
        Fencing number of its lease.
    active_since
        Unix time (Redis clock) at which it took the lease.
    policy, mode
        Policy at work, and the kill switch as last read.
    drained_queues
        Those of the queues that an operator has drained.
    troubles
        What does not work at present, one sentence a part (``store``, ``broker``, ...); empty
        when all is well.
    queues, open_queues
        Queues that live workers name, and those among them that take work.
    waiting_count, waiting_seconds, running_count
        Load of all of them.
    lag_seconds
        Age of the oldest event that is not learned from, at most; 0 when all are.
    tick_seconds
        Mean duration of a tick lately.
    counters
        Events and errors since this controller took the lease, by name.

    """

    controller: str = ""
    fence: int = 0
    active_since: float = 0.0
    policy: str = ""
    mode: str = "on"
    drained_queues: list[str] = field(default_factory=list)
    troubles: dict[str, str] = field(default_factory=dict)
    queues: int = 0
    open_queues: int = 0
    waiting_count: int = 0
    waiting_seconds: float = 0.0
    running_count: int = 0
    lag_seconds: float = 0.0
    tick_seconds: float = 0.0
    counters: dict[str, int] = field(default_factory=dict)

    def encode(self) -> str:
        """JSON text."""
        return dumps({f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def decode(cls, text: str) -> Self | None:
        """Read what a controller of this or another release published; None when senseless."""
        try:
            body = json.loads(text)
            known = {f.name for f in fields(cls)}
            return cls(**{name: value for name, value in body.items() if name in known})
        except (ValueError, TypeError, AttributeError):
            return None


class Troubles:
    """What does not work at present, by part; logged when it begins and when it ends.

    Used by several threads: each part belongs to one of them.

    Examples
    --------
    >>> troubles = Troubles()
    >>> troubles.begin("store", "The database does not answer.")
    >>> troubles.now()
    {'store': 'The database does not answer.'}
    >>> troubles.end("store")
    >>> troubles.now()
    {}

    """

    def __init__(self) -> None:
        self._sentences: dict[str, str] = {}

    def begin(self, part: str, sentence: str) -> None:
        """Note that a part does not work; logged unless it is known already."""
        if part not in self._sentences:
            log.warning("owl controller: %s: %s", part, sentence)
        self._sentences[part] = sentence

    def end(self, part: str) -> None:
        """Note that a part works; logged if it did not."""
        if self._sentences.pop(part, None) is not None:
            log.warning("owl controller: %s: works again", part)

    def note(self, part: str, sentence: str) -> None:
        """Begin with this sentence, or end where it is empty."""
        if sentence:
            self.begin(part, sentence)
        else:
            self.end(part)

    def now(self) -> dict[str, str]:
        """Sentences by part."""
        return dict(self._sentences)
