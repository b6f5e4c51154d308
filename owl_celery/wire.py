"""What travels: the task header, stream events and heartbeats.

Everything is JSON with short keys. Readers ignore keys they do not know and refuse values that
are out of bounds, since whatever comes from the broker is untrusted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final, NamedTuple, Self, TypeAlias, TypeVar

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError
from pydantic_core import from_json

from owl_celery.types import MAX_SIZE, MIN_SIZE, Outcome, TaskView

HEADER: Final = "owl"
AGAIN_HEADER: Final = "owl_again"
"""True on a copy of a message that was delivered before; the copy itself never was."""

WIRE_VERSION: Final = 1
MAX_NAME_LENGTH: Final = 255
MAX_SECONDS: Final = 10.0 * 365 * 86_400
MAX_UNIX_TIME: Final = 1e11
MAX_BYTES: Final = 2.0**62
MAX_VERSION: Final = 2.0**53
MODES: Final = ("on", "shadow", "off")

Name = Annotated[str, Field(max_length=MAX_NAME_LENGTH)]
Count = Annotated[int, Field(ge=0, lt=2**62)]
Concurrency = Annotated[int, Field(ge=1, le=1024)]


def dumps(value: Any) -> str:
    """Encode as compact JSON; NaN and infinity are refused."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def mode_of(text: object) -> str:
    """Read the kill switch: ``shadow`` and ``off`` in any spelling, and ``on`` for all else.

    Examples
    --------
    >>> [mode_of(text) for text in ("off", " OFF", None, "bogus")]
    ['off', 'off', 'on', 'on']

    """
    mode = text.strip().lower() if isinstance(text, str) else ""
    return mode if mode in MODES else "on"


def unknown_mode(text: object) -> str:
    """Say in a sentence that the kill switch has a value it does not know; else empty.

    Examples
    --------
    >>> unknown_mode("OFF")
    ''
    >>> unknown_mode("of")
    "Mode 'of' in Redis is none of on, shadow, off and counts as on: set it by celery owl mode."

    """
    if text is None or (isinstance(text, str) and text.strip().lower() in MODES):
        return ""
    shown = repr(text[:20] if isinstance(text, str) else text)
    return (
        f"Mode {shown} in Redis is none of {', '.join(MODES)} and counts as on: "
        "set it by celery owl mode."
    )


