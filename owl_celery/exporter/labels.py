"""Labels of series: cleaned of what could break the exposition, and bounded in number."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import lru_cache
from typing import Final, TypeVar

from owl_celery.aggregates import OTHER
from owl_celery.wire import MAX_NAME_LENGTH

NONE: Final = "none"
"""Stands for an empty name, such as the GPU model of a plain worker: Prometheus has no empty label
values."""

_UNPRINTABLE: Final = dict.fromkeys([*range(32), 127], "\N{REPLACEMENT CHARACTER}")
_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})

Row = TypeVar("Row")
Key = TypeVar("Key", bound=Hashable)


class Labels(dict[str, str]):
    """Labels of one series, with their text in the exposition.

    Parameters
    ----------
    names, values
        In the same order.

    Examples
    --------
    >>> Labels(("queue",), ("gpu.a.0",)).text
    '{queue="gpu.a.0"}'

    """

    __slots__ = ("text",)

    def __init__(self, names: Iterable[str], values: Iterable[str]) -> None:
        super().__init__(zip(names, values, strict=True))
        pairs = ",".join(f'{n}="{v.translate(_ESCAPES)}"' for n, v in self.items())
        self.text = f"{{{pairs}}}" if pairs else ""


@lru_cache(maxsize=65_536)
def labels_of(names: tuple[str, ...], values: tuple[str, ...]) -> Labels:
    """Labels of a series; made once, since most series are there again in the next scrape."""
    return Labels(names, [clean(value) for value in values])


@lru_cache(maxsize=65_536)
def clean(value: str) -> str:
    """A name as a label value: not too long, and nothing that is no text.

    Examples
    --------
    >>> clean("")
    'none'
    >>> clean("a\\tb\\ud800")
    'a\ufffdb?'

    """
    printable = value[:MAX_NAME_LENGTH].translate(_UNPRINTABLE)
    return printable.encode("utf-8", "replace").decode() or NONE


class Bounded:
    """Knows the first so many names, and calls all later ones ``other``.

    For counters, whose series cannot be renamed when another name gets more frequent.

    Parameters
    ----------
    limit
        Most names.

    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._names: set[Hashable] = set()

    def knows(self, name: Hashable) -> bool:
        """Whether the name is told apart; the first ones are from now on."""
        if name in self._names:
            return True
        if len(self._names) >= self._limit:
            return False
        self._names.add(name)
        return True

    def __call__(self, name: str) -> str:
        """The name, or ``other``."""
        name = clean(name)
        return name if name == OTHER or self.knows(name) else OTHER


def pooled(
    rows: Iterable[Row],
    key: Callable[[Row], Key],
    weight: Callable[[Row], float],
    limit: int,
    other: Key,
) -> dict[Key, list[Row]]:
    """Group rows by key; all but the ``limit`` heaviest keys are one group, ``other``.

    Examples
    --------
    >>> pooled(["a", "bb", "ccc"], lambda row: row[0], len, 1, "other")
    {'c': ['ccc'], 'other': ['bb', 'a']}

    """
    groups: dict[Key, list[Row]] = {}
    weights: dict[Key, float] = {}
    for row in rows:
        name = key(row)
        groups.setdefault(name, []).append(row)
        weights[name] = weights.get(name, 0.0) + weight(row)
    if len(groups) - (other in groups) <= limit:
        return groups
    rest = groups.pop(other, [])
    heaviest = sorted(groups, key=lambda name: (-weights[name], str(name)))
    kept = {name: groups[name] for name in heaviest[:limit]}
    kept[other] = [*rest, *(row for name in heaviest[limit:] for row in groups[name])]
    return kept


def names_kept(groups: Mapping[str, object]) -> Callable[[str], str]:
    """What maps a name to itself when it is a key of ``groups``, and to ``other`` when not."""

    def kept(name: str) -> str:
        name = clean(name)
        return name if name in groups else OTHER

    return kept
