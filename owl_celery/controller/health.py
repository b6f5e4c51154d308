"""What the active controller says of itself, and one log line whenever that changes."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Final, Self

from owl_celery.breaker import DEPENDENCIES, Breaker
from owl_celery.counters import Teller
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


DEPENDENCY_OF: Final[Mapping[str, str]] = {
    **{name: name for name in DEPENDENCIES["controller"]},
    "store": "database",
}
"""Parts that are dependencies of the controller, whose failures are counted."""


class Troubles:
    """What does not work at present, by part; logged when it begins and when it ends, and counted.

    Used by several threads: each part belongs to one of them.

    Attributes
    ----------
    teller
        Knows what was told of ``totals``, over all terms of the controller.

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
        self._breakers: dict[str, Breaker] = {}
        self.teller = Teller()

    def begin(self, part: str, sentence: str) -> None:
        """Note that a part does not work; logged unless it is known already."""
        if (breaker := self._breaker(part)) is not None:
            breaker.fails(sentence)
        elif part not in self._sentences:
            log.warning("owl controller: %s: %s", part, sentence)
        self._sentences[part] = sentence

    def end(self, part: str) -> None:
        """Note that a part works; logged if it did not."""
        if self._sentences.pop(part, None) is None:
            return
        if (breaker := self._breaker(part)) is not None:
            breaker.works()
        else:
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

    def totals(self) -> dict[str, float]:
        """What is counted of all dependencies, as ``Breaker.totals``."""
        totals: dict[str, float] = {}
        for breaker in list(self._breakers.values()):
            totals.update(breaker.totals())
        return totals

    def _breaker(self, part: str) -> Breaker | None:
        if part in DEPENDENCY_OF and part not in self._breakers:
            self._breakers[part] = Breaker(
                "controller",
                DEPENDENCY_OF[part],
                f"owl controller: {part}: {{reason}}",
                f"owl controller: {part}: works again",
                logger=log,
            )
        return self._breakers.get(part)
