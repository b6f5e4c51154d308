from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers.entrypoint import fill


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "redis_password").write_text("p@ss/w:rd\n")
    (tmp_path / "flower_password").write_text("p@ss\n")
    return tmp_path


def test_a_password_is_quoted_in_an_address(folder: Path) -> None:
    environment = {"REDIS_URL": "redis://:{redis_password}@redis:6379/0"}

    assert fill(environment, folder) == {"REDIS_URL": "redis://:p%40ss%2Fw%3Ard@redis:6379/0"}


def test_a_password_that_is_in_no_address_stays_as_it_is(folder: Path) -> None:
    environment = {"FLOWER_BASIC_AUTH": "owl:{flower_password}"}

    assert fill(environment, folder) == {"FLOWER_BASIC_AUTH": "owl:p@ss"}


def test_other_variables_are_left_alone(folder: Path) -> None:
    environment = {"PS1": "{redis_password}", "REDIS_URL": "redis://redis"}

    assert fill(environment, folder) == environment


def test_the_command_replaces_the_entrypoint() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "workers.entrypoint", "sh", "-c", "echo $REDIS_URL; exit 7"],
        env={**os.environ, "REDIS_URL": "redis://here"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stdout == "redis://here\n"
    assert done.returncode == 7


def test_a_secret_that_is_missing_is_said_in_one_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "workers.entrypoint", "true"],
        env={**os.environ, "REDIS_URL": "redis://:{no_such_secret}@redis"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "no_such_secret cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
