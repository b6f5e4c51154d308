"""Ask Prometheus what the panels ask, with the variables filled in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

from grafana.source.dashboard import dashboard
from grafana.source.panels import Json
from grafana.source.rows import ROWS

EVERYTHING: Final = ".*"
POINTS: Final = 240


class Prometheus(Protocol):
    """What answers."""

    def get(self, path: str, **parameters: str | float) -> Any:
        """The ``data`` of ``/api/v1/<path>``."""


def filled(expression: str, app: str, rate_interval: str) -> str:
    """A query as Grafana sends it with this application and all task types and GPU models.

    The rate interval is Grafana's: at least four scrapes.
    """
    values: Mapping[str, str] = {
        "$__rate_interval": rate_interval,
        "$app": app,
        "$task_type": EVERYTHING,
        "$gpu_model": EVERYTHING,
    }
    for name, value in values.items():
        expression = expression.replace(name, value)
    return expression


def panels_by_row() -> Iterator[tuple[str, str, list[Json]]]:
    """Slug, title and panels of each row."""
    panels = iter([panel for panel in dashboard()["panels"] if panel["type"] != "row"])
    for row in ROWS:
        yield row.slug, row.title, [next(panels) for _ in row.panels]


def answers(
    prometheus: Prometheus, panel: Json, app: str, rate_interval: str, start: float, end: float
) -> list[list[Json]]:
    """The series that Prometheus has for each query of a panel between two Unix times."""
    found = []
    for target in panel["targets"]:
        query = filled(target["expr"], app, rate_interval)
        if target["instant"]:
            data = prometheus.get("query", query=query, time=end)
        else:
            step = max((end - start) / POINTS, 1.0)
            data = prometheus.get("query_range", query=query, start=start, end=end, step=step)
        found.append(data["result"])
    return found
