"""Families of series as ``prometheus_client`` has them, checked against the table of metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client import Metric
from prometheus_client.samples import Sample

from owl_celery.exporter.labels import labels_of
from owl_celery.metrics import METRICS, Kind, MetricSpec

Rows = Iterable[tuple[tuple[str, ...], float]]
"""Label values of a series, in the order of the table, and its value."""


def gauge(name: str, rows: Rows) -> Metric:
    """A gauge of these series; those without a finite value are left out."""
    spec = _spec(name, Kind.GAUGE)
    family = Metric(name, spec.help, spec.kind)
    family.samples = [
        Sample(name, labels_of(spec.labels, values), float(value))
        for values, value in rows
        if math.isfinite(value)
    ]
    return family


def single(name: str, value: float | None) -> Metric:
    """A gauge without labels; without a series when the value is unknown."""
    return gauge(name, () if value is None else (((), value),))


def counter(name: str, rows: Rows) -> Metric:
    """A counter of these series."""
    spec = _spec(name, Kind.COUNTER)
    family = Metric(name.removesuffix("_total"), spec.help, spec.kind)
    family.samples = [Sample(name, labels_of(spec.labels, values), value) for values, value in rows]
    return family


def histogram(name: str, rows: Iterable[tuple[tuple[str, ...], Sequence[int], float]]) -> Metric:
    """A histogram: for each series label values, counts by bucket (not cumulated), and the sum."""
    spec = _spec(name, Kind.HISTOGRAM)
    family = Metric(name, spec.help, spec.kind)
    bounds = ["+Inf" if math.isinf(bound) else repr(bound) for bound in spec.bounds]
    with_bound = (*spec.labels, "le")
    for values, counts, total in rows:
        labels = labels_of(spec.labels, values)
        family.samples += [
            Sample(f"{name}_bucket", labels_of(with_bound, (*values, bound)), count)
            for bound, count in zip(bounds, accumulate(counts), strict=True)
        ]
        family.samples.append(Sample(f"{name}_count", labels, sum(counts)))
        family.samples.append(Sample(f"{name}_sum", labels, total))
    return family


def _spec(name: str, kind: Kind) -> MetricSpec:
    spec = METRICS[name]
    if spec.kind is not kind:
        raise ValueError(f"{name} is a {spec.kind}, not a {kind}")
    return spec
