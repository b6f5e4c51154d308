"""Movers that are killed, one after the other: ``python -m tests.mover_process``."""

from __future__ import annotations

import os
import random
import signal
import sys
import time

from celery import Celery

from owl_celery.brokers import open_broker
from owl_celery.brokers.base import Permit
from owl_celery.controller.stealing import header_of


def move(url: str, source: str, destination: str, moving: int) -> None:
    """Move without end; say by a byte to ``moving`` that the first message has moved."""
    broker = open_broker(Celery("proj", broker=url, set_as_current=False))
    permit = Permit("owl:test:lease:controller", "", "owl:test:moves", 1)
    while True:
        for seen in broker.peek([source], 8, 8)[source]:
            header = header_of(seen.text)
            if header is not None and broker.take(
                source, seen, header.decision_id, destination, permit
            ):
                os.write(moving, b".")
        broker.release()


def empty(url: str, source: str, destination: str, moving: int) -> None:
    """Empty a queue without end, as a drained one."""
    broker = open_broker(Celery("proj", broker=url, set_as_current=False))
    while True:
        if broker.redirect(source, lambda _: destination, 1_000):
            os.write(moving, b".")


def main(url: str, source: str, destination: str, kills: str, how: str = "move") -> None:
    """Kill as many movers as asked, each at a random moment of its work."""
    # What it takes to move is imported once, and not by each mover anew.
    broker = open_broker(Celery("proj", broker=url, set_as_current=False))
    broker.depths([source])
    broker.close()
    draw = random.Random(1)
    for _ in range(int(kills)):
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            {"move": move, "empty": empty}[how](url, source, destination, writer)
        os.read(reader, 1)
        time.sleep(draw.uniform(0.0, 0.1))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)
    print(kills)


if __name__ == "__main__":
    main(*sys.argv[1:])
