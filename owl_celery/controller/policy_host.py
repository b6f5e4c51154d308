"""Keep a policy: its mistakes are counted, and what it knows is encoded for the producers."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from owl_celery.aggregates import QValue
from owl_celery.controller.load import Load
from owl_celery.controller.q_entries import QEntries
from owl_celery.controller.view import EncodedKnowledge, versions
from owl_celery.errors import PriorError
from owl_celery.fleet import Fleet, WaitingTasks
from owl_celery.policies.base import Policy
from owl_celery.prior_file import decode_prior
from owl_celery.records import encode_knowledge
from owl_celery.types import TaskView
from owl_celery.wire import dumps

log = logging.getLogger(__name__)

TICK_SECONDS: Final = 2.0
ENCODE_SECONDS: Final = 0.1
ENCODE_SHARE: Final = 0.1
STEAL_LOCK_SECONDS: Final = 0.01
MAX_Q_VALUES: Final = 100_000
"""Q values that the policy is asked for."""


class PolicyHost:
    """Calls the verbs of the learning policy other than ``learn_one``.

    Whatever the policy raises is counted, and the first of each verb is logged.

    Parameters
    ----------
    policy
        Learns; used under ``lock`` only.
    fence
        Fencing number, from which the versions of the knowledge grow.
    counters
        Where ``policy_errors`` are counted.
    clock
        The policy's clock, seconds.

    Attributes
    ----------
    lock
        Held while the policy is used: the learner's thread learns, the controller's predicts.
    knowledge
        The latest encoded knowledge; None before the first.

    """

    def __init__(
        self, policy: Policy, fence: int, counters: Counter[str], clock: Callable[[], float]
    ) -> None:
        self.policy = policy
        self.lock = threading.Lock()
        self.knowledge: EncodedKnowledge | None = None
        self._versions = versions(fence)
        self._counters = counters
        self._clock = clock
        self._q_entries = QEntries()
        self._logged: set[str] = set()
        self._is_changed = False
        self._encoded = ""
        self._tick_at = clock() + TICK_SECONDS
        self._encode_at = float("-inf")

    def changed(self) -> None:
        """Note that the policy has learned: its knowledge is to be encoded anew."""
        self._is_changed = True

    def predict_task(self, task: TaskView, gpu_model: str) -> float | None:
        """Service time that the policy expects; None when unknown, or when it is busy."""
        if not self.lock.acquire(blocking=False):
            return None
        try:
            return self.policy.predict_seconds(task, gpu_model)
        except Exception:
            self.count_error("predict")
            return None
        finally:
            self.lock.release()

    def predict(self, task_type: str, gpu_model: str) -> float | None:
        """The same for a task of which only the type is known."""
        return self.predict_task(TaskView(task_type), gpu_model)

    @property
    def steals(self) -> bool:
        """Whether the policy moves tasks at all."""
        return type(self.policy).steal is not Policy.steal

    def steal(self, row: int, waiting: WaitingTasks, fleet: Fleet, now: float) -> int | None:
        """Waiting task that an idle queue should take; None for none.

        Also None before anything is known, and when the policy is busy for more than a moment.
        """
        if not self.lock.acquire(timeout=STEAL_LOCK_SECONDS):
            return None
        try:
            return self.policy.steal(row, waiting, fleet, now) if self.policy.ready else None
        except Exception:
            self.count_error("steal")
            return None
        finally:
            self.lock.release()

    def arrived(self, arrivals: Sequence[tuple[str, float]]) -> None:
        """Tell the policy of arrivals: task type and time of each."""
        with self.lock:
            for task_type, at in arrivals:
                try:
                    self.policy.arrived(TaskView(task_type), at)
                except Exception:
                    self.count_error("arrived")
        self._is_changed = self._is_changed or bool(arrivals)

    def tick(self, load: Load, now: float) -> None:
        """Let the policy plan every few seconds, and encode what it knows when that has changed."""
        if now >= self._tick_at and load.names:
            self._tick_at = now + TICK_SECONDS
            try:
                with self.lock:
                    self.policy.tick(load.fleet(), now)
            except Exception:
                self.count_error("tick")
            self._is_changed = True
        if self._is_changed and now >= self._encode_at:
            self._is_changed = False
            began = self._clock()
            self._encode()
            ended = self._clock()
            # Large knowledge is encoded less often.
            self._encode_at = ended + max(ENCODE_SECONDS, (ended - began) / ENCODE_SHARE)

    def import_prior(self, document: str) -> str:
        """Let the policy begin from what another site has learned; says in a sentence what it took.

        What cannot be used is said, too, and changes nothing.
        """
        try:
            prior = decode_prior(document)
            with self.lock:
                taken = self.policy.import_prior(prior)
        except PriorError as error:
            return f"not taken. {error}"
        except Exception:
            self.count_error("import_prior")
            return f"not taken: policy {self.policy.name} failed; see the controller's log."
        if taken is None:
            return f"not taken: policy {self.policy.name} learns nothing that could be imported."
        self._is_changed = True
        left = f"; {taken.left} numbers left, known here already" if taken.left else ""
        return (
            f"policy {self.policy.name} took {taken.service_times} service times, "
            f"{taken.failure_rates} failure rates, {taken.memory_needs} memory needs and "
            f"{taken.load_times} load times{left}."
        )

    def q_values(self, load: Load, now: float) -> list[QValue]:
        """Entries of the policy's Q table that have changed since they were last asked for."""
        if not load.names:
            return []
        fleet = load.fleet()
        try:
            with self.lock:
                table = self.policy.q_values(fleet, now, MAX_Q_VALUES)
            return [] if table is None else self._q_entries.changed(table, now)
        except Exception:
            self.count_error("q_values")
            return []

    def forget_q_values(self) -> None:
        """Give all entries the next time: what was given may not have been written."""
        self._q_entries.forget()

    def state(self) -> Mapping[str, Any] | None:
        """What to save of the policy; None when it cannot tell."""
        try:
            with self.lock:
                return self.policy.state()
        except Exception:
            self.count_error("state")
            return None

    def count_error(self, verb: str) -> None:
        """Count a mistake of the policy; called while it is handled, since it may be logged."""
        self._counters["policy_errors"] += 1
        if verb not in self._logged:
            self._logged.add(verb)
            log.exception("owl controller: policy %s failed at %s", self.policy.name, verb)

    def _encode(self) -> None:
        try:
            with self.lock:
                snapshot = dict(self.policy.snapshot())
            encoded = dumps(snapshot)
            if encoded != self._encoded:
                version = next(self._versions)
                text = encode_knowledge(version, self.policy.name, encoded)
                self._encoded, self.knowledge = encoded, EncodedKnowledge(version, text)
        except Exception:
            self.count_error("snapshot")
