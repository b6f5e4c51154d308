"""Messages as the router sends them, to test what is done with them afterwards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from celery import Celery
from redis import Redis

from owl_celery.wire import HEADER, TaskHeader


def send_routed(app: Celery, queue: str, *numbers: int, **options: Any) -> None:
    """Publish one routed message a number, which is its argument and in its decision id.

    ``header`` in the options overrides fields of the header.
    """
    fields: dict[str, Any] = options.pop("header", {})
    with app.connection_for_write() as connection, connection.channel() as channel:
        producer = app.amqp.Producer(channel)
        for number in numbers:
            values = {
                "decision_id": f"d{number}",
                "queue": queue,
                "algorithm": "expected_completion",
                "task_type": "train",
                "published_at": 1.7e9 + number,
                "service_seconds": 2.0,
                **fields,
            }
            headers = {HEADER: TaskHeader(**values).encode()}
            app.send_task(
                "proj.work", (number,), queue=queue, producer=producer, headers=headers, **options
            )


def number_of(headers: Mapping[str, Any]) -> int:
    """Number of a message that ``send_routed`` has published, by its headers."""
    return int(headers["argsrepr"].strip("(,)"))


def numbers_in(client: Redis, name: str) -> list[int]:
    """Numbers of the messages in a list, in the order in which a worker would get them."""
    texts: Any = client.lrange(name, 0, -1)
    return [number_of(json.loads(text)["headers"]) for text in reversed(texts)]
