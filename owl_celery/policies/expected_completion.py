"""The queue where the task is predicted to finish first, by learned service times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import numpy as np

from owl_celery.fleet import Fleet, Floats, WaitingTasks
from owl_celery.policies.base import Policy
from owl_celery.policies.beliefs import Beliefs, Layout, bounded, load_seconds, sized
from owl_celery.policies.eligible import open_mask, pick_least
from owl_celery.policies.failures import CLOSED_PROBABILITY, success_ratio
from owl_celery.policies.learner import Learner
from owl_celery.policies.q_table import QTable
from owl_celery.policies.randomness import normals, restore_random, state_of
from owl_celery.policies.unseen import levelled
from owl_celery.policies.warm import MAX_QUEUES, Occupancy
from owl_celery.prior import Prior, TakenPrior
from owl_celery.types import Decision, Outcome, TaskView

if TYPE_CHECKING:
    from owl_celery.settings import Settings

NOISE_PER_RATE: Final = 1.5
"""Standard deviation of the log of an unsampled service time, for each 1 of exploration rate."""

LEAST_NOISE: Final = 0.02
"""Noise narrower than this changes no choice worth changing, and is not drawn."""

MOVE_RESERVE: Final = 1.1
"""A waiting task moves to an idle queue only if it gains by so much more than the service there."""

MOVE_RELIEF: Final = 0.1
"""Share of its service time that each task behind it is reckoned to gain."""


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
        self._occupancy: Occupancy | None = None
        self._sent_models: dict[str, str] = {}

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
        layout = self._laid_out(fleet)
        columns = layout.of_type(task.task_type)
        is_open = None
        if task.tried or task.exceeded_bytes or not (fleet.is_all_open and columns.suits_all):
            is_open = layout.sensible_mask(columns, fleet, open_mask(task, fleet))
        service = sized(columns, task.size)
        residual, wait = load_seconds(fleet, now)
        if task.model is None:
            cost = self._cost(service, layout, fleet, residual)
        else:
            switch, eviction = self._occupied(fleet).costs(task.model, self._beliefs.warm)
            service = bounded(service + switch)
            cost = self._cost(service, layout, fleet, residual) + eviction
        wait_score = wait
        if fleet.unseen_seconds is not None:
            wait_score = levelled(wait, fleet, self._random)
        if columns.success is not None:
            wait_score, cost = wait_score / columns.success, cost / columns.success
        greedy = wait_score + cost
        if is_open is not None:
            greedy = np.where(is_open, greedy, np.inf)
        explored, propensity = False, None
        sigma = self.sigma
        if sigma * columns.doubt > LEAST_NOISE or layout.caution is not None:
            width = sigma * columns.uncertainty
            noise = np.exp(width * normals(self._random, len(fleet)))
            noisy = wait_score + cost * noise
            if is_open is not None:
                noisy = np.where(is_open, noisy, np.inf)
            # Noise leaves no ties.
            row = int(noisy.argmin())
            if layout.caution is not None:
                # To send work to a GPU because it may have recovered is to explore, too.
                greedy = wait_score + cost * layout.caution
                if is_open is not None:
                    greedy = np.where(is_open, greedy, np.inf)
            explored = greedy.item(row) > greedy.item(greedy.argmin())
        else:
            row, ties = pick_least(greedy, self._random)
            propensity = 1.0 / ties
        if task.model is not None:
            self._note_model(fleet, row, task.model)
        return Decision(
            queue=fleet.names[row],
            gpu_model=fleet.gpu_model(row),
            algorithm=self.name,
            wait_seconds=wait.item(row),
            service_seconds=service.item(row),
            explored=explored,
            propensity=propensity,
        )

    def steal(self, row: int, waiting: WaitingTasks, fleet: Fleet, now: float) -> int | None:
        """Index of the waiting task that gains most by moving to the idle queue ``row``.

        Among queues that are all alike it is the one that waits longest of those that gain.
        """
        if not len(waiting) or not fleet.is_open[row]:
            return None
        layout = self._laid_out(fleet)
        here = layout.seconds_on(row, waiting.tasks)
        there = waiting.service_seconds
        residual, _ = load_seconds(fleet, now)
        base, slope = self._pressure(layout, fleet, residual)
        price_here = base[row] + slope[row] * here
        price_there = base[waiting.rows] + slope[waiting.rows] * there
        gain = (
            waiting.ahead_seconds / fleet.concurrency[waiting.rows]
            + there
            - MOVE_RESERVE * here
            + MOVE_RELIEF * there * waiting.behind_count
            + price_there * there
            - price_here * here
        )
        gain[waiting.rows == row] = -np.inf
        model = fleet.gpu_model(row)
        for index, task in enumerate(waiting.tasks):
            is_small = fleet.free_memory_bytes[row] <= task.exceeded_bytes
            if (
                model in task.tried
                or (task.exceeded_bytes and is_small)
                or (gain[index] > 0.0 and not layout.suits(row, task, fleet))
            ):
                gain[index] = -np.inf
        best = int(gain.argmax())
        if not gain[best] > 0.0:
            return None
        if len(fleet.models) == 1 and not self._beliefs.speeds:
            gaining = np.flatnonzero(gain > 0.0)
            best = int(gaining[waiting.published_at[gaining].argmin()])
        return best

    def _cost(self, service: Floats, layout: Layout, fleet: Fleet, residual: Floats) -> Floats:
        """What a task costs beside its wait: its own service here, and nothing for others."""
        return service

    def _pressure(self, layout: Layout, fleet: Fleet, residual: Floats) -> tuple[Floats, Floats]:
        """Future cost of one more second on each queue, ``base + slope * seconds``; none here."""
        zero = np.zeros(len(fleet))
        return zero, zero

    def _laid_out(self, fleet: Fleet) -> Layout:
        # Several threads of a producer may choose at once: read and write the attribute once.
        layout, beliefs = self._layout, self._beliefs
        if layout is None or not layout.fits(beliefs, fleet):
            layout = self._layout = Layout(beliefs, fleet)
        return layout

    def _occupied(self, fleet: Fleet) -> Occupancy:
        occupancy = self._occupancy
        if occupancy is None or occupancy.fleet is not fleet:
            last = {**self._beliefs.warm.loaded(), **self._sent_models}
            occupancy = self._occupancy = Occupancy(fleet, last)
        return occupancy

    def _note_model(self, fleet: Fleet, row: int, model: str) -> None:
        self._occupied(fleet).sent(row, model)
        self._sent_models[fleet.names[row]] = model
        if len(self._sent_models) > MAX_QUEUES:
            self._sent_models.clear()

    def predict_seconds(self, task: TaskView, gpu_model: str) -> float | None:
        # Known from the first completion on, also where prices are still to come.
        return self._beliefs.predict_seconds(task, gpu_model) if self._beliefs.completed else None

    def take_prior(self, seconds: Mapping[str, Mapping[str, float]], count: float = 2.0) -> None:
        """Begin from service times by task type and GPU model that are worth ``count`` samples.

        Raises
        ------
        ValueError
            When a service time makes no sense; nothing is changed then.

        """
        self._learner.take_prior(seconds, count)

    def export_prior(self) -> Prior:
        return self._learner.export_prior()

    def import_prior(self, prior: Prior) -> TakenPrior:
        return self._learner.import_prior(prior)

    def q_values(self, fleet: Fleet, now: float, most: int) -> QTable | None:
        """Q values of the most frequent types on every queue, for tasks of their mean size."""
        beliefs = self._learner.beliefs
        names = self._listed_types(most // max(len(fleet), 1))
        if not names or not beliefs.completed:
            return None
        layout = Layout(beliefs, fleet)
        rows = np.array([beliefs.types[name] for name in names], dtype=np.int64)
        cells = np.ix_(rows, layout.columns)
        sizes = self._learner.mean_sizes(rows)[:, None]
        service = bounded(sizes * beliefs.service[cells] * layout.speeds)
        success = success_ratio(beliefs.failure[cells], layout.failing)
        # NaN, unknown, compares false and leaves the queue open.
        is_short = fleet.free_memory_bytes < beliefs.needed[cells]
        is_closed = is_short | (success <= 1.0 - CLOSED_PROBABILITY)

        def seconds(load: Fleet) -> Floats:
            residual, wait = load_seconds(load, now)
            return (wait + self._cost(service, layout, load, residual)) / success

        return QTable(
            names,
            fleet.names,
            [fleet.gpu_model(row) for row in range(len(fleet))],
            seconds(fleet),
            seconds(fleet.emptied()),
            beliefs.count[cells].astype(np.int64),
            fleet.is_open & ~is_closed,
        )

    def _listed_types(self, most: int) -> list[str]:
        """The types that the readable Q table shows: here those seen last."""
        return list(self._learner.beliefs.types)[-most:] if most > 0 else []

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
        before, beliefs = self._beliefs.warm.loaded(), Beliefs.decode(snapshot)
        for queue, model in beliefs.warm.loaded().items():
            if before.get(queue) != model:
                # Somebody has run another model there since: that is newer than what we sent.
                self._sent_models.pop(queue, None)
        self._beliefs, self._occupancy = beliefs, None

    def state(self) -> Mapping[str, Any]:
        return state_of(
            self.name,
            self._random,
            learner=self._learner.state(),
            sent_models=dict(self._sent_models),
        )

    def restore(self, state: Mapping[str, Any]) -> None:
        restore_random(self.name, state, self._random)
        self._learner.restore(state.get("learner", {}))
        self._beliefs = self._learner.beliefs
        self._sent_models = {str(k): str(v) for k, v in state.get("sent_models", {}).items()}
        self._layout = self._occupancy = None
