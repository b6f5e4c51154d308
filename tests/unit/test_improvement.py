"""What routing is said to have gained, against worlds in which the truth is known."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping
from itertools import product

import pytest

from owl_celery.aggregates import AlgorithmStats, ServiceStats
from owl_celery.overview.improvement import response_ratio, service_ratio

GPUS: Mapping[str, float] = {"K80": 4, "P100": 4, "V100": 4}
SEEDS = range(40)


class World:
    """Task types with known means on each GPU model, and lognormal service times around them."""

    def __init__(self, seed: int, noise: float = 0.5) -> None:
        self.random = random.Random(seed)
        self.noise = noise
        self.types = [f"type-{number}" for number in range(8)]
        self.weights = [self.random.uniform(0.5, 1.5) for _ in self.types]
        self.means: dict[tuple[str, str], float] = {}
        for task_type in self.types:
            base = self.random.lognormvariate(0.0, 0.7)
            for model, speed in (("K80", 1.0), ("P100", 0.6), ("V100", 0.3)):
                self.means[task_type, model] = base * speed ** self.random.uniform(0.0, 1.5)

    def next_type(self) -> str:
        return self.random.choices(self.types, self.weights)[0]

    def serve(self, task_type: str, model: str) -> float:
        mean: float = self.means[task_type, model]
        return mean * self.random.lognormvariate(-(self.noise**2) / 2, self.noise)

    def routed(self, tries: int) -> list[ServiceStats]:
        """Rows after a router that prefers the fastest GPU model has served so many tries."""
        rows = {
            pair: ServiceStats(task_type=pair[0], gpu_model=pair[1])
            for pair in product(self.types, GPUS)
        }
        for _ in range(tries):
            task_type = self.next_type()
            likings = [1.0 / self.means[task_type, model] ** 2 for model in GPUS]
            model = self.random.choices(list(GPUS), likings)[0]
            rows[task_type, model].add(self.serve(task_type, model))
        return list(rows.values())

    def shared_queue_mean(self, tries: int = 10_000) -> float:
        """Mean service time of a queue that all GPUs share, and that is never empty."""
        free = [(0.0, number, model) for number, model in enumerate([*GPUS] * 4)]
        total = 0.0
        for _ in range(tries):
            at, number, model = heapq.heappop(free)
            seconds = self.serve(self.next_type(), model)
            total += seconds
            heapq.heappush(free, (at + seconds, number, model))
        return total / tries

    def routed_mean(self) -> float:
        """Mean service time that this router has in the long run, exactly."""
        total = 0.0
        for task_type, weight in zip(self.types, self.weights, strict=True):
            likings = {model: 1.0 / self.means[task_type, model] ** 2 for model in GPUS}
            share = sum(likings.values())
            total += weight * sum(
                liking / share * self.means[task_type, model] for model, liking in likings.items()
            )
        return total / sum(self.weights)


def test_the_bounds_hold_the_truth_nineteen_times_in_twenty() -> None:
    held = 0
    for seed in SEEDS:
        world = World(seed)
        truth = world.routed_mean() / world.shared_queue_mean()
        found = service_ratio(world.routed(3_000), GPUS)
        assert found is not None
        assert 0.0 < found.low < found.ratio < found.high
        # The mean of the simulated queue is itself known to a percent or so.
        held += 0.985 * found.low <= truth <= 1.015 * found.high
    assert held / len(SEEDS) >= 0.9


def test_more_tries_narrow_the_bounds() -> None:
    few, many = (service_ratio(World(1).routed(count), GPUS) for count in (2_000, 40_000))
    assert few is not None and many is not None
    assert many.high - many.low < 0.4 * (few.high - few.low)
    assert (few.tasks, many.tasks) == (2_000, 40_000)


def test_one_shared_queue_gains_nothing_over_itself() -> None:
    world = World(3)
    rows = {
        pair: ServiceStats(task_type=pair[0], gpu_model=pair[1])
        for pair in product(world.types, GPUS)
    }
    free = [(0.0, number, model) for number, model in enumerate([*GPUS] * 4)]
    for _ in range(20_000):
        at, number, model = heapq.heappop(free)
        task_type = world.next_type()
        seconds = world.serve(task_type, model)
        rows[task_type, model].add(seconds)
        heapq.heappush(free, (at + seconds, number, model))
    found = service_ratio(list(rows.values()), GPUS)
    assert found is not None
    assert found.low <= 1.0 <= found.high
    assert found.sentence.startswith("No difference is sure yet: ")


def test_the_sentence_says_what_is_compared() -> None:
    found = service_ratio(World(4).routed(20_000), GPUS)
    assert found is not None and found.high < 1.0
    change = f"{1 - found.ratio:.0%} below"
    assert found.sentence.startswith(f"Service time per task is {change} what one shared queue")


def rows_of(**counts: int) -> list[ServiceStats]:
    """Two GPU models and one type each, as ``slow`` and ``fast`` tries of 4 s and 1 s."""
    rows = []
    for model, seconds in (("slow", 4.0), ("fast", 1.0)):
        row = ServiceStats(task_type="train", gpu_model=model)
        for number in range(counts[model]):
            row.add(seconds + 0.01 * (number % 3))
        rows.append(row)
    return rows


def test_what_was_not_tried_is_taken_from_the_prediction_and_is_less_sure() -> None:
    gpus = {"slow": 1, "fast": 1}
    predict: Callable[[str, str], float | None] = lambda task_type, gpu_model: 4.0  # noqa: E731
    known = service_ratio(rows_of(slow=50, fast=50), gpus)
    guessed = service_ratio(rows_of(slow=0, fast=50), gpus, predict)
    assert known is not None and guessed is not None
    # All on the fast one, against 1.6 s for the shared queue.
    assert guessed.ratio == pytest.approx(1.0 / 1.6, rel=0.02)
    assert guessed.high / guessed.low > 1.4 > 1.1 > known.high / known.low


@pytest.mark.parametrize(
    ("rows", "gpus"),
    [
        ([], {"slow": 1, "fast": 1}),
        (rows_of(slow=50, fast=50), {}),
        (rows_of(slow=50, fast=50), {"fast": 2}),
        (rows_of(slow=50, fast=50), {"fast": 2, "slow": 0}),
        (rows_of(slow=0, fast=50), {"slow": 1, "fast": 1}),
        (rows_of(slow=0, fast=0), {"slow": 1, "fast": 1}),
    ],
)
def test_nothing_is_claimed_without_a_comparison(
    rows: list[ServiceStats], gpus: dict[str, float]
) -> None:
    assert service_ratio(rows, gpus) is None


def test_types_known_on_one_gpu_model_only_are_left_out() -> None:
    few = ServiceStats(task_type="new", gpu_model="fast", count=20, mean_seconds=9.0)
    many = ServiceStats(task_type="new", gpu_model="fast", count=200, mean_seconds=9.0)
    gpus = {"slow": 1, "fast": 1}
    without = service_ratio(rows_of(slow=50, fast=50), gpus)
    assert service_ratio([*rows_of(slow=50, fast=50), few], gpus) == without
    assert service_ratio([*rows_of(slow=50, fast=50), many], gpus) is None


def responses(algorithm: str, *seconds: float) -> AlgorithmStats:
    return AlgorithmStats(
        algorithm=algorithm,
        responses=len(seconds),
        response_seconds=sum(seconds),
        response_squared=sum(value * value for value in seconds),
    )


def test_responses_are_compared_once_both_have_enough() -> None:
    rng = random.Random(7)
    ours = responses("best", *(rng.expovariate(1.0) for _ in range(400)))
    theirs = responses("celery", *(rng.expovariate(0.5) for _ in range(400)))
    found = response_ratio([ours, theirs], "best")
    assert found is not None
    assert found.low < 0.5 < found.high < 1.0
    assert found.tasks == 800
    assert response_ratio([ours, responses("celery", *[1.0] * 29)], "best") is None
    assert response_ratio([ours], "best") is None
    assert response_ratio([theirs], "celery") is None
    assert response_ratio([responses("best", *[0.0] * 50), theirs], "best") is None
