"""``owl demo``."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from owl_celery.demo.run import Plan, run_demo
from owl_celery.errors import OwlError
from owl_celery.simulate.table import parse_fleet


@click.command()
@click.option("--seed", default=1, show_default=True, help="Draws the tasks and their arrivals.")
@click.option(
    "--load",
    default=0.7,
    show_default=True,
    type=click.FloatRange(0.05, 0.99),
    help="Arrival rate as a share of the most that the fleet can serve.",
)
@click.option(
    "--simulate",
    "fleet",
    default="k80=4,p100=4,v100=4",
    show_default=True,
    help="Virtual GPUs by model: k80, p100, v100.",
)
@click.option(
    "--seconds",
    default=75.0,
    show_default=True,
    type=click.FloatRange(2.0, 3600.0),
    help="How long tasks arrive in each of the two arms.",
)
@click.option(
    "--mean-seconds",
    default=0.3,
    show_default=True,
    type=click.FloatRange(0.01, 60.0),
    help="Mean service time of a task on its best GPU model.",
)
@click.option(
    "--patience-seconds",
    default=15.0,
    show_default=True,
    type=click.FloatRange(1.0, 3600.0),
    help="How long to wait for results after the last arrival.",
)
@click.option(
    "--output",
    default="demo-output",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for demo.json and the picture.",
)
@click.option(
    "--keep",
    is_flag=True,
    help="Go on afterwards, until Ctrl-C, to look at console, API and metrics.",
)
def demo(
    seed: int,
    load: float,
    fleet: str,
    seconds: float,
    mean_seconds: float,
    patience_seconds: float,
    output: Path,
    keep: bool,
) -> None:
    """Compare plain Celery with learned routing on virtual GPUs, in about four minutes."""
    # TERM must stop what was started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        plan = Plan(
            seed, load, parse_fleet(fleet), seconds, mean_seconds, patience_seconds, output, keep
        )
        run_demo(plan, Console())
    except OwlError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(
            f"Cannot write {error.filename}: {error.strerror}. Choose another --output."
        ) from error
    except KeyboardInterrupt:
        raise click.ClickException("Stopped; nothing is left running.") from None


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
