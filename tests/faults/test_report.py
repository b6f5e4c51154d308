"""What the fault suite makes of its trials."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.faults.fault import Fault, Trial
from benchmarks.faults.ledger import Account, Line
from benchmarks.faults.report import page, rows


class Example(Fault):
    name = "example"
    strikes = "nothing does"
    must = "all is well"
    arms = ("owl", "celery_late")
    limit_seconds = 10.0


def verdict(doubled_by_plain: int = 0, **owl: Any) -> str:
    """What is said of one trial of ours beside one of plain Celery."""
    sound: dict[str, Any] = {"published": 10, "recovery_seconds": 1.0}
    ours = Trial("example", "owl", 1, **{**sound, **owl})
    plain = Trial("example", "celery_late", 1, **sound, doubled=doubled_by_plain)
    found = rows([Example()], [ours, plain])
    assert [row.arm for row in found] == ["owl", "celery_late"]
    return found[0].verdict


def test_a_sound_trial_holds() -> None:
    assert verdict() == "holds"


@pytest.mark.parametrize(
    ("owl", "said"),
    [
        ({"lost": 1, "recovery_seconds": None}, "1 lost; 1 beyond the limit"),
        ({"doubled": 2, "held": 1}, "2 finished twice, 1 may"),
        ({"recovery_seconds": 11.0}, "1 beyond the limit"),
        ({"error": "TimeoutError()"}, "1 broke"),
    ],
)
def test_what_does_not_hold_is_said(owl: dict[str, Any], said: str) -> None:
    assert verdict(**owl) == said


def test_as_many_may_be_doubled_as_with_plain_celery() -> None:
    assert verdict(doubled=2, doubled_by_plain=2) == "holds"


def test_a_check_that_fails_is_in_verdict_and_page() -> None:
    trial = Trial("example", "owl", 1, published=10, recovery_seconds=1.0)
    trial.check("readings are unknown", "12 W", False)
    found = rows([Example()], [trial])
    assert found[0].verdict == "not: readings are unknown (12 W)"
    assert not found[0].holds
    text = page(found, "make faults", 1.0)
    assert "**Of 1 faults 0 hold what they must." in text
    assert "| readings are unknown | 12 W | **no** |" in text


def test_the_account_tells_lost_doubled_and_run_again_apart() -> None:
    account = Account()
    for what, number in (
        *(("started", 1), ("finished", 1)),
        *(("started", 2), ("started", 2), ("finished", 2), ("finished", 2)),
        *(("started", 3), ("started", 3), ("finished", 3), ("started", 4)),
    ):
        account.add(Line(float(number), what, number, "gpu0@a", "k80"))
    numbers = {1, 2, 3, 4, 5}
    assert account.lost(numbers) == {4, 5}
    assert account.doubled(numbers) == 1
    assert account.run_again(numbers) == 2
    assert account.ended_at(numbers) == 3.0
    assert account.running("gpu0@a") == {3, 4}
