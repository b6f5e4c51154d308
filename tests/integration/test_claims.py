"""Claims on a GPU and a queue, on a real Redis."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from owl_celery.claims import ClaimedError, Claims
from owl_celery.errors import WorkerError
from owl_celery.keys import Keys
from owl_celery.redis_state import RedisState

pytestmark = pytest.mark.integration


@pytest.fixture
def state(redis_url: str) -> Iterator[RedisState]:
    state = RedisState(redis_url, Keys("claims"))
    yield state
    state.client.close()


def claims(
    state: RedisState,
    node: str,
    gpu_uuid: str = "GPU-1",
    queue: str = "gpu.a.0",
    ttl_seconds: float = 30.0,
) -> Claims:
    return Claims(state, gpu_uuid, queue, node, "owner-of-" + node, ttl_seconds)


def test_the_first_worker_takes_both(state: RedisState) -> None:
    claims(state, "gpu0@a").take()

    assert state.client.get(state.keys.gpu_claim("GPU-1")) == "gpu0@a owner-of-gpu0@a"
    assert state.client.get(state.keys.claim("gpu.a.0")) == "gpu0@a owner-of-gpu0@a"
    assert 29_000 < state.client.pttl(state.keys.gpu_claim("GPU-1")) <= 30_000


def test_a_living_owner_keeps_what_it_renews(state: RedisState) -> None:
    first = claims(state, "gpu0@a")
    first.take()
    second = claims(state, "gpu1@a", queue="gpu.a.1")

    with pytest.raises(ClaimedError) as caught:
        second.take(sleep=lambda _: (first.renew(), None)[1])

    assert isinstance(caught.value, WorkerError)
    assert (
        caught.value.message
        == str(caught.value)
        == (
            "GPU GPU-1 already belongs to worker gpu0@a: stop that worker first, or give this one "
            "another GPU by --gpus (celery worker: --gpu)."
        )
    )
    assert not state.client.exists(state.keys.claim("gpu.a.1"))


def test_a_worker_of_another_application_keeps_its_gpu_too(state: RedisState) -> None:
    first = claims(state, "gpu0@a")
    first.take()
    other = RedisState(state.address, Keys("other"))

    with pytest.raises(ClaimedError, match="GPU GPU-1 already belongs to worker gpu0@a"):
        claims(other, "gpu0@b").take(sleep=lambda _: (first.renew(), None)[1])

    claims(other, "gpu0@b", gpu_uuid="GPU-2").take()  # Queues are each application's own.
    other.client.close()


def test_a_dead_owner_is_waited_for_until_its_claims_expire(state: RedisState) -> None:
    claims(state, "gpu0@a", ttl_seconds=0.3).take()
    second = claims(state, "gpu1@a", ttl_seconds=1.0)

    second.take()

    assert str(state.client.get(state.keys.claim("gpu.a.0"))).startswith("gpu1@a ")


def test_the_same_owner_takes_its_own_claims_back_at_once(state: RedisState) -> None:
    claims(state, "gpu0@a").take()

    def never(_: float) -> None:
        raise AssertionError("it waited")

    claims(state, "gpu0@a").take(sleep=never)


def test_a_lost_claim_is_reported_and_not_taken_back_by_force(state: RedisState) -> None:
    first = claims(state, "gpu0@a")
    first.take()
    state.client.set(state.keys.gpu_claim("GPU-1"), "gpu9@b other", px=5_000)

    taken = first.renew()

    assert list(taken) == ["GPU GPU-1"]
    assert taken["GPU GPU-1"][0] == "gpu9@b"
    first.release()
    assert state.client.get(state.keys.gpu_claim("GPU-1")) == "gpu9@b other"
    assert not state.client.exists(state.keys.claim("gpu.a.0"))


def test_of_two_that_start_together_one_gets_both_and_the_other_neither(
    state: RedisState,
) -> None:
    winners: list[str] = []
    losers: list[str] = []

    def start(node: str) -> None:
        mine = claims(state, node)
        try:
            mine.take(sleep=lambda _: None)
        except ClaimedError:
            losers.append(node)
            return
        winners.append(node)
        while not losers:
            mine.renew()

    threads = [threading.Thread(target=start, args=(node,)) for node in ("gpu0@a", "gpu0@b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20.0)

    assert len(winners) == len(losers) == 1
    values = {
        state.client.get(key)
        for key in (state.keys.gpu_claim("GPU-1"), state.keys.claim("gpu.a.0"))
    }
    assert values == {f"{winners[0]} owner-of-{winners[0]}"}


def test_a_plain_worker_claims_nothing(state: RedisState) -> None:
    nothing = claims(state, "celery@a", gpu_uuid="", queue="")

    nothing.take()

    assert nothing.renew() == {}
    assert state.client.keys("*") == []


def test_without_redis_the_worker_starts_all_the_same() -> None:
    gone = RedisState("redis://127.0.0.1:1/0", Keys("claims"))

    claims(gone, "gpu0@a").take()
