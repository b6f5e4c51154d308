"""Programs that the tests run and pip cannot install, and the Debian packages that have them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Final

PACKAGES: Final[Mapping[str, str]] = {
    "chromedriver": "chromium-driver",
    "chromium": "chromium",
    "make": "make",
    "npm": "npm",
    "openssl": "openssl",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "rabbitmq-server": "rabbitmq-server",
}
"""Redis and PostgreSQL are not among them: where the system has none, wheels bring them."""

OTHER_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "chromium": ("chromium-browser", "google-chrome"),
}


def find_program(name: str) -> str:
    """Where a program is.

    Raises
    ------
    RuntimeError
        When it is not installed; the message names the package.

    """
    for known in (name, *OTHER_NAMES.get(name, ())):
        if found := shutil.which(known):
            return found
    raise RuntimeError(f"There is no {name}: install {PACKAGES[name]} (apt-get install ...).")


def missing_packages() -> list[str]:
    """Packages without which some tests fail, sorted."""
    missing = set()
    for name, package in PACKAGES.items():
        try:
            find_program(name)
        except RuntimeError:
            missing.add(package)
    return sorted(missing)
