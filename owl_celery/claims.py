"""Who owns a GPU and a queue: one worker each, for as long as it beats."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import click
from redis.exceptions import RedisError

from owl_celery.errors import CLAIMED_EXIT_STATUS, WorkerError
from owl_celery.redis_state import RedisState

# Takes or renews what is free or ours; returns name, owner and remaining milliseconds of the rest.
TAKE: Final = """
local taken = {}
for i, key in ipairs(KEYS) do
  local owner = redis.call('GET', key)
  if owner and owner ~= ARGV[1] then
    taken[#taken + 1] = {ARGV[i + 2], owner, redis.call('PTTL', key)}
  else
    redis.call('SET', key, ARGV[1], 'PX', ARGV[2])
  end
end
return taken
"""
RELEASE: Final = """
for _, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[1] then redis.call('DEL', key) end
end
"""
POLL_SECONDS: Final = 0.1


class ClaimedError(WorkerError, click.ClickException):
    """Another worker owns the GPU or the queue.

    Celery's command line prints it as one sentence and ends with ``exit_code``.
    """

    exit_code = CLAIMED_EXIT_STATUS


class Claims:
    """Claims of one worker on its GPU and its queue.

    Parameters
    ----------
    state
        Redis that all workers share, of other applications too.
    gpu_uuid, queue
        What is claimed; an empty one is not.
    node
        Celery node name of the worker.
    owner
        Tells two workers of the same node name apart; one that is started again by the same
        supervisor keeps it, and so need not wait for its own old claim to expire.
    ttl_seconds
        How long a claim lasts unrenewed.

    Attributes
    ----------
    value
        What a claim of this worker says.

    """

    def __init__(
        self,
        state: RedisState,
        gpu_uuid: str,
        queue: str,
        node: str,
        owner: str,
        ttl_seconds: float,
    ) -> None:
        named = {}
        if gpu_uuid:
            named[f"GPU {gpu_uuid}"] = state.keys.gpu_claim(gpu_uuid)
        if queue:
            named[f"Queue {queue}"] = state.keys.claim(queue)
        self._state = state
        self._resources, self._keys = list(named), list(named.values())
        self.value = f"{node} {owner}"
        self._ttl_seconds = ttl_seconds

    def renew(self) -> dict[str, tuple[str, float]]:
        """Take or renew every claim.

        Returns
        -------
        dict
            Those that another worker holds, such as ``Queue gpu.a.0``: its node name and the
            seconds its claim has left.

        Raises
        ------
        RedisError
            When Redis does not answer.

        """
        if not self._keys:
            return {}
        ttl = int(self._ttl_seconds * 1000)
        take = self._state.client.register_script(TAKE)
        reply = take(keys=self._keys, args=[self.value, ttl, *self._resources])
        return {resource: (owner.split(" ")[0], left / 1000.0) for resource, owner, left in reply}

    def take(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> bool:
        """Take every claim at the start of a worker; wait for those of a dead one to expire.

        Without Redis nothing is claimed, and the worker starts all the same: False.

        Raises
        ------
        ClaimedError
            When the owner of one renews it, and so lives.

        """
        deadline = clock() + self._ttl_seconds + 1.0
        lowest: dict[tuple[str, str], float] = {}
        while True:
            try:
                held = self.renew()
            except RedisError:
                return False
            if not held:
                return True
            for resource, (owner, left) in held.items():
                before = lowest.setdefault((resource, owner), left)
                if left > before or clock() > deadline:
                    self._release_quietly()
                    raise ClaimedError(_sentence(resource, owner))
                lowest[resource, owner] = left
            sleep(POLL_SECONDS)

    def release(self) -> None:
        """Give up what is ours.

        Raises
        ------
        RedisError
            When Redis does not answer; the claims expire by themselves.

        """
        if self._keys:
            self._state.client.register_script(RELEASE)(keys=self._keys, args=[self.value])

    def _release_quietly(self) -> None:
        try:
            self.release()
        except RedisError:
            return  # They expire by themselves.


def _sentence(resource: str, owner: str) -> str:
    return (
        f"{resource} already belongs to worker {owner}: stop that worker first, or give this one "
        "another GPU by --gpus (celery worker: --gpu)."
    )
