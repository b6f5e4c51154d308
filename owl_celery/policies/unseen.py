"""What many producers send at once, each of which sees the load as it was a moment ago."""

from __future__ import annotations

import numpy as np

from owl_celery.fleet import Fleet, Floats


def levelled(wait: Floats, fleet: Fleet, random: np.random.Generator) -> Floats:
    """The wait of each queue with what the other producers have sent unseen, seconds.

    They choose as we do: of the queues of one GPU model each takes the least loaded, until they are
    level like water. Which of these is the lowest now, nobody can tell, and producers who all went
    to the one that was would all go to the same. Nor whether it is the first of those who choose
    or the last: how much is added is drawn between nothing and twice ``fleet.unseen_seconds``.
    ``wait`` is given back where there are no others.

    Examples
    --------
    >>> fleet = Fleet(["a.0", "a.1", "a.2", "a.3"], ["V100", "V100", "V100", "K80"])
    >>> fleet.unseen_seconds = np.array([0.5, 3.0])  # of K80 and V100
    >>> wait = levelled(np.array([1.0, 1.0, 9.0, 4.0]), fleet, np.random.default_rng(1))
    >>> wait.round(2).tolist()
    [2.54, 2.54, 9.0, 4.51]

    """
    unseen = fleet.unseen_seconds
    if unseen is None:
        return wait
    raised, amounts = wait.copy(), (2.0 * random.random() * unseen).tolist()
    for rows, seconds in zip(fleet.rows_of_models, amounts, strict=True):
        if not fleet.is_all_open:
            rows = rows[fleet.is_open[rows]]
        if seconds <= 0.0 or not len(rows):
            continue
        rising = wait[rows]
        order = rising.argsort()
        rising, slots = rising[order], fleet.concurrency[rows[order]]
        width, filled = slots.cumsum(), (rising * slots).cumsum()
        # What it takes to bring all those before to the height of each.
        last = max(int(np.count_nonzero(rising * width - filled <= seconds)), 1) - 1
        level = (seconds + filled.item(last)) / width.item(last)
        raised[rows[order[: last + 1]]] = level
    return raised
