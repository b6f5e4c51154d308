from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from owl_celery.keys import Keys
from owl_celery.records import FleetRecord, Knowledge, View, decode_record
from owl_celery.types import Outcome, TryState
from owl_celery.wire import (
    MAX_NAME_LENGTH,
    MAX_SECONDS,
    Heartbeat,
    Started,
    TaskHeader,
    bounded_seconds,
    bounded_text,
    decode_event,
    dumps,
    encode_event,
)

HEADER = TaskHeader(
    decision_id="9f86d081884c7d65",
    queue="gpu.node-017.example.org.7",
    algorithm="expected_completion",
    task_type="vision.tasks.train_resnet50",
    published_at=1_800_000_000.1234,
    size=32.5,
    model="resnet50",
    service_seconds=12.345678,
    policy_version=123_456,
    explored=True,
    propensity=0.0625,
    tried=("Tesla K80",),
    exceeded_bytes=2.0**34,
)
STARTED = Started("task", "decision", 2, "type", "gpu.a.0", "gpu0@a", "V100", 1.5)
OUTCOME = Outcome(
    task_id="task",
    decision_id="decision",
    attempt=1,
    task_type="type",
    size=2.0,
    queue="gpu.a.0",
    worker_id="gpu0@a",
    gpu_model="V100",
    state=TryState.FAILURE,
    service_seconds=3.5,
    finished_at=1_800_000_000.5,
    wait_seconds=0.25,
    predicted_seconds=3.0,
    algorithm="random",
    explored=True,
    error="ValueError",
    out_of_memory=True,
    peak_memory_bytes=2**34,
    model="resnet50",
)
HEARTBEAT = Heartbeat(
    node="gpu0@a",
    queue="gpu.a.0",
    gpu_model="V100",
    gpu_uuid="GPU-1",
    concurrency=2,
    active=("one", "two"),
    draining=True,
    memory_total_bytes=2**34,
    memory_free_bytes=2**33,
    memory_own_bytes=2**30,
    utilization_ratio=0.5,
    temperature_celsius=61.0,
    power_watts=250.0,
    tick_age_seconds=0.1,
    is_simulated=True,
)
RECORDS: list[FleetRecord | View | Knowledge] = [
    FleetRecord(3, ["gpu.a.0", "gpu.a.1"], ["V100", "cpu"], [1, 8]),
    View(4, 1.5, 3, 2, [1, 0], [2.5, 0.0], [(0, 1.0, 0.5)], [1], [2**33, None]),
    Knowledge(2, "random", {"step": 0.5}),
]
TEXTS = [
    encode_event(STARTED),
    encode_event(OUTCOME),
    HEARTBEAT.encode(),
    *(record.encode() for record in RECORDS),
]
JUNK = [
    "",
    "nonsense",
    "null",
    "[]",
    "{}",
    "7",
    '"text"',
    b"\xff\xfe",
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"e": []}',
    '{"e": "start"}',
    '{"e": "end", "state": []}',
    '{"e": "other"}',
    '{"node": 7}',
    '{"node": "a", "concurrency": 1e400}',
    '{"version": ' + "9" * 5_000 + "}",
]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


def decode_all(text: str | bytes) -> list[object]:
    return [
        decode_event(text),
        Heartbeat.decode(text),
        decode_record(FleetRecord, text),
        decode_record(View, text),
        decode_record(Knowledge, text),
    ]


def test_a_header_survives_the_way() -> None:
    assert TaskHeader.decode(json.loads(json.dumps(HEADER.encode()))) == HEADER


def test_a_header_leaves_out_what_is_not_known() -> None:
    plain = TaskHeader("d", "q", "celery", "type", 1.0)

    assert set(plain.encode()) == {"v", "d", "q", "a", "k", "t", "m"}
    assert TaskHeader.decode(plain.encode()) == plain


def test_a_header_of_usual_names_is_under_300_bytes() -> None:
    assert len(dumps(HEADER.encode())) < 300


