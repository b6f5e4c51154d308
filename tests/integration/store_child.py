"""A process that uses a store, to be killed, raced and restarted: ``python -m ... JOB URL``."""

from __future__ import annotations

import random
import sys

from owl_celery.errors import StaleCursorError
from owl_celery.settings import Settings
from owl_celery.store import open_store
from owl_celery.store.base import Store
from owl_celery.tracker import TaskPerformanceTracker
from tests.learning import CountingPolicy, stream

COUNT = 800


def position(cursor: str) -> int:
    """Outcomes of the stream before a cursor."""
    return int(cursor.partition("-")[0])


def learn(store: Store) -> None:
    """Be a controller: learn the stream from where the store is, saying each step, to its end."""
    outcomes = stream(COUNT)
    rng = random.Random()
    while True:
        tracker = TaskPerformanceTracker(CountingPolicy())
        learned = store.load()
        tracker.restore(learned)
        cursor = learned.cursor
        try:
            while (start := position(cursor)) < COUNT:
                batch = outcomes[start : start + rng.randrange(1, 25)]
                tracker.record(batch, now=0.0, known=store.known([o.key for o in batch]))
                print("learned", flush=True)
                pending = tracker.take()
                moved = f"{start + len(batch)}-0"
                store.commit(
                    expected_cursor=cursor,
                    cursor=moved,
                    outcomes=pending.outcomes,
                    policy_name=tracker.policy.name,
                    policy_state=tracker.policy.state(),
                    aggregates=pending.aggregates,
                )
                cursor = moved
                print("committed", flush=True)
            return
        except StaleCursorError:
            print("stale", flush=True)


def main() -> None:
    job, url = sys.argv[1:]
    store = open_store(Settings.load(database_url=url), "app")
    if job == "open":
        sys.stdin.read(1)
        print(store.load().cursor, flush=True)
    else:
        learn(store)
    store.close()


if __name__ == "__main__":
    main()
