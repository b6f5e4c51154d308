"""The rows of the dashboard, from top to bottom."""

from __future__ import annotations

from typing import Final

from grafana.source.rows.faults import FAULTS
from grafana.source.rows.improvement import IMPROVEMENT
from grafana.source.rows.learning import LEARNING
from grafana.source.rows.routing import ROUTING
from grafana.source.rows.success import SUCCESS
from grafana.source.rows.workers import WORKERS
from grafana.source.rows.working import WORKING

ROWS: Final = (WORKING, LEARNING, ROUTING, WORKERS, SUCCESS, IMPROVEMENT, FAULTS)
