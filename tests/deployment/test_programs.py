"""What tests need of a machine: installed by .ci/run, and named where it is missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.programs import PACKAGES, find_program, missing_packages

CI = (Path(__file__).parents[2] / ".ci" / "run").read_text()


@pytest.mark.parametrize(("program", "package"), PACKAGES.items())
def test_the_package_of_each_program_is_installed_by_ci(program: str, package: str) -> None:
    assert package in re.findall(r"^need \S+ (\S+)$", CI, re.M)


def test_a_missing_program_is_an_error_that_names_its_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(RuntimeError, match=r"There is no promtool: install prometheus \("):
        find_program("promtool")
    assert missing_packages() == sorted(set(PACKAGES.values()))


def test_no_test_is_skipped_for_want_of_a_program() -> None:
    for path in (Path(__file__).parents[1]).rglob("*.py"):
        if path != Path(__file__):
            assert not re.search(r"pytest\.skip|mark\.skip|importorskip", path.read_text()), path
