"""What every store promises, on memory, SQLite and Postgres; and what only a database can break."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
from sqlalchemy import create_engine, text

from benchmarks.postgres import PostgresServer
from owl_celery.aggregates import Aggregates, CurvePoint, Learned, QValue
from owl_celery.book import CURVE_BUCKETS
from owl_celery.errors import StaleCursorError, StoreError
from owl_celery.policies.expected_completion import ExpectedCompletion
from owl_celery.settings import Settings
from owl_celery.store import open_store, sql
from owl_celery.store.base import FIRST_CURSOR, Store
from owl_celery.store.memory import MemoryStore
from owl_celery.store.sql import SqlStore
from owl_celery.tracker import TaskPerformanceTracker
from owl_celery.types import Outcome
from tests.integration import store_child
from tests.learning import CountingPolicy, outcome, stream

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(
    request: pytest.FixtureRequest, tmp_path: Path, postgres_server: PostgresServer
) -> Iterator[str]:
    """Address of a fresh database of either kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/owl.sqlite3"
    else:
        with postgres_server.database() as url:
            yield url


@contextmanager
def opened(url: str, namespace: str = "app") -> Iterator[SqlStore]:
    store = open_store(Settings.load(database_url=url), namespace)
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def sql_store(database_url: str) -> Iterator[SqlStore]:
    with opened(database_url) as store:
        yield store


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, postgres_server: PostgresServer
) -> Iterator[Store]:
    """A fresh store of each kind."""
    if request.param == "memory":
        yield MemoryStore()
    elif request.param == "sqlite":
        with opened(f"sqlite:///{tmp_path}/owl.sqlite3") as sqlite_store:
            yield sqlite_store
    else:
        with postgres_server.database() as url, opened(url) as postgres_store:
            yield postgres_store


def commit(store: Store, expected: str = FIRST_CURSOR, cursor: str = "1-0", **values: Any) -> None:
    usual: dict[str, Any] = {
        "outcomes": (),
        "policy_name": "counting",
        "policy_state": None,
        "aggregates": Aggregates(),
    }
    store.commit(expected_cursor=expected, cursor=cursor, **usual | values)


def learn(store: Store, tracker: TaskPerformanceTracker, outcomes: Sequence[Outcome]) -> None:
    """Learn and commit as a controller does; the cursor is the number of outcomes so far."""
    cursor = store.load().cursor
    known = store.known([o.key for o in outcomes])
    tracker.record(outcomes, now=0.0, known=known)
    pending = tracker.take()
    store.commit(
        expected_cursor=cursor,
        cursor=f"{store_child.position(cursor) + len(outcomes)}-0",
        outcomes=pending.outcomes,
        policy_name=tracker.policy.name,
        policy_state=tracker.policy.state(),
        aggregates=pending.aggregates,
    )


def in_order(rows: Aggregates) -> list[list[Any]]:
    return [sorted(getattr(rows, name), key=repr) for name in Aggregates.__slots__]


def of_tracker(tracker: TaskPerformanceTracker) -> Aggregates:
    return Aggregates(
        tracker.task_types,
        tracker.workers,
        tracker.assignments,
        tracker.services,
        tracker.algorithms,
        tracker.curve,
    )


