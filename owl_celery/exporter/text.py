"""Prometheus' text format, written a dozen times as fast as ``prometheus_client`` does.

A fleet of 1,000 GPUs has some 25,000 series, for which that one takes half a second. Most labels
are the same in every scrape, so that their text is kept (see ``labels``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from prometheus_client import Metric

from owl_celery.exporter.labels import Labels

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def exposition(families: Iterable[Metric]) -> bytes:
    """Write families as text."""
    lines: list[str] = []
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        text = family.documentation.replace("\\", r"\\").replace("\n", r"\n")
        lines.append(f"# HELP {name} {text}\n# TYPE {name} {family.type}\n")
        for sample in family.samples:
            labels = sample.labels
            if not isinstance(labels, Labels):
                labels = Labels(labels, labels.values())
            lines.append(f"{sample.name}{labels.text} {number(sample.value)}\n")
    return "".join(lines).encode()


def number(value: float) -> str:
    """Write a value.

    Examples
    --------
    >>> number(3), number(0.5), number(float("inf"))
    ('3', '0.5', '+Inf')

    """
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else f"{value:+f}".title()
