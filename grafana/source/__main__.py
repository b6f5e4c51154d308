"""Write the dashboard where Grafana's provisioning finds it: ``make dashboard``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from grafana.source.dashboard import dashboard

PATH: Final = Path(__file__).parents[1] / "dashboards" / "continuous-learning.json"


def text() -> str:
    """The dashboard as JSON."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(text())
