"""The Celery application of one arm, as a producer makes it and a worker imports it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any, Final

from celery import Celery

from owl_celery import install

NAMESPACE: Final = "faults"
PREFIX: Final = "FAULTS_"
WORK: Final = "faults.work"
STUMBLE: Final = "faults.stumble"
HOWS: Final = ("fine", "killed", "memory", "hung", "poison")
"""How a task stumbles: not at all; the first try kills its process; there is not enough memory on a
K80; the first try never ends by itself; every try kills its process."""

NAMED_TASKS: Final = "FAULTS_NAMED_TASKS"
VISIBILITY_SECONDS: Final = 10
"""Of the arm that acknowledges late: without it plain Celery waits for an hour."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where an arm finds what it uses.

    Parameters
    ----------
    broker, state
        Perhaps behind a proxy.
    ledger, results
        Out of reach of every fault.

    """

    broker: str = "redis://127.0.0.1:1/0"
    state: str = "redis://127.0.0.1:1/1"
    ledger: str = "redis://127.0.0.1:1/2"
    results: str = "redis://127.0.0.1:1/3"

    def environment(self) -> dict[str, str]:
        """Variables by which a worker finds the same."""
        found = {f"{PREFIX}{name.upper()}": url for name, url in asdict(self).items()}
        return {**found, "OWL_REDIS_URL": self.state}

    @classmethod
    def of_environment(cls) -> Addresses:
        """The opposite."""
        return cls(
            **{name: os.environ.get(f"{PREFIX}{name.upper()}", "") for name in cls.__slots__}
        )


def make_app(addresses: Addresses, arm: str, **options: Any) -> Celery:
    """Make the application of one arm.

    Parameters
    ----------
    arm
        ``owl``; ``celery``: with its defaults; or ``celery_late``: acknowledges late, gives back
        what a killed process ran, and sends again after ten seconds what nobody acknowledged.
    options
        For ``install``.

    """
    made = Celery(
        NAMESPACE, broker=addresses.broker, backend=addresses.results, set_as_current=False
    )
    made.conf.update(broker_connection_retry_on_startup=True, result_expires=600)
    if not addresses.broker.startswith("redis:"):
        # Else Celery loses what is on its way when a connection is cut.
        made.conf.broker_transport_options = {"confirm_publish": True}
    elif arm == "celery_late":
        made.conf.broker_transport_options = {"visibility_timeout": VISIBILITY_SECONDS}
    if arm == "celery_late":
        made.conf.update(task_acks_late=True, task_reject_on_worker_lost=True)
    if arm == "owl":
        install(made, namespace=NAMESPACE, redis_url=addresses.state, **options)
    return made
