"""Movers that are killed, one after the other: ``python -m tests.mover_process``."""

from __future__ import annotations

import os
import random
import signal
import sys
import time

from celery import Celery

from owl_celery.brokers.base import Permit
from owl_celery.brokers.redis import open_redis_broker
from owl_celery.controller.stealing import header_of


def move(url: str, source: str, destination: str) -> None:
    """Move without end."""
    broker = open_redis_broker(Celery("proj", broker=url, set_as_current=False))
    permit = Permit("owl:test:lease:controller", "", "owl:test:moves", 1)
    while True:
        for seen in broker.peek([source], 8)[source]:
            header = header_of(seen.text)
            if header is not None:
                broker.take(source, seen, header.decision_id, destination, permit)


def main(url: str, source: str, destination: str, kills: str) -> None:
    """Kill as many movers as asked, each at a random moment of its work."""
    draw = random.Random(1)
    for _ in range(int(kills)):
        pid = os.fork()
        if not pid:
            move(url, source, destination)
        time.sleep(draw.uniform(0.05, 0.3))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    print(kills)


if __name__ == "__main__":
    main(*sys.argv[1:])
