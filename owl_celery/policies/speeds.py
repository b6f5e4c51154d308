"""Speed of each single GPU against others of its model: throttling, sharing, faults.

Service time divided by its expectation is 1 on average. A two-sided CUSUM over its standardised
logarithm notices when one queue leaves the others; a dead band keeps noise from being believed;
and a factor that is not confirmed by new samples returns to 1, so that the GPU is tried again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from owl_celery.errors import StateError

MEMORY: Final = 30
"""Samples over which the factor of a queue is taken."""

SLACK: Final = 1.0
THRESHOLD: Final = 8.0
CLIP: Final = 4.0
"""Of the CUSUM, in standard deviations."""

DEAD_BAND: Final = 0.12
DEAD_BAND_DEVIATIONS: Final = 3.0
"""Least |log factor| that is believed: the larger of this and so many standard errors."""

NOISE_MEMORY: Final = 1000
NOISE_FIRST: Final = 30
"""Samples over which the noise is taken, and how many the CUSUM waits for."""

RELAXATION_SERVICES: Final = 60.0
"""Mean service times after which an unconfirmed factor has moved by 63 % towards 1."""

MAX_QUEUES: Final = 10_000


@dataclass(slots=True)
class _Queue:
    gpu_model: str
    count: float = 0.0
    mean: float = 1.0
    sampled_at: float = 0.0
    up: float = 0.0
    up_count: int = 0
    up_sum: float = 0.0
    down: float = 0.0
    down_count: int = 0
    down_sum: float = 0.0
    factor: float = 1.0


class SpeedFactors:
    """Speed factor of each queue: 2 means that everything takes twice as long as on its like.

    Attributes
    ----------
    version
        Changes whenever a factor does.

    """

    def __init__(self) -> None:
        self.version = 0
        self._queues: dict[str, _Queue] = {}
        self._flagged: dict[str, _Queue] = {}
        self._noise_count = 0
        self._noise_mean = 0.0
        self._noise_variance = 0.1

    @property
    def noise_variance(self) -> float:
        """Variance of the logarithm of service times of one type on GPUs of one model."""
        return self._noise_variance

    def factors(self) -> dict[str, float]:
        """Factor of each queue whose factor is not 1."""
        return {name: queue.factor for name, queue in self._flagged.items()}

    def confirmed(self) -> dict[str, float]:
        """Each of these factors as last measured, before it began to return to 1."""
        return {name: queue.mean for name, queue in self._flagged.items()}

    def factor(self, name: str) -> float:
        """Factor of one queue; 1 when nothing is known against it."""
        queue = self._flagged.get(name)
        return 1.0 if queue is None else queue.factor

    def is_most_of_model(self, gpu_model: str) -> bool:
        """Whether more than half of a GPU model's queues are flagged: then the model changed."""
        flagged = sum(queue.gpu_model == gpu_model for queue in self._flagged.values())
        if not flagged:
            return False
        return 2 * flagged > sum(queue.gpu_model == gpu_model for queue in self._queues.values())

    def learn_one(
        self, name: str, gpu_model: str, ratio: float, mean_seconds: float, now: float
    ) -> None:
        """Learn one ratio of a service time to its expectation on a GPU of normal speed.

        Parameters
        ----------
        mean_seconds
            Mean service time: the unit in which factors relax.

        """
        queue = self._queues.pop(name, None)
        if queue is None or queue.gpu_model != gpu_model:
            if len(self._queues) >= MAX_QUEUES:
                self._forget(next(iter(self._queues)))
            self._flagged.pop(name, None)
            queue = _Queue(gpu_model, sampled_at=now)
        self._queues[name] = queue
        ratio = min(max(ratio, 1e-6), 1e6)
        if queue.factor != 1.0:
            self.version += 1
            relaxed = self._relaxed(queue, mean_seconds, now)
            queue.factor = relaxed if abs(math.log(relaxed)) > DEAD_BAND else 1.0
        log_ratio = math.log(ratio / queue.factor)
        if queue.factor == 1.0:
            self._learn_noise(log_ratio)
        # What is older than the last samples counts less the longer the queue stood idle.
        faded = math.exp(-(now - queue.sampled_at) / (RELAXATION_SERVICES * mean_seconds))
        queue.sampled_at = now
        queue.count = min(queue.count * faded + 1.0, MEMORY)
        queue.mean += (ratio - queue.mean) / queue.count
        if self._noise_count >= NOISE_FIRST:
            self._watch(queue, ratio, log_ratio)
        self._settle(name, queue, queue.mean)

    def relax(self, mean_seconds: float, now: float) -> None:
        """Let every unconfirmed factor move towards 1."""
        for name, queue in list(self._flagged.items()):
            self._settle(name, queue, self._relaxed(queue, mean_seconds, now))

    def _relaxed(self, queue: _Queue, mean_seconds: float, now: float) -> float:
        faded = math.exp(-max(now - queue.sampled_at, 0.0) / (RELAXATION_SERVICES * mean_seconds))
        return math.exp(math.log(queue.mean) * faded)

    def _learn_noise(self, log_ratio: float) -> None:
        self._noise_count = min(self._noise_count + 1, NOISE_MEMORY)
        step = 1.0 / (self._noise_count + 1)
        difference = log_ratio - self._noise_mean
        self._noise_mean += step * difference
        self._noise_variance += step * (difference * difference - self._noise_variance)

    def _watch(self, queue: _Queue, ratio: float, log_ratio: float) -> None:
        """Two-sided CUSUM; on alarm the mean restarts from the samples since it was last 0."""
        deviation = math.sqrt(max(self._noise_variance, 1e-4))
        score = min(max((log_ratio - self._noise_mean) / deviation, -CLIP), CLIP)
        queue.up = max(0.0, queue.up + score - SLACK)
        queue.up_count, queue.up_sum = (
            (queue.up_count + 1, queue.up_sum + ratio) if queue.up else (0, 0.0)
        )
        queue.down = max(0.0, queue.down - score - SLACK)
        queue.down_count, queue.down_sum = (
            (queue.down_count + 1, queue.down_sum + ratio) if queue.down else (0, 0.0)
        )
        if queue.up > THRESHOLD:
            queue.count, queue.mean = min(queue.up_count, MEMORY), queue.up_sum / queue.up_count
        elif queue.down > THRESHOLD:
            queue.count = min(queue.down_count, MEMORY)
            queue.mean = queue.down_sum / queue.down_count
        else:
            return
        queue.up = queue.down = queue.up_sum = queue.down_sum = 0.0
        queue.up_count = queue.down_count = 0

    def _settle(self, name: str, queue: _Queue, factor: float) -> None:
        """Believe a factor outside the dead band, else 1."""
        cv = math.sqrt(math.expm1(min(self._noise_variance, 4.0)))
        band = max(DEAD_BAND, DEAD_BAND_DEVIATIONS * cv / math.sqrt(max(queue.count, 1.0)))
        # An open question before there are samples to tell noise from change.
        is_believed = self._noise_count >= NOISE_FIRST and abs(math.log(factor)) > band
        settled = factor if is_believed else 1.0
        if is_believed:
            self._flagged[name] = queue
        else:
            self._flagged.pop(name, None)
        if settled != queue.factor:
            queue.factor = settled
            self.version += 1

    def _forget(self, name: str) -> None:
        del self._queues[name]
        if self._flagged.pop(name, None) is not None:
            self.version += 1

    def state(self) -> dict[str, Any]:
        """Everything, exactly, as JSON values."""
        return {
            "queues": {name: asdict(queue) for name, queue in self._queues.items()},
            "flagged": list(self._flagged),
            "noise": [self._noise_count, self._noise_mean, self._noise_variance],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state()``.

        Raises
        ------
        StateError
            When it is damaged.

        """
        try:
            queues = {str(name): _Queue(**queue) for name, queue in state["queues"].items()}
            flagged = {name: queues[name] for name in state["flagged"]}
            count, mean, variance = state["noise"]
            noise = int(count), float(mean), float(variance)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError("The saved speed factors are damaged.") from error
        self._queues, self._flagged = queues, flagged
        self._noise_count, self._noise_mean, self._noise_variance = noise
        self.version += 1
