"""What the documents say of settings and commands is what the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from owl_celery.cli import COMMANDS
from owl_celery.counters import FALLBACK_REASONS
from owl_celery.metrics import METRICS
from owl_celery.policies import BUILT_IN
from owl_celery.settings import Settings

ROOT = Path(__file__).parents[2]
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
METRICS_PAGE = (ROOT / "docs" / "metrics.md").read_text()
ALERTS = (ROOT / "grafana" / "prometheus" / "rules" / "alerts.yml").read_text()
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_described_with_its_default(name: str) -> None:
    names = (f"`{name.upper()}`", f"`OWL_{name.upper()}`")
    lines = [line for line in SETTINGS.splitlines() if any(name in line for name in names)]
    assert lines, f"docs/settings.md says nothing of {name}"
    # Its own row, if it has one, rather than another that mentions it.
    line = min(lines, key=lambda line: not line.startswith(tuple(f"| {name} |" for name in names)))
    default = Settings.model_fields[name].default
    if line.startswith("|") and default not in (None, "", ()):
        said = str(default).lower() if isinstance(default, bool) else str(default)
        assert f"| `{said}` |" in line


def test_every_policy_is_described() -> None:
    for name in BUILT_IN:
        assert f"`{name}`" in SETTINGS


def test_every_metric_and_every_alert_is_described() -> None:
    for name, spec in METRICS.items():
        lines = [line for line in METRICS_PAGE.splitlines() if line.startswith(f"| `{name}` |")]
        assert len(lines) == 1, f"docs/metrics.md has {len(lines)} rows for {name}"
        for label in spec.labels:
            assert f"`{label}`" in lines[0], f"{name} has a label {label}"
    alerts = re.findall(r"alert: (\w+)", ALERTS)
    assert alerts
    assert set(alerts) == set(re.findall(r"^### (Owl\w+)$", METRICS_PAGE, re.MULTILINE))


def test_every_reason_of_a_fallback_is_described() -> None:
    router = (ROOT / "owl_celery" / "router.py").read_text()
    given = set(re.findall(r'(?:None, |_fall_back\(|reason = (?:reason or )?)"(\w+)"', router))
    assert given <= set(FALLBACK_REASONS)
    for reason in FALLBACK_REASONS:
        assert f"`{reason}`" in METRICS_PAGE


def test_links_between_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for part in page.read_text().split("](")[1:]:
            target = part.split(")")[0].split("#")[0]
            if target and "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_names_only_commands_that_exist() -> None:
    named = set(re.findall(r"\bowl (\w+)", README))
    assert {"worker", "serve"} <= named <= set(COMMANDS)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_a_page_names_only_commands_that_exist(page: Path) -> None:
    named = set(re.findall(r"celery -A proj owl (\w+)", page.read_text()))
    assert named <= set(COMMANDS)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_the_index_lists_every_page(page: Path) -> None:
    if page.stem != "README":
        assert f"]({page.name})" in (ROOT / "docs" / "README.md").read_text()


@pytest.mark.parametrize("page", ["install", "production", "troubleshooting"])
def test_variables_in_the_guides_are_settings(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    names = set(re.findall(r"\b(OWL_[A-Z_]+)\b", text))
    assert names <= {f"OWL_{name.upper()}" for name in Settings.model_fields}
