"""The file that takes what was learned to another site, and what is said of a bad one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from owl_celery.aggregates import Aggregates, Learned, SavedPolicy, ServiceStats
from owl_celery.errors import PriorError
from owl_celery.learned_prior import prior_of
from owl_celery.policies.expected_completion import ExpectedCompletion
from owl_celery.prior import LoadPrior, PairPrior, Prior
from owl_celery.prior_file import decode_prior, encode_prior
from owl_celery.settings import Settings
from tests.learning import stream

PRIOR = Prior(
    (
        PairPrior("train", "V100", 1.25, 400, 1.5, 0.01, 200, 8_000, 7_600, 0.3),
        PairPrior("train", "K80", failure_probability=0.98, tries=50, needed_memory_bytes=12_000),
        PairPrior("Zug „fährt“ \u2028", "A100 80GB", 0.1 + 0.2, 1),
    ),
    (LoadPrior("llama", 20.5, 12),),
)


def test_the_example_of_the_documentation_can_be_imported() -> None:
    page = (Path(__file__).parents[2] / "docs" / "transfer.md").read_text(encoding="utf-8")
    prior = decode_prior(page.split("```json\n")[1].split("```")[0])
    assert [pair.gpu_model for pair in prior.pairs] == ["NVIDIA A100-SXM4-80GB", "Tesla T4"]
    assert prior.loads == (LoadPrior("llama-70b", 41.0, 12),)


def document(**changes: Any) -> str:
    return json.dumps({**json.loads(encode_prior(PRIOR, {})), **changes})


def pair(**changes: Any) -> str:
    row = {"task_type": "train", "gpu_model": "V100", "seconds": 1.0, "successes": 3}
    return document(pairs=[{"task_type": "a", "gpu_model": "b"}, {**row, **changes}])


def test_what_was_written_is_read() -> None:
    assert decode_prior(encode_prior(PRIOR, {"policy": "q_learning"})) == PRIOR
    assert decode_prior(encode_prior(Prior(), {})) == Prior()


def test_a_row_is_a_line_for_people() -> None:
    lines = encode_prior(PRIOR, {"application": "proj"}).splitlines()
    assert sum('"task_type"' in line for line in lines) == 3
    assert len(lines) == 11


def test_what_a_newer_release_adds_is_ignored() -> None:
    text = document(colour="red", pairs=[{"task_type": "a", "gpu_model": "b", "mood": "good"}])
    assert decode_prior(text).pairs == (PairPrior("a", "b"),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no JSON: Expecting property name.* line 1"),
        ('{"seconds": NaN}', "NaN is no number"),
        ("[]", '"format" must be "owl-celery-prior"'),
        ("{}", "celery owl export writes one"),
        (document(version=2), "of version 2, and this release reads up to 1: upgrade"),
        (document(version="1"), "must be a whole number from 1 on, and it is '1'"),
        (document(version=True), "must be a whole number"),
        (document(pairs={}), '"pairs" must be a list'),
        (document(pairs=[{"gpu_model": "V100"}]), r"Row 1 of pairs \(V100\): task_type is missing"),
        (document(pairs=[7]), "Row 1 of pairs: it: .*, and it is 7"),
        (
            document(loads=[{"model": "m", "seconds": 1.0, "count": 0}]),
            r"Row 1 of loads \(m\): count",
        ),
        (
            pair(seconds=-1.0),
            r"Row 2 of pairs \(train on V100\): seconds: .*greater than 0.* -1\.0",
        ),
        (pair(seconds="1.0"), "valid number, and it is '1.0'"),
        (pair(seconds=1e300), "seconds: .*less than or equal"),
        (pair(seconds=None), "needs both seconds and successes"),
        (pair(successes=0), "needs both seconds and successes"),
        (pair(successes=2.5), "successes: "),
        (pair(failure_probability=1.5), "failure_probability: .* 1.5"),
        (pair(needed_memory_bytes=0), "needed_memory_bytes: "),
        (pair(task_type=""), "task_type: "),
        (pair(task_type="x" * 300), "task_type: "),
        (pair(gpu_model="a\0"), "gpu_model: has a letter that no database can hold"),
        (pair(task_type="a", gpu_model="b"), r"Row 2 of pairs \(a on b\) stands there twice"),
        (document(pairs=[{}] * 9), "Row 5 of pairs: .*; and 4 rows more"),
        (document(pairs=[{}] * 200_001), "200,001 rows, and 200,000 are allowed"),
    ],
)
def test_what_is_wrong_is_said_with_its_row(text: str, said: str) -> None:
    with pytest.raises(PriorError, match=said):
        decode_prior(text)


def learned(*policies: SavedPolicy) -> Learned:
    rows = [ServiceStats("train", "V100", 4, 2.0, 3.0, failures=1, peak_memory_bytes=100)]
    return Learned("1-0", policies, Aggregates(services=rows))


def test_the_policy_saved_last_that_learns_is_asked() -> None:
    policy = ExpectedCompletion(seed=1)
    for event in stream(300):
        policy.learn_one(event, 0.0)
    saved = [
        SavedPolicy("random", 1, {}, 0.0),
        SavedPolicy("gone", 1, {}, 0.0),
        SavedPolicy("q_learning", 1, {"format": 99}, 0.0),
        SavedPolicy("expected_completion", 1, policy.state(), 0.0),
    ]
    prior, name = prior_of(learned(*saved), Settings())
    assert name == "expected_completion"
    assert prior == policy.export_prior()


def test_without_a_policy_that_learns_the_counts_are_exported() -> None:
    prior, name = prior_of(learned(SavedPolicy("random", 1, {}, 0.0)), Settings())
    assert name == ""
    assert prior.pairs == (PairPrior("train", "V100", 2.0, 4, 1.0, 0.2, 5, 100, 100, 1.0),)
