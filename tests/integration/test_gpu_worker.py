"""Real Celery workers with a GPU of their own, a real broker, and what happens at their end."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from billiard.exceptions import WorkerLostError
from celery import Celery
from redis import Redis

from owl_celery.embedded import EmbeddedRedis
from owl_celery.gpus import Gpu, fake_gpu
from owl_celery.keys import Keys
from owl_celery.lane import gpu_queue, lane_of_cpu, lane_of_gpu
from owl_celery.testing import wait_until
from owl_celery.wire import Heartbeat
from tests.message_broker import MessageBroker, on_both

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
HOST = socket.gethostname()
KEYS = Keys("gpus")
OWN = gpu_queue(0)
QUIET = ["--without-mingle", "--without-gossip", "--without-heartbeat"]
REAL = lane_of_gpu(Gpu(0, "GPU-test", "V100"))
VIRTUAL = lane_of_gpu(fake_gpu(0, "k80", HOST), is_simulated=True)


class Cluster:
    """Workers on one broker."""

    def __init__(self, broker: MessageBroker, folder: Path) -> None:
        self.broker = broker
        self.folder = folder
        self.redis = Redis.from_url(broker.redis_url, decode_responses=True)
        self.app = Celery("gpus", broker=broker.url, backend=broker.redis_url, set_as_current=False)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, node: str, environment: dict[str, str], *arguments: str) -> str:
        """Start ``celery worker`` and return its node name."""
        name = f"{node}@{HOST}"
        self._run(name, environment, "worker", "-n", name, "-l", "INFO", *QUIET, *arguments)
        return name

    def supervise(self, *arguments: str, **environment: str) -> None:
        """Start ``celery owl worker``, known as ``owl``."""
        self._run("owl", environment, "owl", "worker", *arguments, "--", *QUIET)

    def supervise_gpu(self, environment: dict[str, str]) -> str:
        """Start the supervisor of a GPU that this host does not have; its worker's node name."""
        node = f"gpu0@{HOST}"
        program = """
import json, sys
from owl_celery.supervisor import Supervisor, WorkerPlan
from owl_celery.worker_process import CeleryProcess
if __name__ == "__main__":
    node, environment, *arguments = sys.argv[1:]
    launch = lambda plan: CeleryProcess([*arguments, "-n", node], plan.environment)
    sys.exit(Supervisor([WorkerPlan(node, json.loads(environment))], launch).run())
"""
        arguments = ["-A", "tests.integration.gpu_app", "worker", "-l", "INFO", *QUIET]
        self._popen("owl", {}, "-c", program, node, json.dumps(environment), *arguments)
        return node

    def _run(self, name: str, environment: dict[str, str], *arguments: str) -> None:
        command = ["-m", "celery", "-A", "tests.integration.gpu_app", *arguments]
        self._popen(name, environment, *command)

    def _popen(self, name: str, environment: dict[str, str], *command: str) -> None:
        with (self.folder / name).open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *command],
                env={**os.environ, **self.broker.environment(), **environment},
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def log(self, name: str) -> str:
        return (self.folder / name).read_text()

    def beat(self, node: str) -> Heartbeat | None:
        text = self.redis.get(KEYS.heartbeat(node))
        return None if text is None else Heartbeat.decode(str(text))

    def ready(self, node: str) -> Heartbeat:
        """Wait until a worker takes work."""

        def open_beat() -> Heartbeat | None:
            beat = self.beat(node)
            return beat if beat is not None and not beat.draining else None

        beat = wait_until(open_beat, f"worker {node} to be ready", 60.0)
        assert beat is not None
        return beat

    def hold(self, name: str, queue: str, until: str = "") -> Any:
        return self.app.send_task("tests.integration.gpu_app.hold", (name, until), queue=queue)

    def ran(self) -> list[str]:
        return [str(line).split()[0] for line in self.redis.lrange("ran", 0, -1)]

    def child_pid(self) -> int:
        return int(str(self.redis.lrange("ran", -1, -1)[0]).split()[1])

    def running(self, name: str) -> None:
        wait_until(lambda: name in self.ran(), f"task {name} to run")

    def end(self, name: str, signum: signal.Signals = signal.SIGTERM) -> int:
        process = self.processes[name]
        process.send_signal(signum)
        return process.wait(30.0)

    def close(self) -> None:
        self.redis.set("go", 1)
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGQUIT)
        for process in self.processes.values():
            try:
                process.wait(15.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        # A result that has raised is in a circle, and unsubscribes from Redis when it goes.
        gc.collect()
        self.app.close()
        self.redis.close()


@pytest.fixture
def cluster(message_broker: MessageBroker, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(message_broker, tmp_path)
    yield cluster
    cluster.close()


@on_both
def test_a_gpu_worker_holds_one_task_and_serves_its_own_queue_first(cluster: Cluster) -> None:
    node = cluster.start("gpu0", REAL)
    beat = cluster.ready(node)
    assert (beat.queue, beat.gpu_model, beat.gpu_uuid) == (OWN, "V100", "GPU-test")
    assert (beat.concurrency, beat.active, beat.memory_free_bytes) == (1, (), None)

    first = cluster.hold("first", OWN, until="go")
    cluster.running("first")
    for queue in ("celery", OWN, "celery", OWN):
        cluster.hold(f"{'own' if queue == OWN else 'default'}", queue)

    # Late acknowledgement and a prefetch count of one: the broker knows that one task is held,
    # and keeps all others.
    wait_until(lambda: (cluster.beat(node) or beat).active == (first.id,), "the task in a beat")
    assert cluster.broker.held() == 1
    assert cluster.broker.waiting(OWN) == cluster.broker.waiting("celery") == 2

    cluster.redis.set("go", 1)
    wait_until(lambda: len(cluster.redis.lrange("ended", 0, -1)) == 5, "all five tasks")
    if cluster.broker.is_redis:
        assert cluster.ran() == ["first", "own", "own", "default", "default"]

    seen = cluster.app.send_task("tests.integration.gpu_app.where", queue=OWN).get(timeout=10)
    assert (seen["model"], seen["queue"]) == ("V100", OWN)
    assert seen["cuda_visible_devices"] == "GPU-test"
    # Spawned: a fresh interpreter, not a copy of the parent, that reports starts and outcomes.
    assert "billiard.spawn" in " ".join(psutil.Process(seen["pid"]).cmdline())
    wait_until(lambda: cluster.redis.xlen(KEYS.events) == 2 * 6, "two events of each task")
    wait_until(lambda: cluster.broker.held() == 0, "all acknowledgements")


@on_both
def test_a_killed_child_loses_no_task(cluster: Cluster) -> None:
    node = cluster.start("gpu0", REAL)
    cluster.ready(node)
    result = cluster.hold("poison", OWN, until="go")
    cluster.running("poison")

    os.kill(cluster.child_pid(), signal.SIGKILL)
    wait_until(lambda: cluster.ran() == ["poison", "poison"], "the task to run again", 20.0)
    cluster.redis.set("go", 1)

    assert result.get(timeout=10) == "poison"


@on_both
@pytest.mark.parametrize(("name", "runs"), [("die", 2), ("die_once", 1)])
def test_a_task_that_kills_its_process_ends_with_its_retries(
    cluster: Cluster, name: str, runs: int
) -> None:
    node = cluster.start("gpu0", VIRTUAL)
    cluster.ready(node)

    result = cluster.app.send_task(f"tests.integration.gpu_app.{name}", queue=OWN)

    with pytest.raises(WorkerLostError):
        result.get(timeout=20)
    assert cluster.ran() == ["die"] * runs
    assert cluster.hold("next", OWN).get(timeout=10) == "next"
    wait_until(lambda: cluster.broker.held() == 0, "all acknowledgements")


def test_two_workers_cannot_have_one_gpu(cluster: Cluster) -> None:
    first = cluster.start("gpu0", VIRTUAL)
    cluster.ready(first)
    other = {**VIRTUAL, "OWL_WORKER_OWNER": "another"}

    second = cluster.start("second", other)
    same_name = cluster.processes.pop(first)
    cluster.start("gpu0", {**other, "OWL_GPU_UUID": ""})
    status = [cluster.processes[name].wait(30.0) for name in (second, first)]
    cluster.processes["kept"] = same_name

    assert status == [69, 69]
    assert cluster.log(second).splitlines()[-1] == (
        f"Error: GPU SIM-{HOST}-0 already belongs to worker {first}: stop that worker first, or "
        "give this one another GPU by --gpus (celery worker: --gpu)."
    )
    assert f"Error: Queue {OWN} already belongs to worker {first}: " in cluster.log(first)
    assert "Traceback" not in cluster.log(second) + cluster.log(first)
    cluster.ready(first)


def test_a_worker_started_again_need_not_wait_for_its_own_claims(cluster: Cluster) -> None:
    node = cluster.start("gpu0", VIRTUAL)
    cluster.ready(node)
    cluster.end(node, signal.SIGKILL)
    cluster.redis.delete(KEYS.heartbeat(node))
    assert cluster.redis.exists(KEYS.claim(OWN))

    cluster.start("gpu0", VIRTUAL)

    cluster.ready(node)


@on_both
def test_a_stopped_worker_serves_its_queue_before_it_ends(cluster: Cluster) -> None:
    node = cluster.start("gpu0", VIRTUAL)
    assert cluster.ready(node).utilization_ratio == 0.0
    cluster.hold("first", OWN, until="go")
    cluster.running("first")
    for name in ("second", "third"):
        cluster.hold(name, OWN)
    wait_until(
        lambda: (beat := cluster.beat(node)) is not None and beat.utilization_ratio == 1.0,
        "the virtual GPU to look busy",
        3.0,
    )

    cluster.processes[node].terminate()
    wait_until(
        lambda: (beat := cluster.beat(node)) is not None and beat.draining,
        "the worker to announce that it drains",
        1.0,
    )
    cluster.hold("late", OWN)
    wait_until(
        lambda: "Canceling queue celery" in cluster.log(node), "the default queue to be left"
    )
    cluster.hold("elsewhere", "celery")
    cluster.redis.set("go", 1)

    assert cluster.processes[node].wait(30.0) == 0
    assert cluster.ran() == ["first", "second", "third", "late"]
    assert cluster.broker.waiting(OWN) == 0
    assert cluster.broker.waiting("celery") == 1
    assert cluster.broker.held() == 0
    assert cluster.redis.keys("owl:gpus:hb:*") == cluster.redis.keys("owl:gpus:claim:*") == []
    assert cluster.redis.smembers(KEYS.nodes) == set()


@on_both
def test_what_it_cannot_serve_in_time_goes_to_the_default_queue(cluster: Cluster) -> None:
    node = cluster.start("gpu0", {**VIRTUAL, "OWL_DRAIN_TIMEOUT_SECONDS": "0.5"})
    cluster.ready(node)
    cluster.hold("first", OWN, until="go")
    cluster.running("first")
    for name in ("second", "third"):
        cluster.hold(name, OWN)

    cluster.processes[node].terminate()
    wait_until(lambda: "Warm shutdown" in cluster.log(node), "the warm shutdown")
    cluster.redis.set("go", 1)

    assert cluster.processes[node].wait(30.0) == 0
    assert cluster.ran() == ["first"]
    assert cluster.broker.waiting(OWN) == 0
    assert cluster.broker.waiting("celery") == 2


@on_both
def test_a_drained_worker_serves_what_names_its_queue_and_nothing_else(cluster: Cluster) -> None:
    cluster.redis.sadd(KEYS.drained, OWN)
    node = cluster.start("gpu0", VIRTUAL)
    cluster.ready(node)
    wait_until(
        lambda: "Canceling queue celery" in cluster.log(node), "the default queue to be left"
    )
    waiting = cluster.hold("elsewhere", "celery")
    assert cluster.hold("named", OWN).get(timeout=10) == "named"
    assert cluster.broker.waiting("celery") == 1

    cluster.redis.srem(KEYS.drained, OWN)

    assert waiting.get(timeout=10) == "elsewhere"
    assert cluster.hold("next", "celery").get(timeout=10) == "next"
    assert cluster.end(node) == 0
    assert cluster.ran() == ["named", "elsewhere", "next"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_plain_worker_is_no_candidate(cluster: Cluster, method: str) -> None:
    node = cluster.start("plain", {}, "-c", "2", "--pool-start-method", method)

    beat = cluster.ready(node)

    assert (beat.queue, beat.gpu_model, beat.concurrency) == ("", "", 2)
    assert cluster.redis.keys("owl:gpus:claim:*") == []
    assert cluster.hold("a", "celery").get(timeout=20) == "a"
    wait_until(lambda: cluster.redis.xlen(KEYS.events) == 2, "two events of the task")
    assert cluster.end(node) == 0
    assert cluster.beat(node) is None


@on_both
def test_a_cpu_queue_runs_several_tasks_at_a_time(cluster: Cluster) -> None:
    node = cluster.start("cpu0", lane_of_cpu(2))
    queue = f"cpu.{HOST}.0"
    for name in ("a", "b", "c"):
        cluster.hold(name, queue, until="go")

    wait_until(
        lambda: (beat := cluster.beat(node)) is not None and len(beat.active) == 2,
        "two tasks at a time",
        30.0,
    )

    beat = cluster.beat(node)
    assert beat is not None
    assert (beat.queue, beat.gpu_model, beat.concurrency) == (queue, "cpu", 2)
    assert cluster.broker.waiting(queue) == 1


def test_a_worker_works_on_without_the_state_redis(cluster: Cluster) -> None:
    with EmbeddedRedis() as state:
        node = cluster.start("gpu0", {**VIRTUAL, "OWL_REDIS_URL": state.url})
        with Redis.from_url(state.url) as client:
            wait_until(lambda: client.exists(KEYS.heartbeat(node)), "a heartbeat", 30.0)
    complaint = "owl: Redis does not take the heartbeat"
    wait_until(lambda: complaint in cluster.log(node), "the worker to notice")

    for name in ("a", "b"):
        assert cluster.hold(name, OWN).get(timeout=10) == name

    assert cluster.log(node).count(complaint) == 1
    assert cluster.end(node) == 0


def test_workers_do_not_outlive_a_killed_supervisor(cluster: Cluster) -> None:
    cluster.supervise("--simulate", "k80=1,v100=1")
    nodes = [f"gpu{n}@{HOST}" for n in range(2)]
    assert [cluster.ready(node).gpu_model for node in nodes] == ["k80", "v100"]
    cluster.hold("held", OWN, until="never")
    cluster.running("held")
    processes = psutil.Process(cluster.processes["owl"].pid).children(recursive=True)
    assert len(processes) >= 4

    cluster.end("owl", signal.SIGKILL)

    gone: Callable[[], bool] = lambda: not any(process.is_running() for process in processes)  # noqa: E731
    wait_until(gone, "all workers and their children to end", 20.0)
    # Handed back to the broker rather than held for an hour.
    wait_until(lambda: cluster.broker.held() == 0, "the task to be handed back")
    assert cluster.broker.waiting(OWN) + cluster.broker.waiting("celery") == 1


def test_workers_start_where_nothing_can_be_learned_and_that_is_said(cluster: Cluster) -> None:
    cluster.supervise(
        *("--simulate", "k80=1"),
        OWL_EMBED_CONTROLLER="true",
        CONTINUOUS_LEARNING_STORAGE_PATH="/proc/owl",
    )
    cluster.ready(f"gpu0@{HOST}")
    warning = "Warning: Setting CONTINUOUS_LEARNING_STORAGE_PATH: cannot write /proc/owl"
    wait_until(lambda: warning in cluster.log("owl"), "the warning")

    assert cluster.hold("a", OWN).get(timeout=10) == "a"
    assert cluster.end("owl") == 0
    assert cluster.log("owl").count(warning) == 1


def test_a_supervised_worker_that_is_killed_comes_back(cluster: Cluster) -> None:
    cluster.supervise("--simulate", "k80=1")
    node = f"gpu0@{HOST}"
    cluster.ready(node)
    processes = psutil.Process(cluster.processes["owl"].pid).children(recursive=True)
    # It leads its own group; its child is in that too, and the fork server is in ours.
    worker = next(process for process in processes if os.getpgid(process.pid) == process.pid)
    cluster.hold("held", OWN, until="never")
    cluster.running("held")
    child = psutil.Process(cluster.child_pid())

    worker.kill()
    wait_until(lambda: not child.is_running(), "its child to end with it")
    cluster.redis.delete(KEYS.heartbeat(node))
    cluster.ready(node)

    assert f"{node} | worker ended with status -9; starts again in 1 s" in cluster.log("owl")
    wait_until(lambda: cluster.ran().count("held") == 2, "what it held to run again")
    cluster.redis.set("never", 1)
    assert cluster.end("owl") == 0
    assert cluster.redis.keys("owl:gpus:claim:*") == []


def test_workers_come_back_when_their_fork_server_is_killed(cluster: Cluster) -> None:
    cluster.supervise("--simulate", "k80=1,v100=1")
    nodes = [f"gpu{n}@{HOST}" for n in range(2)]
    for node in nodes:
        cluster.ready(node)
    cluster.hold("held", OWN, until="go")
    cluster.running("held")
    processes = psutil.Process(cluster.processes["owl"].pid).children(recursive=True)
    leaders = [process for process in processes if os.getpgid(process.pid) == process.pid]
    server = leaders[0].parent()
    assert server is not None

    served = server.children(recursive=True)
    server.kill()
    gone: Callable[[], bool] = lambda: not any(process.is_running() for process in served)  # noqa: E731
    wait_until(gone, "its workers and their children to end", 20.0)
    cluster.redis.delete(*map(KEYS.heartbeat, nodes))
    for node in nodes:
        cluster.ready(node)
    cluster.redis.set("go", 1)

    # Handed back by the worker that ended, and taken by one that followed.
    wait_until(lambda: cluster.ran() == ["held", "held"], "the task to run again", 20.0)
    assert cluster.end("owl") == 0


def test_a_process_manager_may_signal_all_processes_at_once(cluster: Cluster) -> None:
    node = cluster.supervise_gpu(REAL)
    cluster.ready(node)
    seen = cluster.app.send_task("tests.integration.gpu_app.where", queue=OWN).get(timeout=20)
    assert seen["cuda_visible_devices"] == "GPU-test"
    assert "billiard.spawn" in " ".join(psutil.Process(seen["pid"]).cmdline())
    cluster.hold("first", OWN, until="go")
    cluster.running("first")
    cluster.hold("second", OWN)

    # Celery's pool children end at SIGTERM, whoever supervises them.
    for process in psutil.Process(cluster.processes["owl"].pid).children(recursive=True):
        if process.pid != seen["pid"]:
            process.terminate()
    cluster.processes["owl"].terminate()
    wait_until(lambda: "Canceling queue celery" in cluster.log("owl"), "the worker to drain")
    cluster.redis.set("go", 1)

    assert cluster.processes["owl"].wait(30.0) == 0
    assert cluster.ran() == ["first", "second"]
    assert cluster.broker.held() == 0
    assert "INFO/MainProcess" in cluster.log("owl")
