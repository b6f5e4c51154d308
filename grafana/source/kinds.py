"""The kinds of panels, and how Grafana is told of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from grafana.source.panels import Json, Panel

REDUCE: Final = {"calcs": ["lastNotNull"], "fields": "", "values": False}
TOOLTIP: Final = {"mode": "multi", "sort": "desc"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat(Panel):
    """The present value of a few series, large.

    Parameters
    ----------
    text
        What is written: ``value``, ``name`` or ``value_and_name``.

    """

    text: str = "value"
    height: int = 4

    kind = "stat"

    def options(self) -> Json:
        return {
            "reduceOptions": REDUCE,
            "orientation": "auto",
            "textMode": self.text,
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "center",
            "wideLayout": True,
            "showPercentChange": False,
            "percentChangeColorMode": "standard",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines(Panel):
    """Series over time.

    Parameters
    ----------
    stacked
        Whether their sum means something.
    stepped
        Whether a value holds until the next one.
    dashed
        Names of series that bound others.

    """

    stacked: bool = False
    stepped: bool = False
    dashed: Sequence[str] = ()
    minimum: float | None = 0.0

    kind = "timeseries"
    is_instant = False

    @property
    def is_palette(self) -> bool:
        return not self.steps

    def options(self) -> Json:
        return {
            "legend": {
                "showLegend": True,
                "displayMode": "list",
                "placement": "bottom",
                "calcs": [],
            },
            "tooltip": TOOLTIP,
        }

    def custom(self) -> Json:
        return {
            "drawStyle": "line",
            "lineInterpolation": "stepAfter" if self.stepped else "linear",
            "lineWidth": 2,
            "fillOpacity": 25 if self.stacked else 0,
            "showPoints": "never",
            # A gap means that nothing was measured, and is no reason to break the line at once.
            "spanNulls": 300_000,
            "stacking": {"mode": "normal" if self.stacked else "none", "group": "A"},
            "axisPlacement": "auto",
        }

    def overrides(self) -> list[Json]:
        return Panel.overrides(self) + [
            {
                "matcher": {"id": "byName", "options": name},
                "properties": [
                    {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [6, 6]}},
                    {"id": "custom.lineWidth", "value": 1},
                    {"id": "custom.fillOpacity", "value": 0},
                ],
            }
            for name in self.dashed
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars(Panel):
    """The present values of many series, a bar each."""

    minimum: float | None = 0.0

    kind = "bargauge"

    def options(self) -> Json:
        return {
            "reduceOptions": REDUCE,
            "orientation": "horizontal",
            "displayMode": "basic",
            "valueMode": "color",
            "namePlacement": "left",
            "showUnfilled": True,
            "sizing": "auto",
            "text": {"titleSize": 12, "valueSize": 14},
            "minVizHeight": 16,
            "minVizWidth": 8,
            "maxVizHeight": 28,
            "legend": {
                "showLegend": False,
                "displayMode": "list",
                "placement": "bottom",
                "calcs": [],
            },
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix(Panel):
    """The present values by two labels, as a coloured table.

    Parameters
    ----------
    row, column
        The labels.
    scheme
        Colour scheme from low to high.
    row_width, column_width
        Pixels of the first column, and at least of each other.

    """

    row: str
    column: str
    scheme: str = "continuous-blues"
    row_width: int = 260
    column_width: int = 64

    kind = "table"
    is_table = True

    def options(self) -> Json:
        return {"showHeader": True, "cellHeight": "sm", "frameIndex": 0}

    def custom(self) -> Json:
        return {
            "align": "auto",
            "inspect": False,
            "minWidth": self.column_width,
            "cellOptions": {"type": "color-background", "mode": "basic"},
        }

    def transformations(self) -> list[Json]:
        return [
            {
                "id": "groupingToMatrix",
                "options": {
                    "rowField": self.row,
                    "columnField": self.column,
                    "valueField": "Value",
                    "emptyValue": "null",
                },
            }
        ]

    def overrides(self) -> list[Json]:
        return [
            {
                "matcher": {"id": "byName", "options": f"{self.row}\\{self.column}"},
                "properties": [
                    {"id": "custom.cellOptions", "value": {"type": "auto"}},
                    {"id": "custom.width", "value": self.row_width},
                    {"id": "displayName", "value": self.row.replace("_", " ")},
                ],
            }
        ]

    def _defaults(self) -> Json:
        return {**Panel._defaults(self), "color": {"mode": self.scheme}}
