"""The whole dashboard: variables, annotations, links, and the rows on their grid."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Final

from grafana.source.panels import DATASOURCE, Json
from grafana.source.queries import Query
from grafana.source.rows import ROWS

UID: Final = "continuous-learning-dashboard"
COLUMNS: Final = 24
ALL: Final = {"selected": True, "text": ["All"], "value": ["$__all"]}


def dashboard() -> Json:
    """The dashboard as Grafana reads it from a file: classic JSON, schema version 41."""
    return {
        "uid": UID,
        "title": "Celery on GPUs: learned routing",
        "description": "Whether routing learns, what it decides, and what it saves.",
        "tags": ["celery", "gpu", "owl"],
        "schemaVersion": 41,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "fiscalYearStartMonth": 0,
        "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {"refresh_intervals": ["5s", "10s", "30s", "1m", "5m"]},
        "refresh": "10s",
        "links": links(),
        "templating": {"list": variables()},
        "annotations": {"list": marks()},
        "panels": list(panels()),
    }


def panels() -> Iterator[Json]:
    """Rows one below the other, their panels from left to right while there is room."""
    idents = count(1)
    y = 0
    for row in ROWS:
        yield {
            "id": next(idents),
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y},
            "panels": [],
        }
        y += 1
        x = height = 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y = 0, y + height
                height = 0
            yield panel.json(next(idents), x, y)
            x += panel.width
            height = max(height, panel.height)
        y += height


def variables() -> list[Json]:
    """What can be chosen at the top; the two addresses are changed here or in Grafana."""
    return [
        {
            "name": "datasource",
            "label": "Prometheus",
            "type": "datasource",
            "query": "prometheus",
            "current": {"selected": True, "text": "Prometheus", "value": "prometheus"},
            "includeAll": False,
            "multi": False,
            "hide": 0,
            "refresh": 1,
            "regex": "",
        },
        _query_variable("app", "Application", "label_values(owl_build_info, app)", many=False),
        _query_variable(
            "task_type",
            "Task type",
            'label_values(owl_task_type_success_rate{app="$app"}, task_type)',
        ),
        _query_variable(
            "gpu_model", "GPU model", 'label_values(owl_queue_open{app="$app"}, gpu_model)'
        ),
        _address("flower", "http://127.0.0.1:5555"),
        _address("console", "http://127.0.0.1:8080"),
    ]


def _query_variable(name: str, label: str, query: str, many: bool = True) -> Json:
    variable: Json = {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"qryType": 1, "query": query, "refId": name},
        "includeAll": many,
        "multi": many,
        "hide": 0,
        "refresh": 2,
        "regex": "",
        "sort": 1,
    }
    if many:
        # Whatever the label is, and also where there is none.
        variable["allValue"] = ".*"
        variable["current"] = ALL
    return variable


def _address(name: str, url: str) -> Json:
    option = {"selected": True, "text": url, "value": url}
    return {
        "name": name,
        "label": f"Address of {name}",
        "type": "textbox",
        "query": url,
        "current": option,
        "options": [option],
        "hide": 2,
    }


def marks() -> list[Json]:
    """Marks in all graphs over time."""
    return [
        {
            "name": "Annotations & Alerts",
            "builtIn": 1,
            "datasource": {"type": "grafana", "uid": "-- Grafana --"},
            "enable": True,
            "hide": True,
            "iconColor": "rgba(0, 211, 255, 1)",
            "type": "dashboard",
        },
        _annotation(
            "Drift of a GPU",
            "orange",
            "owl_queue_speed_factor{app} != 1 unless owl_queue_speed_factor{app} offset 1m != 1",
            "{{queue}} ({{gpu_model}}) no longer runs at the speed of its model",
        ),
        _annotation(
            "Policy change",
            "blue",
            "max by (policy) (owl_build_info{app})"
            " unless max by (policy) (owl_build_info{app} offset 1m)",
            "policy {{policy}}",
        ),
        _annotation(
            "Mode change",
            "purple",
            "max by (mode) (owl_mode{app} == 1)"
            " unless max by (mode) (owl_mode{app} offset 1m == 1)",
            "mode {{mode}}",
        ),
    ]


def _annotation(name: str, colour: str, expr: str, title: str) -> Json:
    return {
        "name": name,
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": colour,
        "expr": Query(expr).promql,
        # The offset in the queries: what began between two steps is new at the second.
        "step": "60s",
        "titleFormat": title,
        "textFormat": "",
        "tagKeys": "",
        "useValueForTime": False,
    }


def links() -> list[Json]:
    """Where to look next."""
    return [
        {
            "title": title,
            "tooltip": tooltip,
            "type": "link",
            "url": url,
            "icon": "external link",
            "tags": [],
            "asDropdown": False,
            "includeVars": False,
            "keepTime": False,
            "targetBlank": True,
        }
        for title, url, tooltip in (
            ("Flower", "${flower}", "Each task: its queue, state, arguments and result"),
            ("Console", "${console}", "Queues and decisions live, with their reasons"),
        )
    ]
