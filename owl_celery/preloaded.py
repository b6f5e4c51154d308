"""Imported by the fork server of ``celery owl worker`` before any worker starts, and by it alone.

What all workers need is imported once; each is forked from here in a tenth of the time. Nothing
of the user's is imported: each worker does that itself, with its own environment in place.
"""

from __future__ import annotations

import signal

import owl_celery.controller.controller
import owl_celery.installation  # noqa: F401

# A process manager signals all processes of a service at once, a terminal that closes too: the
# server has to stay until its workers have drained. It ends with the supervisor.
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
