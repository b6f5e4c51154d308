"""What the routing policies are measured against, by name; each whole in its own file.

The names that end in ``_oracle`` know all true rates: no product could run them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from owl_celery.errors import InputError, SettingsError
from owl_celery.policies import make_policy, policy_names
from owl_celery.settings import Settings

if TYPE_CHECKING:
    from owl_celery.policies.base import Policy
    from owl_celery.simulate.central import Central
    from owl_celery.simulate.instance import Instance

BASELINES: Final = {
    "blind_pandas": "BlindPandas",
    "fastest_model": "FastestModel",
    "jsed_oracle": "JsedOracle",
    "late_binding_oracle": "LateBindingOracle",
    "lp_split": "LpSplit",
    "naive_q": "NaiveQ",
    "pandas_oracle": "PandasOracle",
    "policy_improvement_oracle": "PolicyImprovementOracle",
    "power_of_two": "PowerOfTwo",
    "priced_oracle": "PricedOracle",
    "shared_fifo": "SharedFifo",
    "vowpal": "Vowpal",
}
"""Class of each baseline, in the module of the baseline's name."""


def contender_names() -> list[str]:
    """Names of everything that can be simulated: baselines and production policies."""
    return sorted({*BASELINES, *policy_names()})


def make_contender(
    name: str, instance: Instance, rate: float, seed: int, **settings: Any
) -> Policy | Central:
    """Build a baseline, or a production policy as an application would.

    Parameters
    ----------
    name
        One of ``contender_names()``.
    instance
        What is true; oracles read it.
    rate
        Mean arrival rate, tasks per second; oracles read it.
    seed
        Of the policy's random choices.
    settings
        Fields of ``Settings`` for a production policy, such as ``exploration_rate=0.1``.

    Raises
    ------
    InputError
        When the name is not known or a setting cannot be used.

    """
    if name in BASELINES:
        module = import_module(f"owl_celery.simulate.baselines.{name}")
        built: Policy | Central = getattr(module, BASELINES[name])(instance, rate, seed)
        return built
    if name not in policy_names():
        raise InputError(f"No policy {name!r}; known are: {', '.join(contender_names())}.")
    try:
        return make_policy(Settings.load(policy=name, seed=seed, **settings))
    except SettingsError as error:
        raise InputError(str(error)) from error
