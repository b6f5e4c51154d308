"""The start of a GPU worker: what its predecessor held when it was killed is served first."""

from __future__ import annotations

import logging

from owl_celery.brokers.base import Broker, Owner
from owl_celery.errors import BrokerError

log = logging.getLogger(__name__)


def recover(broker: Broker, queue: str, owner: Owner, max_losses: int) -> int:
    """Hand back to the worker's own queue what was delivered from it before; count it.

    Called before the worker consumes: whatever is not acknowledged was held by a worker that is
    dead, since the queue is claimed by this one.
    """
    try:
        restored = broker.restore({queue: owner}, max_losses=max_losses)
        # The pool is forked later, and must not share a socket.
        broker.close()
    except BrokerError as error:
        log.warning(
            "owl: what the worker of %s held before comes back after the broker's visibility "
            "timeout: %s",
            queue,
            error,
        )
        return 0
    if broker.trouble:
        log.warning("owl: %s", broker.trouble)
    if restored:
        log.warning(
            "owl: %d tasks were held by a worker of %s that was killed; they run again",
            restored,
            queue,
        )
    return restored
