"""The policy that has learned, made anew from what its store keeps."""

from __future__ import annotations

import copy
import logging

from owl_celery.aggregates import Learned
from owl_celery.errors import SettingsError, StateError
from owl_celery.policies import make_policy
from owl_celery.policies.base import Policy
from owl_celery.prior import Prior
from owl_celery.settings import Settings

logger = logging.getLogger(__name__)


def policy_of(learned: Learned, settings: Settings) -> tuple[Policy, Prior] | None:
    """The policy saved last that learns service times, and what it knows; None without any.

    What this release cannot read is named in the log and passed over.
    """
    for saved in learned.policies:
        try:
            policy = make_policy(settings.model_copy(update={"policy": saved.name}))
            policy.restore(copy.deepcopy(dict(saved.state)))
            prior = policy.export_prior()
        except (SettingsError, StateError) as error:
            logger.warning("What policy %s has learned is not used: %s", saved.name, error)
            continue
        except Exception as error:
            # A policy of somebody else may raise anything.
            logger.warning("What policy %s has learned is not used: %r", saved.name, error)
            continue
        if prior is not None:
            return policy, prior
    return None
