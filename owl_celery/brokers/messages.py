"""Messages fetched from RabbitMQ: which of them may be moved, and what a copy is made of."""

from __future__ import annotations

import json
from typing import Any, Final

from owl_celery.wire import AGAIN_HEADER, header_in

REBUILT_PROPERTIES: Final = {
    "application_headers",
    "body_encoding",
    "content_encoding",
    "content_type",
    "delivery_info",
    "delivery_tag",
    "headers",
}
"""Properties of a fetched message that publishing makes anew."""

DELIVERY_COUNT: Final = "x-delivery-count"
"""Header that quorum queues add to what they deliver."""


def copy_of(message: Any, channel: Any) -> Any:
    """A copy of a fetched message, to be published on a channel; its body is not touched."""
    properties = {
        name: value for name, value in message.properties.items() if name not in REBUILT_PROPERTIES
    }
    headers = {name: value for name, value in message.headers.items() if name != DELIVERY_COUNT}
    if message.delivery_info.get("redelivered"):
        headers[AGAIN_HEADER] = True
    return channel.prepare_message(
        message.body or b"",
        priority=properties.pop("priority", None),
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        headers=headers,
        properties=properties,
    )


def movable_header(message: Any, queue: str) -> str:
    """Our header, as JSON, of a message that may be moved; empty for any other."""
    headers, info = message.headers, message.delivery_info
    header = header_in(headers)
    if header is None or not header.is_routed or headers.get("eta") is not None:
        return ""
    # What came by an exchange of the user's goes where the user says.
    if info.get("exchange") or info.get("routing_key") != queue:
        return ""
    return json.dumps(header.encode())
