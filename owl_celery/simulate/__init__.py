"""An event-driven simulator that drives the production policies with a virtual clock."""

from __future__ import annotations

from owl_celery.simulate.arrivals import Arrivals, mmpp, poisson, read_trace
from owl_celery.simulate.baselines import contender_names, make_contender
from owl_celery.simulate.capacity import Capacity, lp_capacity
from owl_celery.simulate.conditions import Conditions, Run
from owl_celery.simulate.engine import Simulation
from owl_celery.simulate.faults import Action, Fault, read_faults
from owl_celery.simulate.instance import Instance
from owl_celery.simulate.results import Row
from owl_celery.simulate.study import Job, Scenario, run_jobs
from owl_celery.simulate.table import ServiceTable, gavel_table, parse_fleet

__all__ = [
    "Action",
    "Arrivals",
    "Capacity",
    "Conditions",
    "Fault",
    "Instance",
    "Job",
    "Row",
    "Run",
    "Scenario",
    "ServiceTable",
    "Simulation",
    "contender_names",
    "gavel_table",
    "lp_capacity",
    "make_contender",
    "mmpp",
    "parse_fleet",
    "poisson",
    "read_faults",
    "read_trace",
    "run_jobs",
]
