"""PromQL in the words we need."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

MOST: Final = 25
"""Bars of a panel; more can be read by nobody."""

MATCHERS: Final = {
    "app": 'app="$app"',
    "gpu": 'app="$app",gpu_model=~"$gpu_model"',
    "task": 'app="$app",task_type=~"$task_type"',
    "pair": 'app="$app",task_type=~"$task_type",gpu_model=~"$gpu_model"',
}
TOKEN: Final = re.compile(r"\{(app|gpu|task|pair)(?=[,}])")


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL query.

    Parameters
    ----------
    expr
        ``{app}``, ``{gpu}``, ``{task}`` and ``{pair}`` stand for the variables that a metric has
        labels for; more matchers may follow, as in ``{app,bound="low"}``.
    legend
        Name of each series, with ``{{label}}`` filled in.

    """

    expr: str
    legend: str = ""

    @property
    def promql(self) -> str:
        """The query as Grafana gets it."""
        return TOKEN.sub(lambda token: "{" + MATCHERS[token[1]], self.expr)


def quantile(share: float, histogram: str, labels: str, matchers: str) -> str:
    """The PromQL of a quantile of a histogram, by some labels or none."""
    rate = f"rate({histogram}_bucket{matchers}[$__rate_interval])"
    by = f"le, {labels}" if labels else "le"
    # The comparison drops what is no number: there was nothing to take the quantile of.
    return f"histogram_quantile({share}, sum by ({by}) ({rate})) >= 0"


def mean(histogram: str, labels: str, matchers: str) -> str:
    """The PromQL of the mean of a histogram, by some labels."""
    total, count = (
        f"sum by ({labels}) (rate({histogram}_{part}{matchers}[$__rate_interval]))"
        for part in ("sum", "count")
    )
    return f"{total} / ({count} > 0)"
