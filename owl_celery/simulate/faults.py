"""What goes wrong when: throttled, stopped and returning GPUs, and failing task types."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from owl_celery.errors import InputError


class Action(StrEnum):
    """What happens to a queue, or to a task type on some of them."""

    THROTTLE = "throttle"
    STOP = "stop"
    RETURN = "return"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Fault:
    """One event.

    Parameters
    ----------
    time
        Seconds after the first arrival.
    action
        ``throttle``: the GPU runs at ``value`` of its speed; ``stop``: its worker dies, what it
        holds is tried elsewhere; ``return``: it is back; ``fail``: a type fails with probability
        ``value`` on a GPU or on all of a model.
    target
        A queue name; for ``fail`` also a GPU model.
    task_type
        For ``fail``: the type, or empty for every type.
    value
        Speed > 0, or probability in 0-1.

    """

    time: float
    action: Action
    target: str
    task_type: str = ""
    value: float = 1.0


def read_faults(
    path: Path, queues: Sequence[str], models: Sequence[str], types: Sequence[str]
) -> tuple[Fault, ...]:
    """Read events from CSV with the head ``time,action,target,type,value``.

    Parameters
    ----------
    path
        Rows in any order.
    queues, models, types
        What targets and types may be.

    Raises
    ------
    InputError
        Names the row and the column of the first cell that makes no sense.

    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"Event file {path} cannot be read: {error}.") from error
    head = ["time", "action", "target", "type", "value"]
    if not rows or [cell.strip() for cell in rows[0]] != head:
        raise InputError(f"{path.name}, row 1: the head must be {','.join(head)}.")
    faults = []
    for number, row in enumerate(rows[1:], start=2):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        where = f"{path.name}, row {number}"
        if len(cells) != len(head):
            raise InputError(f"{where}: has {len(cells)} cells, the head has {len(head)}.")
        time, action, target, task_type, value = cells
        if action not in list(Action):
            raise InputError(f"{where}, column 'action': {action!r} is not {', '.join(Action)}.")
        allowed = [*models, *queues] if action == Action.FAIL else queues
        if target not in allowed:
            kind = "GPU model or queue" if action == Action.FAIL else "queue"
            raise InputError(
                f"{where}, column 'target': {target!r} is no {kind} of the fleet; "
                f"those are: {', '.join(allowed[:20])}{', ...' if len(allowed) > 20 else ''}."
            )
        if task_type and (action != Action.FAIL or task_type not in types):
            raise InputError(f"{where}, column 'type': {task_type!r} is not known here.")
        seconds = _number(time, f"{where}, column 'time'", 0.0, math.inf)
        amount = 1.0
        if action == Action.THROTTLE:
            amount = _number(value, f"{where}, column 'value'", 1e-3, 1e3)
        elif action == Action.FAIL:
            amount = _number(value, f"{where}, column 'value'", 0.0, 1.0)
        elif value:
            raise InputError(f"{where}, column 'value': {action} takes none.")
        faults.append(Fault(seconds, Action(action), target, task_type, amount))
    return tuple(sorted(faults, key=lambda fault: fault.time))


def _number(cell: str, where: str, least: float, most: float) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise InputError(f"{where}: {cell!r} is not a number.") from None
    if not (least <= value <= most) or math.isinf(value):
        bounds = (
            f"in {least:g}-{most:g}" if math.isfinite(most) else f"finite and at least {least:g}"
        )
        raise InputError(f"{where}: {cell} is not {bounds}.")
    return value
