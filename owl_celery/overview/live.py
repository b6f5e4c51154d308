"""What Redis tells of the present: health, load, knowledge, heartbeats, counters."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from redis.exceptions import RedisError

from owl_celery.breaker import Breaker
from owl_celery.controller.health import Health
from owl_celery.counters import Counters
from owl_celery.errors import OwlError
from owl_celery.overview.values import KnowledgeNow
from owl_celery.policies import make_policy
from owl_celery.policies.base import Policy
from owl_celery.policies.beliefs import Beliefs
from owl_celery.records import FleetRecord, Knowledge, View, decode_record
from owl_celery.redis_state import RedisState
from owl_celery.redis_trouble import trouble_of
from owl_celery.settings import Settings
from owl_celery.wire import Heartbeat, mode_of, read_checked, unknown_mode

log = logging.getLogger(__name__)

KNOWLEDGE_SECONDS: Final = 2.0
BEATS_SECONDS: Final = 1.0
MAX_NODES: Final = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """What Redis said last.

    Parameters
    ----------
    trouble
        Why Redis could not be read, in a sentence; the rest is what it said before.
    redis_time
        Clock of Redis, Unix seconds; 0 before its first answer.
    controller
        What the active controller says of itself; None when none is active.
    view, fleet
        Load of the queues, and the queues; None without them, or when they do not fit together.
    heartbeats
        Of live workers, by node.
    mode_trouble
        What is wrong with the mode in Redis, in a sentence; empty when nothing is.
    drained
        Queues that an operator has drained.

    """

    trouble: str = ""
    redis_time: float = 0.0
    mode: str = "on"
    mode_trouble: str = ""
    controller: Health | None = None
    view: View | None = None
    fleet: FleetRecord | None = None
    heartbeats: Mapping[str, Heartbeat] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    drained: frozenset[str] = frozenset()
    knowledge: KnowledgeNow = field(default_factory=KnowledgeNow)


class LiveReader:
    """Reads Redis; what is large or costly to decode is read again only when it has changed.

    Used by one thread at a time.

    Parameters
    ----------
    state
        Where to read.
    settings
        With which policies are made.
    clock
        Monotonic seconds.

    Attributes
    ----------
    redis
        How often and for how long Redis could not be read.

    """

    def __init__(
        self, state: RedisState, settings: Settings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._state = state
        self._settings = settings
        self._clock = clock
        self._live = Live()
        self._beats_at = self._knowledge_at = float("-inf")
        self._beat_texts: dict[str, tuple[str, Heartbeat]] = {}
        self._unreadable: set[str] = set()
        self.redis = Breaker(
            "serve",
            "redis",
            "owl: the load cannot be shown: {reason}",
            "owl: the load can be shown again",
            level=logging.INFO,
            logger=log,
            clock=clock,
        )

    def read(self) -> Live:
        """Read what there is; never raises for a Redis that is away."""
        try:
            self._live = self._read()
            self.redis.works()
        except (RedisError, OSError) as error:
            last, trouble = self._live, trouble_of(error)
            self.redis.fails(trouble)
            self._live = Live(
                trouble=trouble,
                redis_time=last.redis_time,
                mode=last.mode,
                knowledge=last.knowledge,
            )
        return self._live

    def _read(self) -> Live:
        keys, last, now = self._state.keys, self._live, self._clock()
        pipe = self._state.client.pipeline(transaction=False)
        pipe.time()
        pipe.mget([keys.health, keys.view, keys.mode])
        pipe.hgetall(keys.counters)
        pipe.smembers(keys.nodes)
        pipe.smembers(keys.drained)
        (seconds, microseconds), texts, counters, nodes, drained = pipe.execute()
        health, view_text, mode = texts
        view = decode_record(View, view_text) if view_text else None
        fleet, knowledge = last.fleet, last.knowledge
        if view is not None and (fleet is None or fleet.version != view.fleet_version):
            fleet = self._get(FleetRecord, keys.fleet)
        if fleet is None or view is None or fleet.version != view.fleet_version:
            view = fleet = None
        if now - self._knowledge_at >= KNOWLEDGE_SECONDS and (
            view is None or view.knowledge_version != knowledge.version
        ):
            self._knowledge_at = now
            knowledge = self._understand(self._get(Knowledge, keys.knowledge), knowledge)
        return Live(
            redis_time=seconds + microseconds / 1e6,
            mode=mode_of(mode),
            mode_trouble=unknown_mode(mode),
            controller=read_checked(Health, health) if health else None,
            view=view,
            fleet=fleet,
            heartbeats=self._read_beats(sorted(nodes)[:MAX_NODES], now),
            counters=Counters.read(counters),
            drained=frozenset(drained),
            knowledge=knowledge,
        )

    def _get(self, kind: Any, key: str) -> Any:
        text = self._state.client.get(key)
        return decode_record(kind, str(text)) if text else None

    def _read_beats(self, nodes: list[str], now: float) -> Mapping[str, Heartbeat]:
        if now - self._beats_at < BEATS_SECONDS and not self._live.trouble:
            return self._live.heartbeats
        texts: Any = (
            self._state.client.mget([self._state.keys.heartbeat(node) for node in nodes])
            if nodes
            else []
        )
        self._beats_at, known = now, self._beat_texts
        self._beat_texts = {}
        for node, text in zip(nodes, texts, strict=True):
            if not text:
                continue
            before, beat = known.get(node, ("", None))
            if text != before:
                beat = Heartbeat.decode(text)
            if beat is not None and beat.node == node:
                self._beat_texts[node] = text, beat
        return {node: beat for node, (_, beat) in self._beat_texts.items()}

    def _understand(self, record: Knowledge | None, known: KnowledgeNow) -> KnowledgeNow:
        """Make a policy of what is published."""
        if record is None:
            return KnowledgeNow()
        if record.version == known.version:
            return known
        return KnowledgeNow(
            record.version, record.policy, self._policy_of(record), _beliefs_of(record)
        )

    def _policy_of(self, record: Knowledge) -> Policy | None:
        settings = self._settings.model_copy(update={"policy": record.policy})
        try:
            policy = make_policy(settings)
            policy.apply_snapshot(record.snapshot)
        except Exception as error:
            # A policy that is not installed here, or one of a newer release.
            if record.policy not in self._unreadable:
                self._unreadable.add(record.policy)
                log.warning("owl: what policy %s knows cannot be read: %s", record.policy, error)
            return None
        return policy


def _beliefs_of(record: Knowledge) -> Beliefs | None:
    try:
        return Beliefs.decode(record.snapshot)
    except OwlError:
        return None
