"""The errors a caller may want to catch; their docstrings are their default messages."""

from __future__ import annotations

from typing import Final


class OwlError(Exception):
    """Something in owl_celery failed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


class SettingsError(OwlError):
    """A setting has a value that cannot be used."""


class StoreError(OwlError):
    """The database cannot be used."""


class StaleCursorError(StoreError):
    """Another controller has moved the stream cursor; reload before learning on."""


class UnsavableStateError(StoreError):
    """A policy's state cannot be written as JSON; nothing was committed."""


class NoOpenQueueError(OwlError):
    """No queue is open to route to."""


class StateError(OwlError):
    """A saved policy state cannot be read by this release."""


class UnknownModeError(OwlError):
    """There is no such mode; it is one of on, shadow, off."""


class UnknownQueueError(OwlError):
    """No worker serves such a queue."""


class WorkerError(OwlError):
    """A GPU worker cannot start."""


CLAIMED_EXIT_STATUS: Final = 69
"""Of a worker whose GPU or queue belongs to another: starting it again is of no use."""


class BrokerError(OwlError):
    """The broker cannot be used."""


class PriorError(OwlError):
    """A file of what another site has learned cannot be used."""


class InputError(OwlError):
    """A table, trace or event file of the simulator cannot be used."""
