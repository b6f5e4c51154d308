"""The processes of one trial: a broker, workers, controllers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from redis import Redis

from owl_celery.gpus import fake_gpu
from owl_celery.lane import lane_of_gpu
from owl_celery.wire import Keys

KEYS = Keys("faults")
QUIET = ("--without-mingle", "--without-gossip", "--without-heartbeat")
START_SECONDS = 300.0


class FaultCluster:
    """Workers on one Redis, plain or routed.

    Parameters
    ----------
    url
        An empty Redis.
    arm
        ``owl``, ``celery`` (its defaults) or ``celery_late`` (acknowledges late, prefetches one).
    workers
        How many, each with one process.
    folder
        Takes logs and the database.

    """

    def __init__(self, url: str, arm: str, workers: int, folder: Path) -> None:
        self.redis = Redis.from_url(url, decode_responses=True)
        self._arm = arm
        self._log = (folder / "log").open("ab")
        self._environment = {
            **os.environ,
            "FAULTS_BROKER_URL": url,
            "FAULTS_ARM": arm,
            "OWL_CONTINUOUS_LEARNING_STORAGE_PATH": str(folder),
        }
        host = socket.gethostname()
        self._lanes = [
            lane_of_gpu(fake_gpu(number, "k80", host), is_simulated=True)
            for number in range(workers)
        ]
        self.workers = [self.start_worker(number) for number in range(workers)]
        self.controllers = [self._start_controller() for _ in range(2 * (arm == "owl"))]

    def start_worker(self, number: int) -> subprocess.Popen[bytes]:
        arguments = ["worker", "-n", f"gpu{number}@faults", "-c", "1", "-l", "INFO", *QUIET]
        if self._arm == "owl":
            return self._start(arguments, self._lanes[number])
        late = {"celery_late": ["--prefetch-multiplier", "1"]}.get(self._arm, [])
        return self._start([*arguments, *late], {})

    def _start_controller(self) -> subprocess.Popen[bytes]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        extra = {"OWL_API_PORT": str(port), "ENABLE_METRICS": "false"}
        return self._start(["owl", "serve"], extra)

    def _start(self, arguments: list[str], extra: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "benchmarks.faults.app", *arguments],
            env={**self._environment, **extra},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def wait_until_ready(self) -> None:
        """Wait until every worker consumes, and a controller leads."""
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if time.monotonic() > deadline:
                raise RuntimeError("The workers did not start.")
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        if self._arm != "owl":
            # Each blocks on the default queue.
            listed = self.redis.client_list()
            return sum(one["cmd"] == "brpop" for one in listed) >= len(self.workers)
        beats = [
            str(self.redis.get(KEYS.heartbeat(f"gpu{number}@faults")) or "")
            for number in range(len(self.workers))
        ]
        is_open = all('"draining":false' in beat for beat in beats)
        return is_open and bool(self.redis.exists(KEYS.health))

    def noted(self, what: str) -> Counter[int]:
        """How often each task started, or finished."""
        return Counter(int(number) for number in self.redis.lrange(what, 0, -1))

    def close(self) -> None:
        processes = [*self.workers, *self.controllers]
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGQUIT if process in self.workers else signal.SIGTERM)
        for process in processes:
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._log.close()
        self.redis.close()