def bounded_seconds(value: object, default: float = 0.0, longest: float = MAX_SECONDS) -> float:
    """Read a number, most often a duration; what is not in [0, longest] is ``default``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return default
    return float(value) if math.isfinite(value) and 0.0 <= value <= longest else default


def bounded_text(value: object, default: str = "") -> str:
    """Read a name; anything that is not text is ``default``, and long text is cut."""
    return value[:MAX_NAME_LENGTH] if isinstance(value, str) else default


class TaskHeader(NamedTuple):
    """The message header ``owl``: how the task was routed; under 300 bytes for usual names.

    Parameters
    ----------
    decision_id
        Joins the outcome to the decision.
    queue
        The queue it was published to.
    algorithm
        Policy that chose, or ``celery`` (fell back), or ``user`` (explicit destination).
    task_type, size, model
        As in ``TaskView``.
    service_seconds
        Predicted service time; None without a prediction.
    policy_version
        Version of the knowledge that was used.
    published_at
        Unix time; 0 when unknown.
    explored, propensity
        As in ``Decision``.
    tried
        GPU models on which earlier tries failed.
    exceeded_bytes
        As in ``TaskView``.

    """

    decision_id: str
    queue: str
    algorithm: str
    task_type: str
    published_at: float
    size: float = 1.0
    model: str | None = None
    service_seconds: float | None = None
    policy_version: int = 0
    explored: bool = False
    propensity: float | None = None
    tried: tuple[str, ...] = ()
    exceeded_bytes: float = 0.0

    def view(self) -> TaskView:
        """The task as its producer described it to the policy."""
        tried = frozenset(self.tried)
        return TaskView(self.task_type, self.size, self.model, tried, self.exceeded_bytes)

    @property
    def is_routed(self) -> bool:
        """Whether a policy has chosen the queue, and neither the sender nor Celery."""
        return self.algorithm not in ("user", "celery")

    def encode(self) -> dict[str, Any]:
        """Value for the message header; optional parts are left out."""
        encoded: dict[str, Any] = {
            "v": WIRE_VERSION,
            "d": self.decision_id,
            "q": self.queue,
            "a": self.algorithm,
            "k": self.task_type,
            "t": round(self.published_at, 4),
            "m": self.policy_version,
        }
        if self.size != 1.0:
            encoded["z"] = self.size
        if self.model is not None:
            encoded["w"] = self.model
        if self.service_seconds is not None:
            encoded["s"] = round(self.service_seconds, 6)
        if self.explored:
            encoded["x"] = 1
        if self.propensity is not None:
            encoded["p"] = round(self.propensity, 6)
        if self.tried:
            encoded["tried"] = list(self.tried)
        if self.exceeded_bytes:
            encoded["b"] = int(self.exceeded_bytes)
        return encoded

    @classmethod
    def decode(cls, value: object) -> Self | None:
        """Read a header from a message; None when there is none or it makes no sense."""
        if not isinstance(value, Mapping) or not isinstance(value.get("d"), str):
            return None
        size = bounded_seconds(value.get("z"), 1.0, MAX_SIZE)
        seconds = value.get("s")
        propensity = value.get("p")
        version = value.get("m")
        tried = value.get("tried")
        return cls(
            decision_id=bounded_text(value["d"]),
            queue=bounded_text(value.get("q")),
            algorithm=bounded_text(value.get("a"), "celery"),
            task_type=bounded_text(value.get("k")),
            published_at=bounded_seconds(value.get("t"), longest=MAX_UNIX_TIME),
            size=size if size >= MIN_SIZE else 1.0,
            model=bounded_text(value["w"]) if isinstance(value.get("w"), str) else None,
            service_seconds=None if seconds is None else bounded_seconds(seconds),
            policy_version=int(bounded_seconds(version, longest=MAX_VERSION)),
            explored=bool(value.get("x")),
            propensity=None if propensity is None else bounded_seconds(propensity, longest=1.0),
            tried=tuple(bounded_text(t) for t in tried[:16]) if isinstance(tried, list) else (),
            exceeded_bytes=bounded_seconds(value.get("b"), longest=MAX_BYTES),
        )


def header_in(headers: object) -> TaskHeader | None:
    """Find our header among message headers, also where another library nested them."""
    if not isinstance(headers, Mapping):
        return None
    value = headers.get(HEADER)
    if value is None and isinstance(headers.get("headers"), Mapping):
        value = headers["headers"].get(HEADER)
    return TaskHeader.decode(value)


@dataclass(frozen=True, slots=True)
class Started:
    """Event: a worker process began a try."""

    task_id: str
    decision_id: str
    attempt: int
    task_type: str
    queue: str
    worker_id: str
    gpu_model: str
    service_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Discarded:
    """Event: a worker took a task and did not run it, since it had expired or was revoked."""

    task_id: str
    decision_id: str
    attempt: int
    task_type: str
    queue: str
    worker_id: str
    gpu_model: str
    service_seconds: float | None = None


Event: TypeAlias = Started | Discarded | Outcome
EVENTS: Final[Mapping[str, type[Event]]] = {"start": Started, "drop": Discarded, "end": Outcome}
KINDS: Final = {kind: name for name, kind in EVENTS.items()}


def encode_event(event: Event) -> str:
    """Encode an event for the stream."""
    kind = KINDS[type(event)]
    body = {name: value for name, value in asdict(event).items() if value is not None}
    return dumps({"e": kind, **body})


def decode_event(text: str | bytes) -> Event | None:
    """Read an event from the stream; None when it makes no sense."""
    try:
        body = from_json(text)
        return _reader(EVENTS[body["e"]]).validate_python(body)
    except (ValueError, TypeError, KeyError):
        return None


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a worker says of itself every second and on change.

    Parameters
    ----------
    node
        Celery node name.
    queue
        The queue that it alone serves; empty for a plain Celery worker.
    gpu_model, gpu_uuid
        Product name and UUID of its GPU; ``cpu`` and empty for CPU processes.
    concurrency
        Tasks it runs at a time.
    active
        Ids of the tasks it holds.
    draining
        Whether it takes no more work.
    memory_total_bytes, memory_free_bytes, utilization_ratio, temperature_celsius, power_watts
        GPU readings; None where unknown.
    memory_own_bytes
        GPU memory that the worker's own processes hold.
    tick_age_seconds
        Seconds since the worker's event loop last ran; large when it is wedged, 0 while a task runs
        in a pool that blocks it.
    life
        Tells the process from one that had the same node name before.
    consuming
        Whether it is connected to the broker, and takes from its queue.
    is_simulated
        Whether the GPU is a virtual one.

    """

    node: Name
    queue: Name = ""
    gpu_model: Name = ""
    gpu_uuid: Name = ""
    concurrency: Concurrency = 1
    active: tuple[str, ...] = ()
    draining: bool = False
    memory_total_bytes: Count | None = None
    memory_free_bytes: Count | None = None
    memory_own_bytes: Count | None = None
    utilization_ratio: FiniteFloat | None = None
    temperature_celsius: FiniteFloat | None = None
    power_watts: FiniteFloat | None = None
    tick_age_seconds: FiniteFloat = 0.0
    consuming: bool = True
    life: Name = ""
    is_simulated: bool = False
    version: int = WIRE_VERSION

    def encode(self) -> str:
        """JSON text."""
        return dumps({k: v for k, v in asdict(self).items() if v is not None})

    @classmethod
    def decode(cls, text: str | bytes) -> Self | None:
        """Read a heartbeat; None when it makes no sense."""
        return read_checked(cls, text)


Value = TypeVar("Value")
_readers: dict[type, TypeAdapter[Any]] = {}


def _reader(kind: type[Value]) -> TypeAdapter[Value]:
    """What checks the fields of ``kind`` against their types; made at first use."""
    if kind not in _readers:
        _readers[kind] = TypeAdapter(kind)
    return _readers[kind]


def read_checked(kind: type[Value], text: str | bytes) -> Value | None:
    """Read JSON as this kind; None when a field is missing, of another type or out of bounds."""
    try:
        return _reader(kind).validate_json(text)
    except ValidationError:
        return None