@pytest.mark.parametrize("event", [STARTED, replace(STARTED, service_seconds=None), OUTCOME])
def test_an_event_survives_the_way(event: Started | Outcome) -> None:
    assert decode_event(encode_event(event)) == event
    assert decode_event(encode_event(event).encode()) == event


@pytest.mark.parametrize("state", TryState)
def test_every_state_survives_the_way(state: TryState) -> None:
    outcome = replace(OUTCOME, state=state)

    assert decode_event(encode_event(outcome)) == outcome


@pytest.mark.parametrize("heartbeat", [HEARTBEAT, Heartbeat("celery@a")])
def test_a_heartbeat_survives_the_way(heartbeat: Heartbeat) -> None:
    assert Heartbeat.decode(heartbeat.encode()) == heartbeat


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_survives_the_way(record: FleetRecord | View | Knowledge) -> None:
    assert record in decode_all(record.encode())


@pytest.mark.parametrize("text", TEXTS)
def test_keys_of_a_later_release_are_ignored(text: str) -> None:
    later = dumps({**json.loads(text), "new_in_a_later_release": [1]})

    assert decode_all(later) == decode_all(text)


@pytest.mark.parametrize("text", JUNK, ids=range(len(JUNK)))
def test_junk_is_none(text: str | bytes) -> None:
    assert decode_all(text) == [None] * 5
    assert TaskHeader.decode(text) is None


@given(st.one_of(st.text(), st.binary(), json_values.map(json.dumps)))
def test_no_text_makes_a_reader_raise(text: str | bytes) -> None:
    decode_all(text)


@given(st.data())
def test_no_value_in_a_known_place_makes_a_reader_raise(data: st.DataObject) -> None:
    body = json.loads(data.draw(st.sampled_from(TEXTS)))
    body[data.draw(st.sampled_from(sorted(body)))] = data.draw(json_values)

    decode_all(json.dumps(body))


@given(st.data())
def test_any_header_decodes_to_values_in_bounds(data: st.DataObject) -> None:
    encoded: dict[str, Any] = HEADER.encode()
    for key in data.draw(st.sets(st.sampled_from(sorted(set(encoded) - {"d"})))):
        encoded[key] = data.draw(json_values)

    header = TaskHeader.decode(encoded)

    assert header is not None
    assert 0.0 < header.size <= MAX_SECONDS
    assert header.service_seconds is None or 0.0 <= header.service_seconds <= MAX_SECONDS
    assert math.isfinite(header.published_at)
    assert len(header.queue) <= MAX_NAME_LENGTH
    dumps(header.encode())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("concurrency", 0),
        ("concurrency", 10_000),
        ("concurrency", "many"),
        ("queue", 7),
        ("queue", "q" * 1_000),
        ("active", [1]),
        ("memory_free_bytes", "much"),
        ("memory_free_bytes", -1),
        ("memory_free_bytes", 2**70),
        ("power_watts", []),
    ],
)
def test_a_heartbeat_with_an_absurd_value_is_none(field: str, value: object) -> None:
    assert Heartbeat.decode(dumps({**json.loads(HEARTBEAT.encode()), field: value})) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_never_sent(value: float) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        replace(HEARTBEAT, power_watts=value).encode()


@pytest.mark.parametrize(
    "value", [None, True, "7", [], -1.0, float("nan"), float("inf"), MAX_SECONDS * 2]
)
def test_a_duration_out_of_bounds_is_the_default(value: object) -> None:
    assert bounded_seconds(value, default=3.0) == 3.0


def test_a_duration_in_bounds_is_kept() -> None:
    assert bounded_seconds(0) == 0.0
    assert bounded_seconds(2.5) == 2.5


def test_long_names_are_cut() -> None:
    assert bounded_text("x" * 1_000) == "x" * MAX_NAME_LENGTH
    assert bounded_text(7, "default") == "default"


def test_applications_have_different_keys() -> None:
    names = [name for name in dir(Keys) if isinstance(getattr(Keys, name), property)]

    ours = {getattr(Keys("a"), name) for name in names}
    theirs = {getattr(Keys("b"), name) for name in names}

    assert len(ours) == len(names)
    assert not ours & theirs
    assert all(key.startswith("owl:a:") for key in ours)
