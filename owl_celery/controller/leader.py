"""What a controller does while it holds the lease."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, Final

from redis.exceptions import RedisError

from owl_celery.brokers.base import Broker
from owl_celery.controller.audit import Audit
from owl_celery.controller.beats import Beats
from owl_celery.controller.events import Entry, read_events, read_last_events
from owl_celery.controller.health import Health, Troubles
from owl_celery.controller.idle import IdleFields
from owl_celery.controller.learner import Learner
from owl_celery.controller.lease import Lease, Write
from owl_celery.controller.ledger import LoadLedger
from owl_celery.controller.load import Load
from owl_celery.controller.moving import Moving
from owl_celery.controller.view import EncodedKnowledge, ViewPublisher, versions
from owl_celery.controller.wedged import wedged_workers
from owl_celery.errors import BrokerError
from owl_celery.policies import make_policy
from owl_celery.records import Knowledge, decode_record
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings
from owl_celery.store.base import FIRST_CURSOR, Store
from owl_celery.wire import Discarded, Started, bounded_seconds, mode_of, unknown_mode

log = logging.getLogger(__name__)

EVENTS_A_TICK: Final = 1_000
EVENTS_LOOKED_BACK: Final = 2_000
BEATS_SECONDS: Final = 0.1
BEATS_SECONDS_PER_NODE: Final = 5e-4
DEPTHS_SHARE: Final = 0.2
BROKER_RETRY_SECONDS: Final = 2.0
HEALTH_SECONDS: Final = 1.0
HEALTH_TTL_SECONDS: Final = 5.0
POLICY_WELL_SECONDS: Final = 60.0
IDLE_AFTER_SECONDS: Final = 2.0
LEARN_SECONDS: Final = 0.03
LEARN_IDLE_SECONDS: Final = 0.2
STOP_SECONDS: Final = 5.0
FORGET_QUEUES_SECONDS: Final = 10.0
MAX_IDLE_QUEUES: Final = 1_000


class Leader:
    """One term of a controller: load ledger, learner and publisher.

    ``tick`` reads heartbeats, assignments, depths and events, and publishes; a bounded amount of
    work. The learner runs in a thread of its own once ``start_learning`` was called; without it
    the caller drives ``learner.step()`` itself.

    Parameters
    ----------
    state, broker, settings, open_store, name, clock, default_queue
        As in ``Controller``.
    lease
        Just acquired.
    troubles
        Told what does not work.

    """

    def __init__(
        self,
        state: RedisState,
        broker: Broker,
        settings: Settings,
        open_store: Callable[[], Store],
        lease: Lease,
        troubles: Troubles,
        name: str,
        clock: Callable[[], float],
        default_queue: str,
    ) -> None:
        self._state = state
        self._broker = broker
        self._settings = settings
        self._lease = lease
        self._troubles = troubles
        self._name = name
        self._monotonic = clock
        self.counters: Counter[str] = Counter()
        self.load = Load()
        # Policies see Unix time that no change of a clock can turn back or make jump.
        self._since = self._redis_time()
        self._origin = self._since - clock()
        self.learner = Learner(
            state, settings, open_store, make_policy(settings), lease.fence, troubles, self.now
        )
        self.ledger = LoadLedger(settings.heartbeat_ttl_seconds, self.learner.host.predict)
        self._audit = Audit(broker, self.ledger, self.now)
        self._moving = Moving(
            state,
            broker,
            settings,
            self.ledger,
            self.learner.host,
            lease,
            self.counters,
            self.now,
            default_queue,
        )
        self._first_knowledge: EncodedKnowledge | None = None
        self._publisher = ViewPublisher(lease, state.keys, self._known_knowledge())
        self._mode = "on"
        self._policy_errors, self._policy_failed_at = 0, float("-inf")
        self._cursor = self._look_back()
        self._assigned = IdleFields(
            state, [state.keys.assigned_count, state.keys.assigned_seconds], MAX_IDLE_QUEUES
        )
        self._beats_at = self._depths_at = self._health_at = self._forget_at = float("-inf")
        self._busy_at = self._since
        self._depths: dict[str, int] = {}
        self._assigned_seconds: dict[str, float] = {}
        self._ledger_time = 0.0
        self._beats = Beats(state, self.counters)
        self._tick_seconds = 0.0
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def now(self) -> float:
        """The clock of ledger and policy: Unix time at the begin of the term, then monotonic."""
        return self._origin + self._monotonic()

    @property
    def is_idle(self) -> bool:
        """Whether nothing has waited or run for a while."""
        return self.now() - self._busy_at > IDLE_AFTER_SECONDS

    def tick(self) -> bool:
        """Do one round; say whether the lease is still ours.

        Raises
        ------
        redis.RedisError
            When Redis does not answer.

        """
        began = self.now()
        keys = self._state.keys
        pipe = self._state.client.pipeline(transaction=False)
        # The time comes first: what a producer reported before it is in what follows.
        pipe.time()
        pipe.get(keys.mode)
        pipe.smembers(keys.drained)
        pipe.hgetall(keys.assigned_count)
        pipe.hgetall(keys.assigned_seconds)
        (seconds, microseconds), mode, drained, counts, sums = pipe.execute()
        redis_time = seconds + microseconds / 1e6
        self._mode = mode_of(mode)
        self._troubles.note("mode", unknown_mode(mode))
        self.ledger.drained = frozenset(drained)
        now = self.now()
        if now >= self._beats_at:
            beats = self._beats.read(now)
            self.ledger.hear(beats, now)
            self._moving.stay(self._beats.nodes)
            self._beats_at = now + BEATS_SECONDS + BEATS_SECONDS_PER_NODE * len(beats)
        self.ledger.expire(now)
        seconds_by_queue = {name: float(value) for name, value in sums.items()}
        if self._read_depths(now):
            self._ledger_time = redis_time
            self._assigned_seconds = seconds_by_queue
        # Events after depths: what has left a queue since then is seen to run, or not at all.
        entries = read_events(self._state, self._cursor, EVENTS_A_TICK)
        self._apply(entries, redis_time, now)
        if entries:
            self._cursor = entries[-1].cursor
        totals = {name: int(value) for name, value in counts.items()}
        self.ledger.count(
            totals,
            seconds_by_queue,
            self._depths,
            now,
        )
        if now >= self._forget_at:
            self._forget_at = now + FORGET_QUEUES_SECONDS
            self._assigned.drop(totals, self.ledger.queue_names, now)
        if self._depths:
            self._look_into_queues(now)
        self._troubles.note("workers", wedged_workers(self.ledger.wedged))
        knowledge = self.learner.host.knowledge or self._first_knowledge
        load = self._move(self.ledger.load(now), totals, knowledge, now)
        if entries or load.running or any(load.waiting_count):
            self._busy_at = now
        self.load = self.learner.load = load
        further = []
        if now >= self._health_at:
            self._health_at = now + HEALTH_SECONDS
            self._tell(now)
            further.append(Write(keys.health, self.health().encode(), HEALTH_TTL_SECONDS))
        is_ours = self._publisher.publish(
            load, self._ledger_time, now, knowledge, self._assigned_seconds, further
        )
        self._tick_seconds += 0.1 * (self.now() - began - self._tick_seconds)
        return is_ours

    def health(self) -> Health:
        """Sum up how the controller is doing."""
        load = self.load
        return Health(
            controller=self._name,
            fence=self._lease.fence,
            active_since=round(self._since, 3),
            policy=self._settings.policy,
            mode=self._mode,
            drained_queues=sorted(self.ledger.drained.intersection(load.names)),
            troubles=self._troubles.now(),
            queues=len(load.names),
            open_queues=len(load.names) - len(load.closed),
            waiting_count=sum(load.waiting_count),
            waiting_seconds=round(sum(load.waiting_seconds), 3),
            running_count=len(load.running),
            lag_seconds=round(self.learner.lag_seconds(self.now()), 3),
            tick_seconds=round(self._tick_seconds, 6),
            counters={**self.counters, **self.learner.counters},
        )

    def _tell(self, now: float) -> None:
        """Note what does not work beside us, and tell of all failures what has been added."""
        self._troubles.note("results", self._broker.trouble)
        errors = self.learner.counters["policy_errors"] + self.counters["policy_errors"]
        if errors > self._policy_errors:
            self._policy_errors, self._policy_failed_at = errors, now
            self._troubles.begin("policy", "The policy fails; see the log of the controller.")
        elif now - self._policy_failed_at > POLICY_WELL_SECONDS:
            self._troubles.end("policy")
        teller = self._troubles.teller
        if counted := teller.untold(self._troubles.totals()):
            pipe = self._state.client.pipeline(transaction=False)
            teller.write(pipe, self._state.keys.counters, counted)
            teller.confirm(counted, pipe.execute(raise_on_error=False))

    def start_learning(self) -> None:
        """Run the learner in a thread of its own; a second call changes nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._learn, name="owl-learner", daemon=True)
            self._thread.start()

    def stop_learning(self) -> None:
        """Commit what is learned, waiting a few seconds at most, and stop the thread."""
        self._stop.set()
        if self._thread is None:
            self.learner.finish()
            return
        self._thread.join(timeout=STOP_SECONDS)

    def _learn(self) -> None:
        while not self._stop.is_set():
            pause = LEARN_IDLE_SECONDS if self.is_idle else LEARN_SECONDS
            try:
                if self.learner.step(self._mode):
                    pause = 0.0
                self._troubles.end("learner")
            except (RedisError, OSError):
                pause = 1.0  # The ticks say so already.
            except Exception:
                if "learner" not in self._troubles.now():
                    log.exception("owl controller: learning failed")
                self._troubles.begin("learner", "Learning failed; see the log.")
                pause = 1.0
            self._stop.wait(pause)
        self.learner.finish()

    def _redis_time(self) -> float:
        reply: Any = self._state.client.time()
        seconds, microseconds = reply
        return float(seconds + microseconds / 1e6)

    def _known_knowledge(self) -> int:
        """Version of the knowledge that is published already; it stays until there is better."""
        text: Any = self._state.client.get(self._state.keys.knowledge)
        known = decode_record(Knowledge, text) if text else None
        if known is not None and known.policy == self._settings.policy:
            return known.version
        # Producers can use what the policy assumes even before the store can be read.
        policy = make_policy(self._settings)
        version = next(versions(self._lease.fence)) - 1  # Below all that the learner gives.
        text = Knowledge(version, policy.name, policy.snapshot()).encode()
        self._first_knowledge = EncodedKnowledge(version, text)
        return 0

    def _look_back(self) -> str:
        """Learn from the latest events what runs; give the cursor behind them."""
        entries = read_last_events(self._state, EVENTS_LOOKED_BACK)
        self._apply(entries, self._since, self.now())
        return entries[-1].cursor if entries else FIRST_CURSOR

    def _apply(self, entries: list[Entry], redis_time: float, now: float) -> None:
        for entry in entries:
            at = now - bounded_seconds(redis_time - entry.at)
            if isinstance(entry.event, Started):
                self.ledger.start(entry.event, at)
            elif isinstance(entry.event, Discarded):
                self.ledger.discard(entry.event, at)
            elif entry.event is not None:
                self.ledger.end(entry.event, at)

    def _look_into_queues(self, now: float) -> None:
        try:
            self._audit.step(now)
        except BrokerError as error:
            self._broker_failed(error)

    def _move(
        self, load: Load, known: Collection[str], knowledge: EncodedKnowledge | None, now: float
    ) -> Load:
        """Move what waits in the wrong place; the load afterwards."""
        try:
            if not self._moving.step(load, known, self._mode, knowledge, now):
                return load
            self._depths_at = now  # They have changed.
        except BrokerError as error:
            self._broker_failed(error)
        return self.ledger.load(now)

    def _read_depths(self, now: float) -> bool:
        """Ask the broker what waits, less often when it is slow to answer.

        False while what it said last is used again: assignments made since are not in it.
        """
        if now < self._depths_at:
            return not self._depths
        try:
            self._depths = self._broker.depths(self.ledger.queue_names)
            self._troubles.end("broker")
            self._depths_at = now + (self.now() - now) * (1.0 / DEPTHS_SHARE - 1.0)
        except BrokerError as error:
            self._broker_failed(error)
            self._depths = {}
        return True

    def _broker_failed(self, error: BrokerError) -> None:
        self.counters["broker_errors"] += 1
        self._troubles.begin("broker", str(error))
        self._depths_at = self.now() + BROKER_RETRY_SECONDS
