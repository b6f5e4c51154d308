"""An event-driven simulator that drives the production policies with a virtual clock."""

from __future__ import annotations

from owl_celery.simulate.arrivals import Arrivals, mmpp, poisson, read_trace
from owl_celery.simulate.capacity import Capacity, lp_capacity
from owl_celery.simulate.instance import Instance
from owl_celery.simulate.table import ServiceTable, gavel_table, parse_fleet

__all__ = [
    "Arrivals",
    "Capacity",
    "Instance",
    "ServiceTable",
    "gavel_table",
    "lp_capacity",
    "mmpp",
    "parse_fleet",
    "poisson",
    "read_trace",
]
