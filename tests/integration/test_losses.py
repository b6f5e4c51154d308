"""Real workers with tasks that kill them, and tasks that want more memory than there is."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from redis import Redis

from owl_celery.controller.placing import Placer
from owl_celery.gpus import fake_gpu
from owl_celery.lane import gpu_queue, lane_of_gpu
from owl_celery.losses import ASK_AGAIN_SECONDS, Losses, counted
from owl_celery.memory_errors import KernelKills, is_out_of_memory
from owl_celery.redis_address import RedisAddress
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings
from owl_celery.testing import wait_until
from owl_celery.wire import Heartbeat, TaskHeader
from tests.integration.test_dead_workers import Watched
from tests.integration.test_gpu_worker import HOST, KEYS, OWN, VIRTUAL, Cluster
from tests.message_broker import MessageBroker, on_both

pytestmark = pytest.mark.integration

TWICE = {**VIRTUAL, "OWL_MAX_WORKER_LOSSES": "2"}
DIE = "tests.integration.gpu_app.die"
FILL = "tests.integration.gpu_app.fill"
LARGE = gpu_queue(1)


@pytest.fixture
def cluster(message_broker: MessageBroker, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(message_broker, tmp_path)
    yield cluster
    cluster.close()


def failures(cluster: Cluster) -> list[str]:
    return [str(line) for line in cluster.redis.lrange("failures", 0, -1)]


def test_tasks_that_kill_their_process_are_given_up_and_the_worker_works_on(
    cluster: Cluster,
) -> None:
    node = cluster.start("gpu0", TWICE)
    cluster.ready(node)
    # By being sent again without end, and by going back to the queue.
    for name in ("die_for_ever", "die_and_return"):
        cluster.redis.delete("ran")
        result = cluster.app.send_task(f"tests.integration.gpu_app.{name}", queue=OWN)

        with pytest.raises(WorkerLostError, match=r"died 2 times .* \(OWL_MAX_WORKER_LOSSES\)"):
            result.get(timeout=30)
        assert cluster.ran() == ["die", "die"]
        told = f"{result.id} WorkerLostError"
        wait_until(lambda: told in failures(cluster), "the signal task_failure")  # noqa: B023
    # Celery would end a worker whose task raises MemoryError.
    exhausted = cluster.app.send_task("tests.integration.gpu_app.exhaust", queue=OWN)
    with pytest.raises(MemoryError, match="Unable to allocate"):
        exhausted.get(timeout=10)

    assert cluster.hold("next", OWN).get(timeout=10) == "next"
    wait_until(lambda: cluster.broker.held() == 0, "all acknowledgements")
    wait_until(lambda: not cluster.redis.keys("owl:gpus:lost:*"), "nothing to be counted")


@on_both
def test_a_task_that_kills_its_worker_is_given_up(cluster: Cluster) -> None:
    # Redis hands back what was held of the default queue after an hour.
    queue = OWN if cluster.broker.is_redis else "celery"
    task = cluster.app.send_task("tests.integration.gpu_app.kill_worker", queue=queue)
    for _ in range(2):
        node = cluster.start("gpu0", TWICE)
        cluster.processes[node].wait(60.0)

    cluster.start("gpu0", TWICE)

    with pytest.raises(WorkerLostError, match="died 2 times"):
        task.get(timeout=60)
    assert cluster.ran() == ["kill", "kill"]
    assert cluster.hold("next", OWN).get(timeout=10) == "next"
    wait_until(lambda: cluster.broker.held() == 0, "all acknowledgements")


def test_a_stop_is_no_loss(cluster: Cluster) -> None:
    node = cluster.start("gpu0", VIRTUAL)
    cluster.ready(node)
    held = cluster.hold("held", OWN, until="never")
    key = KEYS.lost(held.id)
    cluster.running("held")
    wait_until(lambda: cluster.redis.get(key) == "1", "the try to be told")
    cluster.processes[node].send_signal(signal.SIGQUIT)  # It hands the task back.
    cluster.processes[node].wait(30.0)

    assert cluster.redis.get(key) == "0"
    cluster.start("gpu0", VIRTUAL)
    wait_until(lambda: cluster.ran() == ["held", "held"], "the task to run again", 30.0)
    wait_until(lambda: cluster.redis.get(key) == "1", "the try to be told")
    cluster.redis.set("never", 1)
    assert held.get(timeout=10) == "held"
    wait_until(lambda: not cluster.redis.exists(key), "the count to go")


@pytest.mark.parametrize("kills", [0, 1])
def test_a_process_that_the_kernel_killed_ran_out_of_memory(
    redis_url: str, tmp_path: Path, kills: int
) -> None:
    counter = tmp_path / "vmstat"
    counter.write_text("oom_kill 7\n")
    seen: list[bool] = []

    class Request:
        """The part of Celery's that is called."""

        id = "a"
        task = SimpleNamespace(acks_late=True)
        delivery_info: ClassVar[dict[str, str]] = {"routing_key": OWN}
        _already_cancelled = _already_revoked = False

        def on_accepted(self, pid: int, time_accepted: float) -> None:
            counter.write_text(f"oom_kill {7 + kills}\n")

        def on_failure(self, *_: Any) -> None:
            # As the router looks at it when the task is sent again.
            seen.append(is_out_of_memory(sys.exc_info()[1]))

    losses = Losses(RedisState(redis_url, KEYS), 3, lambda: None)
    request = counted(Request, losses, KernelKills([str(counter)]))()
    request.on_accepted(1, 0.0)
    try:
        raise WorkerLostError("Worker exited prematurely: signal 9 (SIGKILL) Job: 0.")
    except WorkerLostError:
        lost = ExceptionInfo()
    request.on_failure(lost)

    assert seen == [bool(kills)]
    assert losses.count("a", "gpu0@a") == 1


