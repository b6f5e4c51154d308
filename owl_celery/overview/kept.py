"""What the database keeps, read in the background: a database that hangs holds up nobody."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

import numpy as np

from owl_celery.aggregates import Aggregates
from owl_celery.breaker import Breaker
from owl_celery.errors import OwlError, StoreError
from owl_celery.store.base import Store
from owl_celery.types import Outcome

log = logging.getLogger(__name__)

CACHE_SECONDS: Final = 2.0
COST_SHARE: Final = 0.1
"""Most of the time that is spent on reading: a database that takes long is read less often."""

MOST_RETRY_SECONDS: Final = 10.0
FIRST_WAIT_SECONDS: Final = 2.0
HANGING_SECONDS: Final = 5.0
ASK_SECONDS: Final = 1.0
ASKED_AT_ONCE: Final = 4
RECENT_SECONDS: Final = 30.0
RECENT_COUNT: Final = 5_000
LEAST_FOR_P99: Final = 20

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Kept:
    """The latest good copy, and what is wrong with the database at present.

    Parameters
    ----------
    version
        Number of the commit it is from; -1 before the first answer.
    p99_seconds
        99th percentile of the service time of recent successful tries, by task type.
    trouble
        What is wrong, in a sentence; empty when the database answers.

    """

    aggregates: Aggregates = field(default_factory=Aggregates)
    version: int = -1
    p99_seconds: Mapping[str, float] = field(default_factory=dict)
    trouble: str = ""


class KeptReader:
    """Keeps a copy of the aggregates that is a few seconds old, for any thread.

    Parameters
    ----------
    open_store
        Makes the store; called in a thread of ours.
    clock
        Monotonic seconds.

    """

    def __init__(
        self, open_store: Callable[[], Store], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._open_store = open_store
        self._clock = clock
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._kept = Kept()
        self._thread: threading.Thread | None = None
        self._began_at = 0.0
        self._hangs_since = float("-inf")
        self._next_at = float("-inf")
        self._recent_at = float("-inf")
        self._recent_version: int | None = None
        self._has_answered = threading.Event()
        self._slots = threading.BoundedSemaphore(ASKED_AT_ONCE)
        self._database = Breaker(
            "serve",
            "database",
            "owl: the database cannot be read: {reason}",
            "owl: the database can be read again",
            most_seconds=MOST_RETRY_SECONDS,
            level=logging.INFO,
            logger=log,
            clock=clock,
        )

    def latest(self) -> Kept:
        """The latest copy; starts to read a newer one when it is time. Never raises."""
        with self._lock:
            now = self._clock()
            is_reading = self._thread is not None and self._thread.is_alive()
            if not is_reading and now >= self._next_at:
                self._began_at = now
                self._thread = threading.Thread(
                    target=self._refresh, name="kept-reader", daemon=True
                )
                self._thread.start()
                is_reading = True
        if not self._has_answered.is_set():
            self._has_answered.wait(max(FIRST_WAIT_SECONDS - (now - self._began_at), 0.0))
        kept = self._kept
        if is_reading and not kept.trouble and now - self._began_at > HANGING_SECONDS:
            trouble = "The database does not answer; it is asked again."
            if self._hangs_since != self._began_at:
                # Once, whoever looks how often: questions are asked again meanwhile.
                self._hangs_since = self._began_at
                self._note(trouble)
            return replace(kept, trouble=trouble)
        return kept

    def ask(self, question: Callable[[Store], Answer]) -> Answer:
        """Ask the store something else, within a second; at once while it is known not to answer.

        Raises
        ------
        StoreError
            When the database cannot be used, or does not answer in time.

        """
        until = time.monotonic() + ASK_SECONDS
        with self._lock:
            if not self._database.may_try:
                raise StoreError(self._database.reason)
        if not self._slots.acquire(timeout=ASK_SECONDS):
            raise StoreError("The database does not answer earlier questions; try again later.")
        answers: list[Answer] = []
        errors: list[Exception] = []

        def run() -> None:
            try:
                answers.append(question(self._opened()))
            except Exception as error:
                errors.append(error)
            finally:
                self._slots.release()

        thread = threading.Thread(target=run, name="kept-question", daemon=True)
        thread.start()
        thread.join(max(until - time.monotonic(), 0.0))
        if answers:
            self._note("")
            return answers[0]
        if errors and isinstance(errors[0], OwlError):
            raise StoreError(str(errors[0])) from errors[0]
        if errors:
            log.error("owl: the database was asked in vain", exc_info=errors[0])
            raise StoreError(f"The database cannot be read ({errors[0]!r}).") from errors[0]
        sentence = f"The database does not answer within {ASK_SECONDS:g} s."
        self._note(sentence)
        raise StoreError(sentence)

    def totals(self) -> dict[str, float]:
        """What is counted of failures, as ``Breaker.totals``."""
        with self._lock:
            return self._database.totals()

    def _note(self, trouble: str) -> None:
        """Note what is wrong with the database, or that nothing is."""
        with self._lock:
            if trouble:
                self._database.fails(trouble)
            else:
                self._database.works()

    def close(self) -> None:
        """Close the connections; the next use opens new ones."""
        store = self._store
        if store is not None:
            store.close()

    def _opened(self) -> Store:
        with self._lock:
            if self._store is None:
                self._store = self._open_store()
            return self._store

    def _refresh(self) -> None:
        began, kept = self._clock(), self._kept
        try:
            self._kept = self._read(self._opened(), began)
        except OwlError as error:
            self._kept = replace(kept, trouble=str(error))
        except Exception as error:
            self._kept = replace(kept, trouble=f"The database cannot be read ({error!r}).")
        finally:
            self._note(self._kept.trouble)
            ended = self._clock()
            self._next_at = ended + max(CACHE_SECONDS, (ended - began) / COST_SHARE)
            self._has_answered.set()

    def _read(self, store: Store, now: float) -> Kept:
        kept = replace(self._kept, trouble="")
        version = store.version()
        if version != kept.version:
            # Read after its number: what is committed in between is read once more.
            kept = replace(kept, version=version, aggregates=store.aggregates())
        # While too few are there to tell anything from, they are quickly read.
        is_due = now - self._recent_at >= RECENT_SECONDS or not kept.p99_seconds
        if is_due and version != self._recent_version:
            self._recent_at, self._recent_version = now, version
            kept = replace(kept, p99_seconds=p99_of(store.recent(RECENT_COUNT)))
        return kept


def p99_of(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """99th percentile of the service time by task type, of those with 20 successful tries."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.state.succeeded:
            seconds[outcome.task_type].append(outcome.service_seconds)
    return {
        task_type: float(np.percentile(values, 99))
        for task_type, values in seconds.items()
        if len(values) >= LEAST_FOR_P99
    }
