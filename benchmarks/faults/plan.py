"""What a cluster is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Plan:
    """What a cluster is made of; faults with equal plans share one.

    Parameters
    ----------
    workers, controllers
        How many processes; each worker serves a virtual GPU of another model.
    broker
        ``redis`` or ``rabbitmq``; the state is in Redis in any case.
    proxied
        ``broker`` or ``state``: what is reached through a proxy.
    database
        ``sqlite``, ``sqlite on a disk`` of its own, or ``postgres``.
    environment
        Of workers and controllers.
    settings
        Of the producer's ``install``.
    metrics
        Whether the controllers export metrics.
    nvml
        Whether workers have GPUs that are read by NVML, which ``fakes/pynvml.py`` plays; else
        their readings are made up.
    clock
        Whether the first worker looks at a clock that can be shifted.

    """

    workers: int = 2
    controllers: int = 1
    broker: str = "redis"
    proxied: str = ""
    database: str = "sqlite"
    environment: tuple[tuple[str, str], ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()
    metrics: bool = False
    nvml: bool = False
    clock: bool = False