def test_a_try_that_another_worker_still_runs_is_not_lost(redis_url: str) -> None:
    losses = Losses(RedisState(redis_url, KEYS), 2, lambda: None, may_run_on=True)
    for _ in range(2):
        losses.lost("slow")
    assert losses.count("slow", "gpu0@a") == 2
    with Redis.from_url(redis_url) as client:
        for node in ("gpu0@a", "gpu1@a"):
            client.sadd(KEYS.nodes, node)
        beat = Heartbeat("gpu0@a", active=("slow",)).encode()
        client.set(KEYS.heartbeat("gpu0@a"), beat)
    # The first is the one that is about to run it.
    assert losses.count("slow", "gpu0@a") == 2
    assert losses.count("slow", "gpu1@a") == 0
    # On RabbitMQ it is the last heartbeat of a worker that has just died.
    assert Losses(RedisState(redis_url, KEYS), 2, lambda: None).count("slow", "gpu1@a") == 2


def test_counts_without_redis_are_none_and_nothing_fails(redis_url: str) -> None:
    losses = Losses(RedisState("redis://127.0.0.1:1/0", KEYS), 3, lambda: None)
    losses.begin("a")
    assert losses.lost("a") == losses.count("a", "gpu0@a") == 0
    losses.begin("b")
    losses.hand_back()
    with Redis.from_url(redis_url, decode_responses=True) as client:
        off = Losses(RedisState(redis_url, KEYS), 0, lambda: None)
        off.begin("a")
        assert off.lost("a") == off.count("a", "gpu0@a") == 0
        assert client.keys("*") == []


