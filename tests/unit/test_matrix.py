"""What is shown of each task type on each GPU model."""

from __future__ import annotations

from dataclasses import replace

from owl_celery.fleet import Fleet
from owl_celery.overview.matrix import cells_of
from owl_celery.overview.values import KnowledgeNow
from owl_celery.policies import make_policy
from owl_celery.policies.beliefs import Beliefs
from owl_celery.settings import Settings
from owl_celery.types import Outcome, TaskView, TryState
from tests.overviews import overview

FREE = 11e9


def test_a_pair_that_ran_out_of_memory_is_closed_as_it_is_for_the_router() -> None:
    policy = make_policy(Settings.load(policy="expected_completion", exploration_rate=0.0, seed=1))
    fleet = Fleet(["k80", "v100"], ["K80", "V100"], [1, 1])
    fleet.free_memory_bytes[:] = FREE, 2.0 * FREE
    policy.tick(fleet, 0.0)
    for queue, model, state in (("k80", "K80", "failure"), ("v100", "V100", "success")):
        outcome = Outcome(
            "t", queue, 0, "train", 1.0, queue, "w", model, TryState(state), 9.0, 1.0,
            out_of_memory=state == "failure",
        )  # fmt: skip
        policy.learn_one(outcome, 1.0)
    fleet.waiting_seconds[:] = 0.0, 1e4
    assert policy.choose(TaskView("train"), fleet, 1.0).gpu_model == "V100"

    # 12 GB in all, of which the driver takes one.
    knowledge = KnowledgeNow(1, policy.name, policy, Beliefs.decode(policy.snapshot()))
    shown = overview(knowledge=knowledge)
    free = dict(zip(fleet.models, fleet.free_memory_bytes[fleet.model_index], strict=True))
    queues = [
        replace(queue, gpu_model=model, idle_memory_bytes=float(free[model]))
        for queue, model in zip(shown.queues, fleet.models, strict=False)
    ]
    pairs = [("train", "K80"), ("train", "V100")]

    cells = cells_of(replace(shown, queues=tuple(queues)), pairs)
    assert [cell.is_closed for cell in cells] == [True, False]

    # A GPU that more is free of takes it; so does one of which nothing is known.
    for more in (FREE + 2.0, None):
        another = replace(queues[0], idle_memory_bytes=more)
        cells = cells_of(replace(shown, queues=(*queues, another)), pairs)
        assert not any(cell.is_closed for cell in cells)
