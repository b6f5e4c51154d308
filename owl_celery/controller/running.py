"""What runs on each worker: started by events, ended by outcomes, put right by heartbeats."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, TypeVar

Name = TypeVar("Name")

REMEMBERED_TRIES: Final = 20_000
MISSES_TO_DROP: Final = 2
ADOPT_AFTER_SECONDS: Final = 0.5
ORPHAN_SECONDS: Final = 10.0


class Recent(OrderedDict[Name, float]):
    """The latest names and their times; the oldest are forgotten."""

    def add(self, name: Name, at: float) -> None:
        self[name] = at
        self.move_to_end(name)
        if len(self) > REMEMBERED_TRIES:
            self.popitem(last=False)


@dataclass(slots=True)
class Running:
    """A try that a worker holds.

    Parameters
    ----------
    task_id, key
        The task, and the try; the key is empty when only a heartbeat told of it.
    node
        The worker that runs it.
    seconds
        Predicted service time; None without a prediction.
    since
        Ledger clock at its start.
    misses
        Successive newer heartbeats that did not list it.

    """

    task_id: str
    key: str
    node: str
    seconds: float | None
    since: float
    misses: int = 0


class RunningTasks:
    """The tries that run, by worker.

    Events may come twice, late or in the wrong order, or not at all. A start after its outcome is
    ignored; what two successive heartbeats do not list is dropped; what they list although no
    event told of it is added. Times are of the ledger's clock.

    Examples
    --------
    >>> tasks = RunningTasks()
    >>> tasks.start(Running("t", "t:d:0", "gpu0@a", 4.0, since=1.0))
    True
    >>> tasks.end("gpu0@a", "t", "t:d:0", now=3.0)
    False
    >>> len(tasks)
    0

    """

    def __init__(self) -> None:
        self._by_node: dict[str, dict[str, Running]] = {}
        self._ended: Recent[tuple[str, str]] = Recent()
        self._left: Recent[str] = Recent()
        self._listed: dict[str, dict[str, float]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_node.values()))

    def on(self, node: str) -> Collection[Running]:
        """What runs on a worker."""
        return self._by_node.get(node, {}).values()

    def count_on(self, node: str) -> int:
        """Tasks that a worker holds, those included of which only its last heartbeat tells."""
        tasks = self._by_node.get(node, {})
        only_listed = [
            task_id
            for task_id, first in self._listed.get(node, {}).items()
            if task_id not in tasks and self._ended.get((node, task_id), first) <= first
        ]
        return len(tasks) + len(only_listed)

    def start(self, task: Running) -> bool:
        """Note a start; say whether it is the first that is heard of this try."""
        if (task.node, task.key) not in self._ended:
            self._by_node.setdefault(task.node, {})[task.task_id] = task
        return self._leave(task.key, task.since)

    def end(self, node: str, task_id: str, key: str, now: float) -> bool:
        """Note an outcome; say whether it is the first that is heard of this try."""
        tasks = self._by_node.get(node, {})
        # A late outcome of an earlier try must not end the present one.
        if task_id in tasks and tasks[task_id].key in ("", key):
            del tasks[task_id]
        self._ended.add((node, key), now)
        self._ended.add((node, task_id), now)
        return self._leave(key, now)

    def reconcile(self, node: str, active: Collection[str], beat_at: float) -> None:
        """Compare with a heartbeat that was sent at ``beat_at`` and is newer than the last one."""
        tasks = self._by_node.setdefault(node, {})
        for task in list(tasks.values()):
            if task.task_id in active:
                task.misses = 0
            elif task.since < beat_at:
                task.misses += 1
                if task.misses >= MISSES_TO_DROP:
                    del tasks[task.task_id]
        listed_before, listed = self._listed.get(node, {}), {}
        for task_id in active:
            if task_id in tasks:
                continue
            ended = self._ended.get((node, task_id))
            # A worker lists a task for a moment longer than it runs.
            if ended is not None and beat_at < ended + ADOPT_AFTER_SECONDS:
                continue
            first = listed_before.get(task_id, beat_at)
            if beat_at - first >= ADOPT_AFTER_SECONDS:
                tasks[task_id] = Running(task_id, "", node, None, first)
            else:
                listed[task_id] = first
        self._listed[node] = listed

    def forget_node(self, node: str) -> None:
        """Drop all that ran on a worker that is gone."""
        self._by_node.pop(node, None)
        self._listed.pop(node, None)

    def forget_orphans(self, live_nodes: Collection[str], now: float) -> None:
        """Drop what was started a while ago by workers that send no heartbeat."""
        for node in [node for node in self._by_node if node not in live_nodes]:
            young = {
                task_id: task
                for task_id, task in self._by_node[node].items()
                if now - task.since <= ORPHAN_SECONDS
            }
            if young:
                self._by_node[node] = young
            else:
                self.forget_node(node)

    def _leave(self, key: str, now: float) -> bool:
        """Note that a try has left its queue; say whether that is new."""
        is_new = key not in self._left
        self._left.add(key, now)
        return is_new
