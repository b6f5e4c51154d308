"""What a task says of itself: ``owl_type``, ``owl_size`` and ``owl_model`` on its decorator."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from owl_celery.types import MAX_SIZE, MIN_SIZE, TaskView
from owl_celery.wire import MAX_NAME_LENGTH


def view_of_task(
    name: str,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    task: object | None,
    tried: frozenset[str] = frozenset(),
) -> TaskView:
    """Describe a task to the policy; its arguments go no further than the author's functions.

    Parameters
    ----------
    name
        Celery task name.
    args, kwargs
        The task's arguments.
    task
        The Celery task, whose ``owl_type``, ``owl_size`` and ``owl_model`` refine the
        description: each a value, or a function of ``(args, kwargs)``. None for a name that is
        not registered here.
    tried
        GPU models to avoid.

    Raises
    ------
    ValueError
        When a refinement gives a size out of bounds.
    Exception
        Whatever the author's function raises.

    Examples
    --------
    >>> class Resize:
    ...     owl_size = lambda args, kwargs: args[0] * args[1] / 1e6
    >>> view_of_task("images.resize", (1000, 2000), {}, Resize()).size
    2.0

    """
    kind: Any = type(task)
    refinements = _refinements(kind)
    if refinements is None:
        return TaskView(name[:MAX_NAME_LENGTH], tried=tried)
    refined_type, refined_size, model = (
        _evaluate(refinement, args or (), kwargs or {}) for refinement in refinements
    )
    size = 1.0 if refined_size is None else float(refined_size)
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ValueError(
            f"owl_size of task {name} must be a number from {MIN_SIZE:g} to {MAX_SIZE:g}"
        )
    task_type = name if refined_type is None else str(refined_type)
    return TaskView(
        task_type=task_type[:MAX_NAME_LENGTH],
        size=size,
        model=None if model is None else str(model)[:MAX_NAME_LENGTH],
        tried=tried,
    )


@lru_cache(maxsize=10_000)
def _refinements(kind: Hashable) -> tuple[Any, Any, Any] | None:
    """Options of a task's class; None when there are none.

    Celery keeps options as class attributes; read from an instance a function becomes a method.
    """
    options = (
        getattr(kind, "owl_type", None),
        getattr(kind, "owl_size", None),
        getattr(kind, "owl_model", None),
    )
    return None if options == (None, None, None) else options


def _evaluate(refinement: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return refinement(args, kwargs) if callable(refinement) else refinement