def test_what_the_broker_delivers_again_after_a_lost_connection_is_not_lost(
    redis_url: str,
) -> None:
    here, there = (Losses(RedisState(redis_url, KEYS), 3, lambda: None) for _ in range(2))

    def beat(losses: Losses) -> None:
        with Redis.from_url(redis_url).pipeline(transaction=False) as pipe:
            losses.write(pipe)
            pipe.execute()

    # Three tries run at a time, since nobody can stop the first two.
    for losses in (here, there, here):
        losses.begin("a")
        beat(losses)
        losses.disconnected()
        beat(losses)
        assert losses.count("a", "gpu0@a") == 0
    with Redis.from_url(redis_url) as client:
        assert 0 < int(client.ttl(KEYS.lost("a"))) <= 86_400
    # A process that is killed in one of them counts all the same.
    assert there.lost("a") == 1


def test_a_redis_that_does_not_answer_is_not_asked_for_each_task(redis_url: str) -> None:
    now = [0.0]
    state = RedisState("redis://127.0.0.1:1/0", KEYS)
    losses = Losses(state, 3, lambda: None, clock=lambda: now[0])
    assert losses.lost("a") == 0
    state.address = RedisAddress.of_url(redis_url)
    state.forget()

    assert losses.lost("a") == 0
    now[0] = ASK_AGAIN_SECONDS
    assert losses.lost("a") == 1


def test_retries_of_what_ran_out_of_memory_go_where_there_is_more(
    message_broker: MessageBroker, tmp_path: Path
) -> None:
    watched = Watched(message_broker, tmp_path)
    try:
        run_out_of_memory(watched)
    finally:
        watched.close()


def run_out_of_memory(watched: Watched) -> None:
    lanes = [
        lane_of_gpu(fake_gpu(index, model, HOST), is_simulated=True)
        for index, model in enumerate(("k80", "v100"))
    ]
    nodes = [watched.start(f"gpu{index}", lane) for index, lane in enumerate(lanes)]
    for node in nodes:
        watched.ready(node)
    watched.teach()
    wait_until(lambda: all(watched.leader.load.fleet().free_memory_bytes > 0), "the readings")
    wait_until(lambda: watched.leader.load.fleet().open_count == 2, "both to be open")
    header = TaskHeader("d-fill", OWN, "q_learning", FILL, 1.7e9, service_seconds=1.0)

    def filled(headers: dict[str, Any], *how: bool) -> tuple[Any, list[str]]:
        watched.redis.delete("filled")
        result = watched.app.send_task(FILL, (14, *how), queue=OWN, headers=headers)
        value = result.get(timeout=30, propagate=False)
        return value, [str(queue) for queue in watched.redis.lrange("filled", 0, -1)]

    # The large one has never been given such a task; k80 is not asked again.
    assert filled({"owl": header.encode()}) == ([LARGE, "k80"], [OWN, LARGE])
    # By `self.retry`, and from a message whose headers another library has nested.
    nested = {"headers": {"sentry-trace": "1", "owl": header.encode()}}
    assert filled(nested, False) == ([LARGE, "k80"], [OWN, LARGE])
    # Who names a queue stays there, to the end.
    named = header._replace(algorithm="user")
    error, queues = filled({"owl": named.encode()}, False)
    assert isinstance(error, RuntimeError)
    assert queues == [OWN, OWN]

    # A process that was killed can tell nobody: its parent sends the task again, by the policy.
    died = watched.app.send_task(DIE, queue=OWN, headers={"owl": header.encode()})
    assert isinstance(died.get(timeout=30, propagate=False), WorkerLostError)
    by = [str(line).split()[2] for line in watched.redis.lrange("ran", 0, -1)]
    assert by[0] == "q_learning"
    assert by[1:] in (["q_learning"], ["expected_completion"])

    # So it goes with later tasks of the type from the first try on, and with no others.
    def placed(task_type: str) -> set[Any]:
        knowledge = str(watched.redis.get(KEYS.knowledge))
        placer = Placer(Settings.load(seed=1), "celery")
        found = set()
        for number in range(40):
            placer.prepare(watched.leader.load, knowledge, float(number))
            found.add(placer.place(header._replace(task_type=task_type)))
        return found

    wait_until(lambda: placed(FILL) == {LARGE}, "the shortage to be known")
    assert OWN in placed("another")
