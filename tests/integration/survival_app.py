"""The example application, with redelivery after seconds instead of Celery's hour."""

from __future__ import annotations

import os

from workers.app import app

VISIBILITY_SECONDS = 4
if url := os.environ.get("TEST_BROKER_URL"):
    app.conf.broker_url = url
app.conf.broker_transport_options = {
    **(app.conf.broker_transport_options or {}),
    "visibility_timeout": VISIBILITY_SECONDS,
}
