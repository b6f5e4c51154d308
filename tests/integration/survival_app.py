"""The example application, with redelivery after seconds instead of Celery's hour."""

from __future__ import annotations

from workers.app import app

VISIBILITY_SECONDS = 4
app.conf.broker_transport_options = {
    **(app.conf.broker_transport_options or {}),
    "visibility_timeout": VISIBILITY_SECONDS,
}
