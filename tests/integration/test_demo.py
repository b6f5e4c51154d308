"""``owl demo`` as a user runs it, with few tasks; nothing may be left running."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from redis import Redis

from owl_celery.testing import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SMALL = ["--simulate", "k80=1,v100=1", "--seconds", "3", "--seed", "5"]


def demo(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    return subprocess.Popen(
        [sys.executable, "-m", "owl_celery", "demo", *arguments],
        env={**inherited, "COLUMNS": "100", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_compares_both_arms_and_says_where_the_results_are(tmp_path: Path) -> None:
    mine = tmp_path / "mine.sqlite3"
    # What another application of this shell is told is nothing to the demo.
    process = demo(
        *SMALL,
        "--output",
        str(tmp_path / "out"),
        DATABASE_URL=f"sqlite:///{mine}",
        OWL_EMBED_CONTROLLER="false",
        ENABLE_CONTINUOUS_LEARNING="false",
    )
    output, _ = process.communicate(timeout=150.0)
    assert process.returncode == 0, output
    assert not mine.exists()
    body = json.loads((tmp_path / "out" / "demo.json").read_text())
    arms = body["arms"]
    assert arms["celery_shared"]["tasks"] == arms["owl"]["tasks"] > 5
    assert arms["celery_shared"]["lost"] == arms["owl"]["lost"] == 0
    assert body["seed"] == 5
    for said in ("p95 response", "k80 busy", "demo.json", "learning-curve.png"):
        assert said in output.replace("\n", "")
    assert (tmp_path / "out" / "learning-curve.png").stat().st_size > 10_000


def test_keeps_everything_up_when_asked_and_stops_by_term(tmp_path: Path) -> None:
    process = demo(*SMALL, "--keep", "--output", str(tmp_path))
    try:
        assert process.stdout is not None
        said = ""
        while "Metrics" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        assert re.search(r"Watch it at (http://\S+)\nThe first half is plain Celery", said)
        while "owl status" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        assert f" {Path(sys.executable).with_name('celery')} -A workers.app owl status" in said
        addresses = dict(re.findall(r"^  (Console|API|Metrics) +(http://\S+)", said, re.MULTILINE))
        assert "<title>owl console</title>" in httpx.get(addresses["Console"], timeout=30.0).text
        assert httpx.get(addresses["API"], timeout=30.0).json()["queues"] == 2
        assert "owl_queue_open" in httpx.get(addresses["Metrics"], timeout=30.0).text
        # More tasks come, for people to see something.
        events = addresses["Console"] + "api/v1/learning/events"
        with httpx.stream("GET", events, timeout=60.0) as live:
            assert any(line == "event: outcome" for line in live.iter_lines())
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60.0) == 0
    finally:
        process.kill()
        process.communicate()


def test_leaves_a_redis_with_data_alone(redis_url: str, tmp_path: Path) -> None:
    with Redis.from_url(redis_url) as client:
        client.set("somebody's", "data")
        process = demo(*SMALL, "--output", str(tmp_path), REDIS_URL=redis_url)
        output, _ = process.communicate(timeout=60.0)
        assert process.returncode == 1
        assert "REDIS_URL names a Redis that holds data" in output.replace("\n", " ")
        assert client.keys() == [b"somebody's"]


def test_a_redis_that_is_away_is_one_sentence(tmp_path: Path) -> None:
    process = demo(*SMALL, "--output", str(tmp_path), REDIS_URL="redis://127.0.0.1:1/0")
    output, _ = process.communicate(timeout=60.0)
    assert process.returncode == 1
    assert "REDIS_URL: Redis does not answer" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--simulate", "a100=2"], "no GPU model 'a100'"),
        (["--simulate", "k80"], "not MODEL=COUNT"),
        (["--load", "2"], "--load"),
        (["--output", "/proc/none"], "--output"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], said: str) -> None:
    process = demo(*arguments)
    output, _ = process.communicate(timeout=60.0)
    assert process.returncode != 0
    assert said in output
    assert "Traceback" not in output


def test_a_killed_demo_takes_its_workers_along(tmp_path: Path) -> None:
    process = demo(*SMALL, "--output", str(tmp_path))
    try:
        assert process.stdout is not None
        wait_until(lambda: "virtual GPUs" in process.stdout.readline(), "the start", 90.0)  # type: ignore[union-attr]
    finally:
        process.kill()
        process.communicate()
    # The fixture no_leftovers waits for the rest to end.
