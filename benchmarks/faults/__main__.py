"""What each fault costs: ``python -m benchmarks.faults``.

Each trial starts real servers, workers and controllers, publishes tasks, strikes at a random
moment, and accounts for every task. The same fault with the same seed strikes plain Celery beside.
Ends with 1 when something that must hold does not.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import click

from benchmarks.faults.cluster import Cluster
from benchmarks.faults.fault import Fault, Trial
from benchmarks.faults.faults import FAULTS
from benchmarks.faults.report import page, rows, table


def batches(faults: Sequence[Fault]) -> Iterator[list[Fault]]:
    """Neighbours that can be tried in one cluster."""
    for _, some in groupby(faults, key=lambda f: (f.plan, f.arms, f.needs_cluster)):
        batch: list[Fault] = []
        for fault in some:
            batch.append(fault)
            if fault.spoils:
                yield batch
                batch = []
        if batch:
            yield batch


def try_batch(batch: Sequence[Fault], arm: str, seed: int) -> list[Trial]:
    """One trial of each fault, by one arm; what breaks is a trial too."""
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory(prefix="owl-faults-") as folder:
        cluster = None
        try:
            if batch[0].needs_cluster:
                cluster = Cluster(arm, batch[0].plan, Path(folder))
            for fault in batch:
                trials.append(try_one(fault, cluster, arm, seed))
        except Exception as error:
            left = batch[len(trials) :]
            trials += [Trial(f.name, arm, seed, error=f"no cluster: {error!r}") for f in left]
        finally:
            if cluster is not None:
                cluster.close()
    return trials


def try_one(fault: Fault, cluster: Cluster | None, arm: str, seed: int) -> Trial:
    """One trial; one that breaks is shown, with what the processes said last."""
    # Each trial notes its own things in it, and other arms run beside.
    fault = copy(fault)
    try:
        return fault.run_alone(seed) if cluster is None else fault.run(cluster, seed)
    except Exception as error:
        said = "" if cluster is None else cluster.complaints()
        click.echo(f"{fault.name} ({arm}):\n{traceback.format_exc()}{said}", err=True)
        return Trial(fault.name, arm, seed, error=repr(error))


@click.command()
@click.option("--trials", default=2, show_default=True, help="Trials of each fault and arm.")
@click.option("--first-seed", default=1, show_default=True, help="Seed of the first trial.")
@click.option("--fault", "only", multiple=True, help="Only faults whose name contains this.")
@click.option("--arm", "only_arm", default="", help="Only this arm.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all trials here.")
@click.option("--page", "page_path", type=click.Path(path_type=Path), help="Write the page here.")
def main(
    trials: int,
    first_seed: int,
    only: tuple[str, ...],
    only_arm: str,
    json_path: Path | None,
    page_path: Path | None,
) -> None:
    """Strike, count, and print the table."""
    began = time.monotonic()
    chosen = [fault for fault in FAULTS if not only or any(part in fault.name for part in only)]
    done: list[Trial] = []
    for place in range(trials):
        seed = first_seed + place
        for batch in batches([fault for fault in chosen if place < fault.most_trials]):
            arms = [arm for arm in batch[0].arms if only_arm in ("", arm)]
            # Side by side, since most of the time is spent waiting.
            with ThreadPoolExecutor(max(len(arms), 1)) as pool:
                tried = pool.map(lambda arm: try_batch(batch, arm, seed), arms)  # noqa: B023
                done += [trial for some in tried for trial in some]
            for trial in done[-len(arms) * len(batch) :]:
                click.echo(json.dumps(asdict(trial)), err=True)
            if json_path is not None:
                json_path.parent.mkdir(parents=True, exist_ok=True)
                body = [asdict(trial) for trial in done]
                json_path.write_text(json.dumps(body, indent=2) + "\n")
            click.echo(f"{time.monotonic() - began:.0f} s", err=True)
    found = rows(FAULTS, done)
    click.echo(table(found))
    if page_path is not None:
        page_path.write_text(page(found, "make faults", (time.monotonic() - began) / 60.0))
    sys.exit(0 if all(row.holds for row in found) else 1)


if __name__ == "__main__":
    main()
