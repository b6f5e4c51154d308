"""Why a task went where it did, in a sentence."""

from __future__ import annotations

from typing import Final, NamedTuple

from owl_celery.overview.reader import predictions
from owl_celery.overview.values import KnowledgeNow, Overview
from owl_celery.types import Outcome

MAX_ALTERNATIVES: Final = 16

WHY: Final = {
    "expected_completion": "Sent where it was predicted to finish first",
    "q_learning": "Sent where finishing, and what that takes from later tasks, was predicted to "
    "cost least",
    "shortest_queue": "Sent to the queue with the least work ahead",
    "round_robin": "Sent to the queue whose turn it was",
    "random": "Sent to a queue drawn at random",
}


class Explained(NamedTuple):
    """One try with its reason.

    Parameters
    ----------
    alternatives
        The other GPU models with the service time that the policy expects there now, seconds,
        for a task of this size; the fastest first.

    """

    outcome: Outcome
    reason: str
    alternatives: tuple[tuple[str, float], ...] = ()


def explain(outcome: Outcome, overview: Overview) -> Explained:
    """Say why a task went where it did, by what it carried and by what is known now."""
    others = _alternatives(outcome, overview)
    return Explained(outcome, _reason(outcome, others), others)


def _alternatives(outcome: Outcome, overview: Overview) -> tuple[tuple[str, float], ...]:
    predict = predictions(overview.knowledge)
    found = [
        (model, seconds * outcome.size)
        for model in gpu_models(overview.knowledge, overview)
        if model != outcome.gpu_model and (seconds := predict(outcome.task_type, model)) is not None
    ]
    return tuple(sorted(found, key=lambda pair: pair[1])[:MAX_ALTERNATIVES])


def gpu_models(knowledge: KnowledgeNow, overview: Overview) -> list[str]:
    """GPU models that live queues have or that something is known of, sorted."""
    known = knowledge.beliefs.models if knowledge.beliefs is not None else ()
    return sorted({*known, *(queue.gpu_model for queue in overview.queues)} - {""})


def _reason(outcome: Outcome, others: tuple[tuple[str, float], ...]) -> str:
    if outcome.algorithm == "user":
        return "Sent where its sender said; an explicit destination always wins."
    if outcome.algorithm == "celery":
        return (
            "Routed by Celery itself: the mode was not on, or no fresh load view or open queue was "
            "at hand."
        )
    why = WHY.get(outcome.algorithm, f"Sent where policy {outcome.algorithm} chose")
    if outcome.explored:
        why = "Sent to learn more, to a queue other than the one thought best"
    where = outcome.gpu_model or outcome.queue
    if outcome.predicted_seconds is None:
        return f"{why}: {where}."
    said = f"{why}: {outcome.predicted_seconds:.3g} s of service on {where}"
    if others:
        model, seconds = others[0]
        said += f"; by what is known now it takes {seconds:.3g} s on {model}"
        if seconds < outcome.predicted_seconds and not outcome.explored:
            said += ", which had more work ahead or was closed"
    return f"{said}."
