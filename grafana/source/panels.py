"""Panels of the dashboard in the words we need, and how Grafana spells them.

Grafana fills in what its JSON leaves out, but only in its own database: a file has to say it all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from grafana.source.queries import Query

Json = dict[str, Any]

DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
GREEN: Final = "green"
BLUE: Final = "blue"
ORANGE: Final = "orange"
RED: Final = "red"


@dataclass(frozen=True, slots=True)
class Step:
    """From this value on, this colour."""

    colour: str
    value: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """What all panels have.

    Parameters
    ----------
    description
        One sentence, shown behind the title.
    unit
        As Grafana names it: ``s``, ``percentunit``, ``ops``, ``short``, ...
    width, height
        In columns of 24, and rows of 30 pixels.
    minimum, maximum
        Ends of the scale; found in the data when None.
    steps
        Colours by value; none: one colour for all, or one for each line.
    texts
        Words instead of values.
    colours
        Colours of series by name.

    """

    title: str
    description: str
    unit: str
    queries: Sequence[Query]
    width: int
    height: int = 8
    minimum: float | None = None
    maximum: float | None = None
    decimals: int | None = None
    steps: Sequence[Step] = ()
    texts: Mapping[float, str] = field(default_factory=dict)
    colours: Mapping[str, str] = field(default_factory=dict)
    empty: str = "no data"

    kind = ""
    is_instant = True
    is_table = False

    @property
    def is_palette(self) -> bool:
        """Whether each series has a colour of its own."""
        return False

    def options(self) -> Json:
        """What this kind of panel is told."""
        raise NotImplementedError

    def custom(self) -> Json:
        """What this kind of panel is told of each field."""
        return {}

    def transformations(self) -> list[Json]:
        """What happens to the data first."""
        return []

    def overrides(self) -> list[Json]:
        """What differs for some of the series."""
        return [
            {
                "matcher": {"id": "byName", "options": name},
                "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
            }
            for name, colour in self.colours.items()
        ]

    def json(self, ident: int, x: int, y: int) -> Json:
        """The panel at its place on the grid."""
        return {
            "id": ident,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": DATASOURCE,
            "gridPos": {"h": self.height, "w": self.width, "x": x, "y": y},
            "targets": [
                self._target(query, letter)
                for query, letter in zip(self.queries, "ABCDEFGH", strict=False)
            ],
            "transformations": self.transformations(),
            "fieldConfig": {"defaults": self._defaults(), "overrides": self.overrides()},
            "options": self.options(),
        }

    def _target(self, query: Query, letter: str) -> Json:
        return {
            "refId": letter,
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": query.promql,
            "legendFormat": query.legend or "__auto",
            "format": "table" if self.is_table else "time_series",
            "instant": self.is_instant,
            "range": not self.is_instant,
        }

    def _defaults(self) -> Json:
        defaults: Json = {
            "unit": self.unit,
            "noValue": self.empty,
            "color": {"mode": "palette-classic" if self.is_palette else "thresholds"},
            "thresholds": {
                "mode": "absolute",
                "steps": [
                    {"color": step.colour, "value": step.value}
                    for step in self.steps or [Step(BLUE)]
                ],
            },
            "mappings": self._mappings(),
            "custom": self.custom(),
        }
        for name, value in (
            ("min", self.minimum),
            ("max", self.maximum),
            ("decimals", self.decimals),
        ):
            if value is not None:
                defaults[name] = value
        return defaults

    def _mappings(self) -> list[Json]:
        if not self.texts:
            return []
        options = {
            f"{value:g}": {"index": index, "text": text}
            for index, (value, text) in enumerate(self.texts.items())
        }
        return [{"type": "value", "options": options}]


class Row(NamedTuple):
    """Panels under a heading; ``slug`` names its picture."""

    slug: str
    title: str
    panels: Sequence[Panel]