class TestContract:
    """The same for the fake and for both databases."""

    def test_a_fresh_store_has_learned_nothing(self, store: Store) -> None:
        assert store.load() == Learned(FIRST_CURSOR, (), Aggregates(*((),) * 6))
        assert store.known(["a:b:0"]) == set()
        assert store.recent(10) == []
        assert store.q_values() == []
        assert store.prune(0) == 0

    def test_what_is_committed_is_loaded_bit_for_bit(self, store: Store) -> None:
        tracker = TaskPerformanceTracker(CountingPolicy())
        outcomes = stream(300)
        learn(store, tracker, outcomes[:170])
        learn(store, tracker, outcomes[170:])
        learned = store.load()
        assert learned.cursor == "300-0"
        assert (learned.policy_name, learned.policy_state) == ("counting", tracker.policy.state())
        assert in_order(learned.aggregates) == in_order(of_tracker(tracker))
        assert store.recent(1_000) == outcomes

    @pytest.mark.parametrize("number", [5e-324, 1.7976931348623157e308, 0.1 + 0.2, math.pi, 2e-9])
    def test_a_number_comes_back_as_it_was(self, store: Store, number: float) -> None:
        commit(store, policy_state={"x": number}, outcomes=[outcome(service_seconds=number)])
        assert store.load().policy_state == {"x": number}
        assert store.recent(1)[0].service_seconds == number

    def test_names_of_any_script_come_back(self, store: Store) -> None:
        strange = outcome(task_type="обучение 🦉'); DROP TABLE owl_outcome; --\\", error="\x7f\t\n")
        commit(store, outcomes=[strange], policy_state={"🦉\0": "\ud800"})
        assert store.recent(1) == [strange]
        assert store.load().policy_state == {"🦉\0": "\ud800"}
        assert store.known([strange.key, "a\0b", "\ud800"]) == {strange.key}

    def test_a_stale_cursor_writes_nothing(self, store: Store) -> None:
        commit(store, policy_state={"x": 1})
        before = store.load()
        for expected in (FIRST_CURSOR, "2-0", ""):
            with pytest.raises(StaleCursorError):
                commit(store, expected, "9-0", outcomes=[outcome()], policy_state={"x": 2})
        assert store.load() == before
        assert store.recent(1) == []

    def test_the_cursor_may_stay(self, store: Store) -> None:
        commit(store, policy_state={"x": 1})
        commit(store, "1-0", "1-0", policy_state={"x": 2})
        assert store.load().policy_state == {"x": 2}

    def test_the_cursor_may_return_to_the_begin(self, store: Store) -> None:
        commit(store)
        commit(store, "1-0", FIRST_CURSOR)
        commit(store, FIRST_CURSOR, "2-0")
        assert store.load().cursor == "2-0"

    def test_no_state_leaves_the_saved_one(self, store: Store) -> None:
        commit(store, policy_state={"x": 1})
        commit(store, "1-0", "2-0", policy_state=None)
        assert store.load().policy_state == {"x": 1}

    def test_the_state_of_each_policy_and_format_is_kept(self, store: Store) -> None:
        commit(store, cursor="1-0", policy_name="a", policy_state={"format": 2})
        commit(store, "1-0", "2-0", policy_name="a", policy_state={"format": 1})
        commit(store, "2-0", "3-0", policy_name="b", policy_state={})
        commit(store, "3-0", "4-0", policy_name="a", policy_state={"format": 2, "x": 1})
        found = [(saved.name, saved.format) for saved in store.load().policies]
        assert found == [("a", 2), ("b", 1), ("a", 1)]

    def test_a_state_that_is_no_json_is_refused(self, store: Store) -> None:
        for state in ({"x": math.nan}, {"x": object()}):
            with pytest.raises(StoreError, match="policy counting"):
                commit(store, policy_state=state)
        assert store.load().cursor == FIRST_CURSOR

    def test_a_saved_state_is_a_copy(self, store: Store) -> None:
        state = {"x": [1]}
        commit(store, policy_state=state)
        state["x"].append(2)
        assert store.load().policy_state == {"x": [1]}

    def test_a_known_key_is_kept_once(self, store: Store) -> None:
        first, again = outcome(0), outcome(0, service_seconds=9.0)
        commit(store, outcomes=[first, outcome(1)])
        commit(store, "1-0", "2-0", outcomes=[again, outcome(2)])
        assert store.recent(10) == [first, outcome(1), outcome(2)]

    def test_known_finds_keys_among_many(self, store: Store) -> None:
        outcomes = [outcome(n) for n in range(1_500)]
        commit(store, outcomes=outcomes)
        asked = [outcome(n).key for n in range(1_000, 3_000)]
        assert store.known(asked) == {o.key for o in outcomes[1_000:]}
        assert store.known([]) == set()

    def test_recent_gives_the_latest(self, store: Store) -> None:
        commit(store, outcomes=[outcome(n) for n in range(10)])
        assert store.recent(3) == [outcome(n) for n in (7, 8, 9)]
        assert store.recent(0) == []

    def test_the_version_grows_with_every_commit(self, store: Store) -> None:
        assert store.version() == 0
        commit(store)
        commit(store, "1-0", "1-0")
        assert store.version() == 2

    def test_aggregates_are_those_that_are_loaded(self, store: Store) -> None:
        assert store.aggregates() == Aggregates()
        learn(store, TaskPerformanceTracker(CountingPolicy()), stream(200))
        assert in_order(store.aggregates()) == in_order(store.load().aggregates)

    def test_outcomes_come_in_pages_latest_first(self, store: Store) -> None:
        outcomes = stream(25)
        commit(store, outcomes=outcomes[:20])
        commit(store, "1-0", "2-0", outcomes=[outcomes[3], *outcomes[20:]])
        found: list[Outcome] = []
        before = None
        while page := store.outcome_page(10, before):
            assert len(page) <= 10
            found += [numbered.outcome for numbered in page]
            before = page[-1].number
        assert found == outcomes[::-1]
        assert store.outcome_page(0) == []
        assert len(store.outcome_page(100, before=2**80)) == 25

    def test_outcomes_of_one_type_or_task(self, store: Store) -> None:
        retried = [outcome(number, task_id="t", attempt=number % 3) for number in range(3)]
        others = [outcome(number, task_type="other") for number in range(5)]
        commit(store, outcomes=[*retried, *others])
        of_type = store.outcome_page(10, task_type="train")
        assert [numbered.outcome for numbered in of_type] == retried[::-1]
        assert store.outcome_page(10, before=of_type[0].number, task_type="other") == []
        of_task = store.outcomes_of_task("t", 2)
        assert [numbered.outcome for numbered in of_task] == retried[:0:-1]
        for odd in ("", "nobody", "nul\0", "half \ud800", "%", "x" * 5000):
            assert store.outcomes_of_task(odd, 10) == store.outcome_page(10, None, odd) == []

    @pytest.mark.parametrize("keep_count", [0, 1, 30, 100, 1_000])
    def test_prune_keeps_the_latest_outcomes(self, store: Store, keep_count: int) -> None:
        commit(store, outcomes=[outcome(n) for n in range(60)])
        commit(store, "1-0", "2-0", outcomes=[outcome(n) for n in range(60, 100)])
        assert store.prune(keep_count) == max(100 - keep_count, 0)
        assert store.recent(1_000) == [outcome(n) for n in range(max(100 - keep_count, 0), 100)]
        assert store.prune(keep_count) == 0

    def test_what_is_pruned_stays_counted(self, store: Store) -> None:
        tracker = TaskPerformanceTracker(CountingPolicy())
        learn(store, tracker, stream(100))
        before = store.load()
        store.prune(0)
        assert store.load() == before

    def test_prune_keeps_the_latest_buckets_of_the_curve(self, store: Store) -> None:
        kept = CURVE_BUCKETS[60]
        minutes = [
            CurvePoint(algorithm=name, bucket_seconds=60, started_at=60 * n)
            for n in range(kept + 5)
            for name in ("a", "b")
        ]
        hour = CurvePoint(algorithm="a", bucket_seconds=3_600, started_at=0)
        commit(store, aggregates=Aggregates(curve=[*minutes, hour]))
        store.prune(0)
        assert in_order(store.load().aggregates) == in_order(
            Aggregates(curve=[*minutes[10:], hour])
        )

    def test_the_q_table_is_written_by_entry(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        entry = QValue("train", "gpu.a.0", "V100", 2.5, 1.5, 7, 100.0)
        other = replace(entry, queue="gpu.a.1", changed_at=50.0)
        commit(store, q_values=[other, entry])
        newer = replace(entry, seconds=3.5, changed_at=101.0)
        commit(store, "1-0", "2-0", q_values=[newer])
        assert store.q_values() == [newer, other]
        for module in (sql, sys.modules[MemoryStore.__module__]):
            monkeypatch.setattr(module, "MAX_Q_VALUES", 1)
        store.prune(0)
        assert store.q_values() == [newer]

    def test_a_row_replaces_only_its_own(self, store: Store) -> None:
        tracker = TaskPerformanceTracker(CountingPolicy())
        learn(store, tracker, [outcome(0, task_type="a"), outcome(1, task_type="b")])
        learn(store, tracker, [outcome(2, task_type="a")])
        found = {row.task_type: row.tries for row in store.load().aggregates.task_types}
        assert found == {"a": 2, "b": 1}

    def test_what_was_given_and_loaded_may_be_changed(self, store: Store) -> None:
        tracker = TaskPerformanceTracker(CountingPolicy())
        learn(store, tracker, [outcome(0)])
        store.load().aggregates.task_types[0].successes = 99
        assert store.load().aggregates.task_types[0].successes == 1

    def test_a_failure_between_learning_and_commit_counts_nothing_twice(self, store: Store) -> None:
        outcomes, rng = stream(400), random.Random(1)
        tracker = TaskPerformanceTracker(CountingPolicy())
        while (start := store_child.position(store.load().cursor)) < len(outcomes):
            batch = outcomes[start : start + rng.randrange(1, 30)]
            if rng.random() < 0.4:
                tracker.record(batch, now=0.0)
                tracker = TaskPerformanceTracker(CountingPolicy())
                tracker.restore(store.load())
            else:
                learn(store, tracker, batch)
        assert_learned_once(store, outcomes)

    def test_a_report_repeated_after_a_restart_counts_once(self, store: Store) -> None:
        outcomes = stream(100)
        learn(store, TaskPerformanceTracker(CountingPolicy()), outcomes)
        tracker = TaskPerformanceTracker(CountingPolicy())
        tracker.restore(store.load())
        learn(store, tracker, outcomes[20:60])
        learned = store.load()
        assert learned.cursor == "140-0"
        assert sum(row.tries + row.revoked for row in learned.aggregates.task_types) == 100

    def test_use_after_close(self, store: Store) -> None:
        commit(store)
        store.close()
        commit(store, "1-0", "2-0")
        store.close()
        store.close()


def assert_learned_once(store: Store, outcomes: Sequence[Outcome]) -> None:
    """Check that the store is as if the outcomes had been learned in one go."""
    tracker = TaskPerformanceTracker(CountingPolicy())
    tracker.record(outcomes, now=0.0)
    learned = store.load()
    assert learned.cursor == f"{len(outcomes)}-0"
    assert sum(row.tries + row.revoked for row in learned.aggregates.task_types) == len(outcomes)
    assert learned.policy_state == tracker.policy.state()
    assert in_order(learned.aggregates) == in_order(of_tracker(tracker))
    assert store.recent(len(outcomes) + 1) == list(outcomes)


class TestDatabase:
    """What both databases promise."""

    def test_a_restart_restores_the_policy_and_the_aggregates(self, database_url: str) -> None:
        outcomes = stream(500)
        before = TaskPerformanceTracker(ExpectedCompletion(seed=4))
        with opened(database_url) as store:
            learn(store, before, outcomes[:300])
        after = TaskPerformanceTracker(ExpectedCompletion(seed=5))
        with opened(database_url) as store:
            after.restore(store.load())
            assert after.policy.state() == before.policy.state()
            assert in_order(of_tracker(after)) == in_order(of_tracker(before))
            learn(store, after, outcomes[300:])
        before.record(outcomes[300:], now=0.0)
        assert after.policy.state() == before.policy.state()
        assert after.policy.snapshot() == before.policy.snapshot()
        assert in_order(of_tracker(after)) == in_order(of_tracker(before))

    def test_applications_in_one_database_are_apart(self, database_url: str) -> None:
        with opened(database_url, "one") as one, opened(database_url, "two") as two:
            learn(one, TaskPerformanceTracker(CountingPolicy()), stream(50, seed=1))
            learn(two, TaskPerformanceTracker(CountingPolicy()), stream(30, seed=2))
            one.prune(0)
            assert_learned_once(two, stream(30, seed=2))
            assert one.recent(10) == []

    def test_the_namespace_of_the_settings_is_used(self, database_url: str) -> None:
        settings = Settings.load(database_url=database_url, namespace="mine")
        store = open_store(settings)
        assert store.namespace == "mine"

    def test_of_concurrent_committers_one_moves_on(self, database_url: str) -> None:
        barrier = threading.Barrier(4)
        results: list[str] = []

        def race(number: int) -> None:
            with opened(database_url) as store:
                store.load()
                for step in range(10):
                    barrier.wait(timeout=60)
                    try:
                        commit(
                            store,
                            f"{step}-0" if step else FIRST_CURSOR,
                            f"{step + 1}-0",
                            outcomes=[outcome(step, worker_id=str(number))],
                            policy_state={"step": step, "number": number},
                        )
                        results.append("moved")
                    except StaleCursorError:
                        results.append("stale")
                    barrier.wait(timeout=60)

        threads = [threading.Thread(target=race, args=(n,), daemon=True) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
        assert (results.count("moved"), results.count("stale")) == (10, 30)
        with opened(database_url) as store:
            assert store.load().cursor == "10-0"
            assert len(store.recent(100)) == 10

    @pytest.mark.slow
    def test_each_outcome_counts_once_over_kills(self, database_url: str) -> None:
        rng = random.Random(7)
        kills = 0
        while True:
            with child("learn", database_url) as process:
                if kills < 5:
                    read_lines(process, rng.randrange(1, 30))
                    process.kill()
                    kills += 1
                else:
                    process.communicate(timeout=120)
                    break
        assert process.returncode == 0
        with opened(database_url) as store:
            assert_learned_once(store, stream(store_child.COUNT))

    @pytest.mark.slow
    def test_two_controllers_at_once_count_each_outcome_once(self, database_url: str) -> None:
        with child("learn", database_url) as one, child("learn", database_url) as two:
            for process in (one, two):
                process.communicate(timeout=120)
        assert [one.returncode, two.returncode] == [0, 0]
        with opened(database_url) as store:
            assert_learned_once(store, stream(store_child.COUNT))

    def test_several_processes_open_a_fresh_database_at_once(self, database_url: str) -> None:
        processes = [start_child("open", database_url) for _ in range(4)]
        try:
            for process in processes:
                stream_of(process.stdin).write("go")
                stream_of(process.stdin).flush()
            said = [process.communicate(timeout=120)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        assert [process.returncode for process in processes] == [0] * 4
        assert said == [f"{FIRST_CURSOR}\n"] * 4

    def test_a_fork_does_not_share_a_connection(self, sql_store: SqlStore) -> None:
        commit(sql_store)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            said = b"failed"
            try:
                commit(sql_store, "1-0", "2-0")
                sql_store.close()
                said = b"done"
            finally:
                os.write(writer, said)
                os._exit(0)
        os.waitpid(pid, 0)
        assert os.read(reader, 10) == b"done"
        os.close(reader)
        os.close(writer)
        commit(sql_store, "2-0", "3-0")

    def test_a_dropped_table_is_an_error_in_a_sentence(self, sql_store: SqlStore) -> None:
        sql_store.load()
        drop(sql_store, "owl_task_type")
        with pytest.raises(StoreError, match="owl_task_type"):
            sql_store.load()

    def test_a_damaged_state_is_passed_over(
        self, sql_store: SqlStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        commit(sql_store, policy_name="good", policy_state={"x": 1})
        commit(sql_store, "1-0", "2-0", policy_name="bad", policy_state={"x": 2})
        execute(sql_store, "UPDATE owl_policy SET state = '{\"x\":' WHERE name = 'bad'")
        assert [saved.name for saved in sql_store.load().policies] == ["good"]
        assert "policy bad" in caplog.text

    def test_a_value_that_does_not_fit_is_an_error_in_a_sentence(self, sql_store: SqlStore) -> None:
        for values in ({"queue": "a\0\ud800"}, {"peak_memory_bytes": 2**70}):
            with pytest.raises(StoreError, match="A value does not fit the database"):
                commit(sql_store, outcomes=[outcome(**values)])
        assert sql_store.load().cursor == FIRST_CURSOR


def execute(store: SqlStore, statement: str) -> None:
    """Do to a database what somebody else might."""
    engine = create_engine(store.database.url)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def drop(store: SqlStore, table: str) -> None:
    execute(store, f"DROP TABLE {table}")


def start_child(job: str, url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.integration.store_child", job, url],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextmanager
def child(job: str, url: str) -> Iterator[subprocess.Popen[str]]:
    with start_child(job, url) as process:
        try:
            yield process
        finally:
            process.kill()


def stream_of(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def read_lines(process: subprocess.Popen[str], count: int) -> None:
    """Wait until the child has said so many lines, or has ended."""
    for _ in range(count):
        if not stream_of(process.stdout).readline():
            return
