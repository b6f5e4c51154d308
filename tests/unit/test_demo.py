"""The demo's parts: its tasks, its figures and its picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from owl_celery.demo.arm import Arm, Done
from owl_celery.demo.load import draw_jobs
from owl_celery.demo.picture import draw_picture, moving_mean, moving_median
from owl_celery.demo.report import ratio_mean, summarise, write_json
from owl_celery.demo.run import busy_machine
from owl_celery.demo.stack import WORKER_BYTES, fit_fleet
from owl_celery.simulate.table import gavel_table
from owl_celery.types import Outcome, TryState

FLEET = {"k80": 2, "v100": 1}


def arm(name: str, responses: list[float], lost: int = 0) -> Arm:
    """An arm that sent one task a second."""
    done = [
        Done(float(due), due + seconds, seconds / 2, "k80", "LM (batch size 5)")
        for due, seconds in enumerate(responses)
    ]
    return Arm(name, len(done) + lost, sent=len(done) + lost, done=done)


def test_the_same_seed_draws_the_same_tasks() -> None:
    first, again, other = (draw_jobs(FLEET, 0.7, 20.0, 0.3, seed) for seed in (1, 1, 2))
    assert first == again != other


def test_tasks_load_the_fleet_as_asked() -> None:
    jobs = draw_jobs(FLEET, 0.7, 2_000.0, 0.3, seed=3)
    table = gavel_table()
    best = [
        min(table.seconds_on(job.task_type, model) or np.inf for model in FLEET)
        * job.size
        * job.scale_seconds
        for job in jobs
    ]
    assert np.mean(best) == pytest.approx(0.3, rel=0.05)
    assert jobs[-1].at == pytest.approx(2_000.0, rel=0.05)


def test_figures_of_an_arm() -> None:
    summary = summarise(arm("owl", [1.0, 2.0, 3.0], lost=2), FLEET)
    assert (summary.mean_seconds, summary.tasks, summary.lost) == (2.0, 3, 2)
    assert summary.tasks_per_second == pytest.approx(3 / 5)
    assert summary.busy == {"k80": pytest.approx(3.0 / (2 * 5.0)), "v100": 0.0}


def test_the_report_is_what_it_is_said_to_be(tmp_path: Path) -> None:
    summaries = {
        "celery_shared": summarise(arm("celery_shared", [2.0, 4.0]), FLEET),
        "owl": summarise(arm("owl", [1.0, 2.0]), FLEET),
    }
    assert ratio_mean(summaries) == 0.5
    write_json(tmp_path / "demo.json", summaries, 7, FLEET, 0.7)
    body = json.loads((tmp_path / "demo.json").read_text())
    assert (body["ratio_mean"], body["seed"], body["fleet"], body["load"]) == (0.5, 7, FLEET, 0.7)
    for name in ("celery_shared", "owl"):
        assert {"mean_seconds", "p95_seconds", "p99_seconds", "tasks", "lost"} <= set(
            body["arms"][name]
        )


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    outcome = Outcome(
        "1", "", 0, "LM", 1.0, "gpu.a.0", "gpu0@a", "k80", TryState.SUCCESS, 2.0, 1.0,
        predicted_seconds=1.0,
    )  # fmt: skip
    path = tmp_path / "curve.png"
    draw_picture(path, [arm("celery_shared", [2.0] * 80), arm("owl", [1.0] * 80)], [outcome], "x")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_moving_values_look_back_only() -> None:
    values = np.arange(100.0)
    assert moving_mean(values)[[0, 1, 99]].tolist() == [0.0, 0.5, 69.5]
    assert moving_median(values)[[0, 1, 99]].tolist() == [0.0, 0.5, 69.5]


def test_a_fleet_shrinks_with_the_memory() -> None:
    fleet = {"k80": 4, "p100": 4, "v100": 4}
    assert fit_fleet(fleet, None) == fleet
    assert fit_fleet(fleet, 12 * WORKER_BYTES) == fleet
    assert fit_fleet(fleet, 6 * WORKER_BYTES) == {"k80": 2, "p100": 2, "v100": 2}
    assert fit_fleet(fleet, 1) == {"k80": 1, "p100": 1, "v100": 1}


def test_a_busy_machine_is_warned_of() -> None:
    assert busy_machine(2.0, 2) == ""
    assert "2.1 on 2 cores: other work on it makes the virtual GPUs slow" in busy_machine(2.1, 2)
