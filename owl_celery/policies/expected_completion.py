"""The queue where the task is predicted to finish first, by learned service times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import numpy as np

from owl_celery.fleet import Bools, Fleet, Floats
from owl_celery.policies.base import Policy
from owl_celery.policies.beliefs import Beliefs, Layout
from owl_celery.policies.eligible import open_mask, pick_least
from owl_celery.policies.learner import Learner
from owl_celery.policies.randomness import restore_random, state_of
from owl_celery.types import Decision, Outcome, TaskView

if TYPE_CHECKING:
    from owl_celery.settings import Settings

NOISE_PER_RATE: Final = 1.5
"""Standard deviation of the log of an unsampled service time, for each 1 of exploration rate."""

MAX_WAIT_SECONDS: Final = 1e12


class ExpectedCompletion(Policy):
    """Send each task where wait and service together are predicted to be shortest.

    Service times are learned by task type and GPU model (``estimates``), corrected by the speed of
    the single GPU (``speeds``), and divided by the chance of success (``failures``). The only
    exploration is noise on service times that few samples support.

    Parameters
    ----------
    exploration_rate
        Width of the noise, 0-1.
    enable_reinforcement_learning
        False switches the noise off.
    max_types
        Task types remembered; the one seen longest ago is forgotten first.
    seed
        Seed of the noise and of the choice among equals.

    Examples
    --------
    >>> policy = ExpectedCompletion(seed=1)
    >>> fleet = Fleet(["gpu.a.0", "gpu.a.1"], ["V100", "V100"])
    >>> fleet.waiting_count[0], fleet.waiting_seconds[0] = 1, 9.0
    >>> policy.choose(TaskView("train"), fleet, now=0.0).queue
    'gpu.a.1'

    """

    name: ClassVar[str] = "expected_completion"
    fallback: ClassVar[str | None] = "shortest_queue"

    def __init__(
        self,
        exploration_rate: float = 0.2,
        enable_reinforcement_learning: bool = True,
        max_types: int = 10_000,
        seed: int | None = None,
    ) -> None:
        self.exploration_rate = exploration_rate
        self.enable_reinforcement_learning = enable_reinforcement_learning
        self.max_types = max_types
        self.seed = seed
        self._random = np.random.default_rng(seed)
        self._learner = Learner(max_types)
        self._beliefs = self._learner.beliefs
        self._layout: Layout | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(
            exploration_rate=settings.exploration_rate,
            enable_reinforcement_learning=settings.enable_reinforcement_learning,
            seed=settings.seed,
        )

    @property
    def ready(self) -> bool:
        return self._beliefs.completed > 0

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise on the log of a service time without samples."""
        return NOISE_PER_RATE * self.exploration_rate * self.enable_reinforcement_learning

    @property
    def refused_count(self) -> int:
        """Outcomes refused because a number in them made no sense."""
        return self._learner.refused_count

    @property
    def learner(self) -> Learner:
        """What was learned here, for reports; empty in an object that only chooses."""
        return self._learner

    def choose(self, task: TaskView, fleet: Fleet, now: float) -> Decision:
        is_open = open_mask(task, fleet)
        layout = self._laid_out(fleet)
        is_open = layout.sensible_mask(task, fleet, is_open)
        service = layout.service_seconds(task)
        wait = np.minimum(fleet.wait_seconds(now), MAX_WAIT_SECONDS)
        cost = self._cost(service, layout, fleet, now)
        chance = layout.success_ratio(task)
        greedy = self._masked((wait + cost) / chance, is_open)
        explored, propensity = False, None
        if self.sigma > 0.0:
            width = self.sigma / np.sqrt(layout.sample_count(task) + 1.0)
            noise = np.exp(width * self._random.standard_normal(len(fleet)))
            row, _ = pick_least(self._masked((wait + cost * noise) / chance, is_open), self._random)
            explored = bool(greedy[row] > greedy.min())
        else:
            row, ties = pick_least(greedy, self._random)
            propensity = 1.0 / ties
        return Decision(
            queue=fleet.names[row],
            gpu_model=fleet.gpu_model(row),
            algorithm=self.name,
            wait_seconds=float(wait[row]),
            service_seconds=float(service[row]),
            explored=explored,
            propensity=propensity,
        )

    def _cost(self, service: Floats, layout: Layout, fleet: Fleet, now: float) -> Floats:
        """What a task costs beside its wait; its own service time, and nothing for others here."""
        return service

    @staticmethod
    def _masked(scores: Floats, is_open: Bools) -> Floats:
        return scores if is_open.all() else np.where(is_open, scores, np.inf)

    def _laid_out(self, fleet: Fleet) -> Layout:
        # Several threads of a producer may choose at once: read and write the attribute once.
        layout, beliefs = self._layout, self._beliefs
        if layout is None or not layout.fits(beliefs, fleet):
            layout = self._layout = Layout(beliefs, fleet)
        return layout

    def predict_seconds(self, task: TaskView, gpu_model: str) -> float | None:
        return self._beliefs.predict_seconds(task, gpu_model) if self.ready else None

    def learn_one(self, outcome: Outcome, now: float) -> None:
        self._learner.learn_one(outcome, now)

    def tick(self, fleet: Fleet, now: float) -> None:
        self._learner.tick(fleet, now)

    def snapshot(self) -> Mapping[str, Any]:
        return {"sigma": self.sigma, **self._learner.beliefs.encode()}

    def apply_snapshot(self, snapshot: Mapping[str, Any]) -> None:
        """Choose from now on by this snapshot.

        Raises
        ------
        StateError
            When it is damaged; the snapshot before stays in use.

        """
        self._beliefs = Beliefs.decode(snapshot)

    def state(self) -> Mapping[str, Any]:
        return state_of(self.name, self._random, learner=self._learner.state())

    def restore(self, state: Mapping[str, Any]) -> None:
        restore_random(self.name, state, self._random)
        self._learner.restore(state.get("learner", {}))
        self._beliefs = self._learner.beliefs
        self._layout = None
