"""The dashboard's JSON: complete, in Grafana's schema, and about metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from grafana.source.__main__ import PATH, text
from grafana.source.dashboard import COLUMNS, UID
from grafana.source.rows import ROWS
from owl_celery.metrics import CONTRACT, METRICS, Kind
from tests.programs import find_program

GRAFANA: Final = Path(__file__).parents[2] / "grafana"
SCHEMA: Final = Path(__file__).parent / "schema"
DASHBOARD: Final[dict[str, Any]] = json.loads(PATH.read_text())
PANELS: Final[list[dict[str, Any]]] = [p for p in DASHBOARD["panels"] if p["type"] != "row"]
VARIABLES: Final = DASHBOARD["templating"]["list"]
BUILT_IN: Final = {"$__rate_interval": "1m"}

each_panel = pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])


def expressions() -> list[str]:
    """Every query: of panels and of annotations."""
    marks = [mark["expr"] for mark in DASHBOARD["annotations"]["list"] if "expr" in mark]
    return [target["expr"] for panel in PANELS for target in panel["targets"]] + marks


def test_the_file_is_what_the_source_says() -> None:
    assert PATH.read_text() == text(), "run make dashboard"


def test_it_is_a_classic_dashboard_under_its_known_address() -> None:
    assert (DASHBOARD["uid"], DASHBOARD["schemaVersion"]) == (UID, 41)
    assert UID == "continuous-learning-dashboard"
    assert "elements" not in DASHBOARD


@each_panel
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert re.fullmatch(r"[A-Z][^\n]{3,60}", panel["title"])
    assert re.fullmatch(r"[A-Z][^\n]+\.", panel["description"])
    assert ". " not in panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    letters = [target["refId"] for target in panel["targets"]]
    assert letters
    assert len(letters) == len(set(letters))


def test_panels_have_places_of_their_own() -> None:
    idents = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(idents) == len(set(idents))
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    for place in places:
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= COLUMNS
    for one, other in combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)


def test_titles_are_unique_within_a_row() -> None:
    for row in ROWS:
        titles = [panel.title for panel in row.panels]
        assert len(titles) == len(set(titles))


def test_each_variable_is_used_and_none_is_missing() -> None:
    names = {variable["name"] for variable in VARIABLES}
    body = json.dumps({**DASHBOARD, "templating": {"list": []}})
    body += json.dumps([v.get("query", "") for v in VARIABLES])
    used = set(re.findall(r"\$\{?(\w+)", body)) - {"__rate_interval", "__auto"}
    assert used == names
    assert {"datasource", "app", "task_type", "gpu_model"} <= names


def test_every_series_is_of_the_chosen_application() -> None:
    for expression in expressions():
        selectors = re.findall(r"\b(?:owl_\w+|ALERTS)(\{[^}]*\})?", expression)
        assert selectors
        assert all('app="$app"' in selector for selector in selectors), expression


def test_every_query_is_of_metrics_that_there_are() -> None:
    series = set(METRICS)
    for spec in METRICS.values():
        if spec.kind is Kind.HISTOGRAM:
            series.remove(spec.name)
            series |= {f"{spec.name}_{part}" for part in ("bucket", "sum", "count")}
    used = set(re.findall(r"\bowl_\w+", " ".join(expressions())))
    assert used <= series
    # The nine that others rely on are all on it.
    assert {spec.name for spec in CONTRACT} <= used


def test_selectors_and_groups_are_of_labels_that_the_metrics_have() -> None:
    for expression in expressions():
        for name, matchers in re.findall(r"\b(owl_\w+)\{([^}]*)\}", expression):
            spec = METRICS.get(name) or METRICS[name.rsplit("_", 1)[0]]
            assert set(re.findall(r"(\w+)[=!]~?", matchers)) <= {"app", *spec.labels}, expression


def test_queries_can_be_read_by_prometheus(tmp_path: Path) -> None:
    rules = []
    for index, expression in enumerate(expressions()):
        for name, value in BUILT_IN.items():
            expression = expression.replace(name, value)
        rules.append({"record": f"panel:{index}", "expr": expression})
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(
        [find_program("promtool"), "check", "rules", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grafana's types and the TypeScript compiler, as pinned in ``schema/package-lock.json``."""
    folder = tmp_path_factory.mktemp("schema") / "node"
    shutil.copytree(SCHEMA, folder, ignore=shutil.ignore_patterns("node_modules"))
    done = subprocess.run(
        [
            find_program("npm"),
            "ci",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            "--no-update-notifier",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def complaints(folder: Path, dashboard: dict[str, Any]) -> str:
    """What the compiler says of a dashboard as a value of Grafana's types; empty when nothing."""
    program = folder / "program.ts"
    program.write_text(
        "import type { DashboardFile } from './dashboard';\n"
        f"export const dashboard: DashboardFile = {json.dumps(dashboard)};\n"
    )
    done = subprocess.run(
        [folder / "node_modules" / ".bin" / "tsc", "--strict", "--noEmit", program.name],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_it_is_in_grafanas_schema(node_folder: Path) -> None:
    assert complaints(node_folder, DASHBOARD) == ""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"displayMode": "list"', '"displayMode": "lst"', '"lst"'),
        ('"textMode":', '"textmode":', "textmode"),
        ('"graphTooltip": 1', '"graphTooltip": 5', "DashboardCursorSync"),
        ('"lineWidth": 2', '"lineWidht": 2', "lineWidht"),
        ('"type": "bargauge"', '"type": "graph"', '"graph"'),
    ],
)
def test_the_schema_check_notices_a_mistake(
    node_folder: Path, old: str, new: str, said: str
) -> None:
    body = json.dumps(DASHBOARD)
    assert old in body
    assert said in complaints(node_folder, json.loads(body.replace(old, new)))


def test_lock_files_name_no_registry() -> None:
    for path in [*SCHEMA.glob("package*.json"), *GRAFANA.rglob("package*.json")]:
        assert "resolved" not in path.read_text()


def test_provisioning_finds_data_and_dashboard() -> None:
    folder = GRAFANA / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    (provider,) = yaml.safe_load((folder / "dashboards" / "dashboards.yml").read_text())[
        "providers"
    ]
    chosen = next(v for v in VARIABLES if v["name"] == "datasource")
    assert source["type"] == chosen["query"]
    assert (source["name"], source["uid"]) == (
        chosen["current"]["text"],
        chosen["current"]["value"],
    )
    scraped = yaml.safe_load((GRAFANA / "prometheus" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == scraped["global"]["scrape_interval"]
    assert PATH.parent.name == Path(provider["options"]["path"]).name
