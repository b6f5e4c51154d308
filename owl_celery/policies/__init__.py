"""Routing policies by name; a policy's module is imported only when it is asked for."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Final

from owl_celery.errors import SettingsError

if TYPE_CHECKING:
    from owl_celery.policies.base import Policy
    from owl_celery.settings import Settings

ENTRY_POINT_GROUP: Final = "owl_celery.policies"

BUILT_IN: Final = {
    "expected_completion": "owl_celery.policies.expected_completion:ExpectedCompletion",
    "q_learning": "owl_celery.policies.priced_q:PricedQ",
    "random": "owl_celery.policies.random:Random",
    "round_robin": "owl_celery.policies.round_robin:RoundRobin",
    "shortest_queue": "owl_celery.policies.shortest_queue:ShortestQueue",
}
"""Our own policies as ``module:class``: found without reading the metadata of every package."""


def policy_class(name: str) -> type[Policy]:
    """Find a policy by its name in settings.

    Raises
    ------
    SettingsError
        When no policy has this name, or the one that has it cannot be imported.

    Examples
    --------
    >>> policy_class("round_robin").__name__
    'RoundRobin'

    """
    target = BUILT_IN.get(name)
    if target is not None:
        module, _, attribute = target.partition(":")
        built_in: type[Policy] = getattr(import_module(module), attribute)
        return built_in
    from owl_celery.policies.base import Policy

    for entry_point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        try:
            loaded = entry_point.load()
        except Exception as error:
            raise SettingsError(
                f"Setting OWL_POLICY (or app.conf.owl_policy) names {name!r}, but "
                f"{entry_point.value} cannot be imported ({type(error).__name__}: {error}); "
                "repair or uninstall that package."
            ) from error
        if not (isinstance(loaded, type) and issubclass(loaded, Policy)):
            raise SettingsError(
                f"Setting OWL_POLICY (or app.conf.owl_policy) names {name!r}, but "
                f"{entry_point.value} is not a subclass of owl_celery.policies.base.Policy."
            )
        return loaded
    raise SettingsError(
        f"Setting OWL_POLICY (or app.conf.owl_policy) names no policy: {name!r}; "
        f"the policies are: {', '.join(policy_names())}."
    )


def policy_names() -> list[str]:
    """Names of every policy that is installed, sorted."""
    return sorted({*BUILT_IN, *entry_points(group=ENTRY_POINT_GROUP).names})


def make_policy(settings: Settings) -> Policy:
    """Build the policy that the settings ask for.

    Raises
    ------
    SettingsError
        As ``policy_class``.

    """
    return policy_class(settings.policy).from_settings(settings)
