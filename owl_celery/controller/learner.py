"""Learn from the stream: outcomes to the tracker, and the tracker to the store, exactly once."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from redis.exceptions import RedisError

from owl_celery.aggregates import QValue
from owl_celery.controller.arrivals import Arrivals
from owl_celery.controller.events import Entry, is_beyond, read_events, trim_events
from owl_celery.controller.health import Troubles
from owl_celery.controller.load import Load
from owl_celery.controller.policy_host import PolicyHost
from owl_celery.errors import OwlError, StaleCursorError, StoreError, UnsavableStateError
from owl_celery.policies.base import Policy
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings
from owl_celery.store.base import FIRST_CURSOR, Store
from owl_celery.tracker import TaskPerformanceTracker
from owl_celery.types import Outcome

log = logging.getLogger(__name__)

READ_AT_ONCE: Final = 500
COMMIT_SECONDS: Final = 0.1
COMMIT_AT_MOST_SECONDS: Final = 5.0
COMMIT_SHARE: Final = 0.2
RETRY_SECONDS: Final = 1.0
RETRY_AT_MOST_SECONDS: Final = 10.0
TRIM_SECONDS: Final = 10.0
KEEP_EVENTS_SECONDS: Final = 600.0
PRUNE_SECONDS: Final = 60.0
PRIORS_SECONDS: Final = 2.0
Q_VALUES_SECONDS: Final = 10.0
Q_VALUES_SHARE: Final = 0.02


class Learner:
    """Owns the policy of a controller: teaches it, saves it, and encodes what it knows.

    All of it happens in ``step``, which one thread calls again and again; a database that hangs
    holds up that thread and nothing else. Outcomes, aggregates, policy state and stream cursor
    are committed together, on the condition that the store still is where it was left; when
    that fails in any way, everything learned is loaded from the store again and the stream is
    read from there. So each outcome counts once, over crashes and with two controllers at work.

    Parameters
    ----------
    state
        Where the stream is.
    settings
        Retention.
    open_store
        Makes the store; called by the first step, since it imports a lot.
    policy
        A fresh one.
    fence
        Fencing number of our lease.
    troubles
        Told of the store's health as ``store``.
    clock
        Monotonic seconds.

    Attributes
    ----------
    counters
        Events and errors since the start, by name.
    host
        Keeps the policy.
    load
        The latest load; set by the controller, shown to the policy.

    """

    def __init__(
        self,
        state: RedisState,
        settings: Settings,
        open_store: Callable[[], Store],
        policy: Policy,
        fence: int,
        troubles: Troubles,
        clock: Callable[[], float],
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.host = PolicyHost(policy, fence, self.counters, clock)
        self.load = Load()
        self.tracker = TaskPerformanceTracker(policy)
        self._state = state
        self._settings = settings
        self._open_store = open_store
        self._troubles = troubles
        self._clock = clock
        self._arrivals = Arrivals(state)
        self._store: Store | None = None
        self._is_loaded = False
        self._fails_to_load = False
        self._committed = FIRST_CURSOR
        self._cursor = FIRST_CURSOR
        self._behind_at: float | None = None
        self._retry_at = float("-inf")
        self._retry_seconds = RETRY_SECONDS
        self._commit_at = float("-inf")
        self._prior = 0
        self._prior_reports: dict[int, str] = {}
        self._priors_at = self._q_values_at = float("-inf")
        self._trim_at = self._prune_at = clock()

    @property
    def cursor(self) -> str:
        """Stream id up to which outcomes are committed."""
        return self._committed

    def lag_seconds(self, now: float) -> float:
        """Time since the learner last had read all of the stream; 0 while it keeps up."""
        return 0.0 if self._behind_at is None else max(now - self._behind_at, 0.0)

    def step(self, mode: str = "on") -> bool:
        """Read, learn, commit; say whether there may be more to read at once.

        Parameters
        ----------
        mode
            The kill switch; ``off`` passes over outcomes without learning.

        Raises
        ------
        redis.RedisError
            When Redis does not answer.

        """
        now = self._clock()
        if self._behind_at is None:
            self._behind_at = now
        if not self._is_loaded and not self._load(now):
            return False
        entries = read_events(self._state, self._cursor, READ_AT_ONCE)
        try:
            self._take(entries, mode, now)
            arrivals = self._arrivals.read(now)
            if mode != "off":
                self.host.arrived(arrivals)
            self._import_priors(now)
            self.host.tick(self.load, now)
            self._commit_when_due(now)
            self._tidy(now)
        except RedisError:
            raise  # Nothing was half done.
        except StoreError as error:
            self._fail(error, now)
            return False
        except Exception:
            self._is_loaded = False  # Whatever it was, what is stored is sound.
            raise
        has_more = len(entries) == READ_AT_ONCE
        if not has_more:
            self._behind_at = None
        return has_more

    def finish(self) -> None:
        """Commit what is learned and close the store; whatever fails is read again later."""
        try:
            if self._is_loaded:
                self._commit()
            if self._store is not None:
                self._store.close()
        except StoreError as error:
            log.info("owl controller: the last outcomes are left to the next one (%s)", error)
        except Exception:
            log.exception("owl controller: the last outcomes are left to the next one")

    def _load(self, now: float) -> bool:
        """Continue from what is stored; False when the store cannot be used yet."""
        if now < self._retry_at:
            return False
        try:
            if self._store is None:
                self._store = self._open_store()
            learned = self._store.load()
        except OwlError as error:
            self._fails_to_load = True
            self._fail(error, now)
            return False
        with self.host.lock:
            self.tracker.restore(learned)
        self._committed = self._cursor = learned.cursor
        self._prior = learned.prior
        self._prior_reports.clear()
        self._is_loaded = True
        self.host.changed()
        self.host.forget_q_values()
        if self._fails_to_load:
            self._works()
        return True

    def _works(self) -> None:
        """Note that the store works again; one that fails to commit is not cured by loading."""
        self._fails_to_load = False
        self._retry_seconds = RETRY_SECONDS
        self._troubles.end("store")

    def _fail(self, error: OwlError, now: float) -> None:
        """Forget what is not committed; what was published stays until the store is back."""
        self._is_loaded = False
        if isinstance(error, StaleCursorError):
            self.counters["stale_cursors"] += 1
            return
        self.counters["store_errors"] += 1
        self._troubles.begin("store", str(error))
        self._retry_at = now + self._retry_seconds
        self._retry_seconds = min(2.0 * self._retry_seconds, RETRY_AT_MOST_SECONDS)

    def _take(self, entries: list[Entry], mode: str, now: float) -> None:
        """Learn from entries of the stream and move the cursor."""
        if not entries:
            return
        outcomes = [entry.event for entry in entries if isinstance(entry.event, Outcome)]
        self.counters["undecodable"] += sum(entry.event is None for entry in entries)
        if mode == "off":
            self.counters["passed_over"] += len(outcomes)
        elif outcomes:
            assert self._store is not None
            known = self._store.known([outcome.key for outcome in outcomes])
            with self.host.lock:
                batch = self.tracker.record(outcomes, now, known)
            self.counters["outcomes"] += len(batch.accepted)
            self.counters["duplicates"] += batch.duplicates
            self.counters["undecodable"] += batch.refused
            if batch.accepted:
                self.host.changed()
        self._cursor = entries[-1].cursor

    def _import_priors(self, now: float) -> None:
        """Let the policy take what was imported since; committed with its state, so exactly once.

        Until then nothing else may be committed with that state, nor that state without it.
        """
        if now < self._priors_at:
            return
        self._priors_at = now + PRIORS_SECONDS
        assert self._store is not None
        last = max(self._prior_reports, default=self._prior)
        for number, document in self._store.priors(last):
            report = self._prior_reports[number] = self.host.import_prior(document)
            self.counters["imports"] += 1
            log.info("owl controller: import %d: %s", number, report)

    def _commit_when_due(self, now: float) -> None:
        if now < self._commit_at:
            return
        began = self._clock()
        is_shown = now >= self._q_values_at and bool(self.load.names)
        q_values = self.host.q_values(self.load, now) if is_shown else ()
        has_changed = bool(self._cursor != self._committed or q_values or self._prior_reports)
        if has_changed:
            self._commit(q_values)
        ended = self._clock()
        if is_shown:
            # A large table, or a slow database, is written less often.
            pause = max(Q_VALUES_SECONDS, (ended - began) / Q_VALUES_SHARE)
            self._q_values_at = ended + pause
        if not has_changed:
            return
        # A slow database is written to less often.
        pause = max(COMMIT_SECONDS, (ended - began) / COMMIT_SHARE)
        self._commit_at = ended + min(pause, COMMIT_AT_MOST_SECONDS)

    def _commit(self, q_values: Sequence[QValue] = ()) -> None:
        """Move the store on to where we are."""
        if self._cursor == self._committed and not (q_values or self._prior_reports):
            return
        assert self._store is not None
        pending = self.tracker.take()
        commit = partial(
            self._store.commit,
            expected_cursor=self._committed,
            cursor=self._cursor,
            outcomes=pending.outcomes,
            policy_name=self.host.policy.name,
            aggregates=pending.aggregates,
            q_values=q_values,
            expected_prior=self._prior,
            prior_reports=dict(self._prior_reports),
        )
        has_learned = bool(pending.outcomes or self._prior_reports)
        try:
            commit(policy_state=self.host.state() if has_learned else None)
        except UnsavableStateError:
            # The same outcomes would lead there again: go on without what the policy learned.
            self.host.count_error("state")
            commit(policy_state=None)
        self._committed = self._cursor
        self._prior = max(self._prior_reports, default=self._prior)
        self._prior_reports.clear()
        self.counters["commits"] += 1
        self._works()

    def _tidy(self, now: float) -> None:
        """Trim the stream behind the cursor, and forget old outcomes."""
        if now - self._trim_at >= TRIM_SECONDS:
            self._trim_at = now
            if is_beyond(self._state, self._cursor):
                log.warning("owl controller: the stream of events was lost and has begun anew")
                self._cursor = FIRST_CURSOR
                self.counters["stream_resets"] += 1
            # The next controller looks at the latest events to see what runs.
            trim_events(self._state, [self._committed, self._cursor], KEEP_EVENTS_SECONDS)
        if now - self._prune_at >= PRUNE_SECONDS:
            self._prune_at = now
            assert self._store is not None
            self._store.prune(self._settings.outcome_retention_count)
