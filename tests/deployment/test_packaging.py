"""What is installed with us is enough to run, whatever else this environment has."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys
# Optional imports then fall back as they would without these.
sys.modules.update(dict.fromkeys(json.load(sys.stdin)))
import kombu.transport.redis
from owl_celery.cli import COMMANDS, owl
for name in COMMANDS:
    owl.get_command(None, name)
import owl_celery.controller.controller, owl_celery.exporter, owl_celery.store.sql
import owl_celery.installation, owl_celery.overview
"""


def required() -> set[str]:
    """Distributions that come along, extras of theirs included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: dict[str, set[str]] = {}
    waiting = [Requirement(text) for text in project["dependencies"]]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = {"", *requirement.extras}
        if extras <= found.get(name, set()):
            continue
        found.setdefault(name, set()).update(extras)
        try:
            texts = requires(name) or []
        except PackageNotFoundError:
            continue  # For other systems.
        for each in map(Requirement, texts):
            if each.marker is None or any(each.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(each)
    return set(found)


def test_all_that_is_imported_comes_along() -> None:
    allowed = required() | {"owl-celery"}
    foreign = [
        module
        for module, providers in packages_distributions().items()
        if allowed.isdisjoint(map(canonicalize_name, providers))
    ]

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(foreign),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert "pytest" in foreign
    assert done.returncode == 0, done.stderr
