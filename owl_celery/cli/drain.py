"""``celery -A proj owl drain``: empty a queue before maintenance."""

from __future__ import annotations

import time
from typing import Final

import click

from owl_celery.brokers.base import Broker
from owl_celery.cli.asking import state_of
from owl_celery.cli.terminal import shown
from owl_celery.controls import QueueLoad, drain_queue, drained_queues, has_controller, queue_load
from owl_celery.redis_state import RedisState

SETTLE_SECONDS: Final = 1.5
"""Producers learn within a second that a queue is closed; what they send until then moves too."""

LOOK_SECONDS: Final = 0.2


@click.command()
@click.argument("queue", required=False)
@click.option("--wait", is_flag=True, help="Return once nothing waits or runs there.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long --wait waits; then it exits with 1.",
)
@click.pass_context
def drain(ctx: click.Context, queue: str | None, wait: bool, timeout: float) -> None:
    """Empty QUEUE: no new tasks go there, and what waits moves to the next best queue.

    What runs there finishes. It stays drained, over restarts, until owl resume QUEUE. Without
    QUEUE it lists what is drained. A queue whose workers are gone can be emptied, too.
    """
    with state_of(ctx) as state:
        if queue is None:
            click.echo(shown("\n".join(drained_queues(state))) or "No queue is drained.")
            return
        is_new = drain_queue(state, queue)
        click.echo(f"{queue} is drained until owl resume {queue}{'' if is_new else ', as before'}.")
        if not has_controller(state):
            click.echo(
                "Warning: No controller is active: tasks go on to it until one is.", err=True
            )
        if wait and (left := _wait(state, _broker_of(ctx), queue, timeout)):
            raise click.ClickException(
                f"After {timeout:g} s {left.waiting_count} tasks wait in {queue} and "
                f"{left.running_count} run. Tasks whose sender named the queue stay there."
            )
        if wait:
            click.echo(f"Nothing waits or runs in {queue}.")


def _broker_of(ctx: click.Context) -> Broker:
    from owl_celery.brokers import open_broker

    broker = open_broker(ctx.obj.app)
    ctx.call_on_close(broker.close)
    return broker


def _load(state: RedisState, broker: Broker, queue: str) -> QueueLoad:
    """What the controller sees; of a queue without workers only the broker knows what waits."""
    load = queue_load(state, queue)
    return QueueLoad(broker.depths([queue]).get(queue, 0)) if load.is_empty else load


def _wait(
    state: RedisState, broker: Broker, queue: str, timeout_seconds: float
) -> QueueLoad | None:
    """Wait until the queue is empty and stays so for a moment; what is left when time is up."""
    began = time.monotonic()
    empty_since = None
    while True:
        load = _load(state, broker, queue)
        now = time.monotonic()
        if not (load.is_empty and has_controller(state)):
            empty_since = None
        elif empty_since is None:
            empty_since = now
        elif now - empty_since >= SETTLE_SECONDS:
            return None
        if now - began >= timeout_seconds:
            return load
        time.sleep(min(LOOK_SECONDS, timeout_seconds - (now - began)))
