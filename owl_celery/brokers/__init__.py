"""How much waits in the queues of a broker, and how to move it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from owl_celery.brokers.base import TIMEOUT_SECONDS, BlindBroker, Broker

if TYPE_CHECKING:
    from celery import Celery


def open_broker(app: Celery) -> Broker:
    """Choose by the application's broker address how to look into its queues; connects later.

    Redis (Sentinel and TLS too) and RabbitMQ are known; anything else is not looked into.

    Parameters
    ----------
    app
        The Celery application.

    """
    transport = app.connection_for_read().transport_cls
    name = transport if isinstance(transport, str) else getattr(transport, "driver_type", "")
    if name in ("redis", "rediss", "sentinel"):
        from owl_celery.brokers.redis import open_redis_broker

        return open_redis_broker(app)
    if name in ("amqp", "amqps", "pyamqp", "py-amqp", "memory"):
        from owl_celery.brokers.amqp import ANSWER_SECONDS, HEARTBEAT_SECONDS, AmqpBroker

        # Confirmations and transactions exclude each other on a channel.
        waits = {
            "read_timeout": ANSWER_SECONDS,
            "write_timeout": ANSWER_SECONDS,
            "confirm_publish": False,
        }
        return AmqpBroker(
            partial(
                app.connection_for_write,
                connect_timeout=TIMEOUT_SECONDS,
                heartbeat=HEARTBEAT_SECONDS,
                transport_options={} if name == "memory" else waits,
            )
        )
    return BlindBroker()
