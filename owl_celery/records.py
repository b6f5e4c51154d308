"""What the controller publishes: the queues, their load, and what the policy knows."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import FiniteFloat, PlainValidator

from owl_celery.wire import Concurrency, Count, dumps, read_checked


@dataclass(frozen=True, slots=True)
class FleetRecord:
    """Queues and what rarely changes about them; row ``i`` of every list is one queue."""

    version: int
    names: list[str]
    gpu_models: list[str]
    concurrency: list[Concurrency]

    def encode(self) -> str:
        """JSON text."""
        return dumps(asdict(self))


Column = Sequence[Any] | npt.NDArray[Any]


def _pack(column: Column, dtype: str) -> str:
    return b64encode(np.asarray(column, dtype=dtype).tobytes()).decode()


def _column(dtype: str, width: int = 1, is_finite: bool = True) -> PlainValidator:
    """Read a column of non-negative numbers; ``width`` of them a row."""

    def unpack(text: object) -> npt.NDArray[Any]:
        if not isinstance(text, str):
            raise ValueError("a column is text")
        column = np.frombuffer(b64decode(text, validate=True), dtype=dtype)
        if (is_finite and not np.isfinite(column).all()) or (column < 0).any():
            raise ValueError("a number of the column is out of bounds")
        return column.reshape(-1, width) if width > 1 else column

    return PlainValidator(unpack)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """Load of every queue, rows as in the ``FleetRecord`` of ``fleet_version``.

    Parameters
    ----------
    version
        Grows with every publication; equal versions mean that no controller is at work.
    ledger_time
        Redis clock, seconds, just before the assignments were read: whatever a producer reported
        before then is included.
    fleet_version, knowledge_version
        Of the records that go with this view.
    assigned_seconds
        Predicted seconds that all producers together had ever reported by ``ledger_time``: of the
        queues of each GPU model, in order of their names.
    waiting_count, waiting_seconds
        As in ``Fleet``.
    running
        ``(row, predicted seconds, elapsed seconds)`` of each running task, shape (R, 3).
    closed
        Rows that take no work.
    free_memory_bytes
        Free GPU memory of each row; NaN (or None, when written) where unknown.

    Notes
    -----
    Columns travel as base64 of little-endian numbers, since at 1,000 queues a list of numbers
    costs a producer thirty times as much to read. Any sequence can be written; arrays are read.

    """

    version: int
    ledger_time: FiniteFloat
    fleet_version: int
    knowledge_version: int
    waiting_count: Annotated[Column, _column("<i4")] = ()
    waiting_seconds: Annotated[Column, _column("<f4")] = ()
    running: Annotated[Column, _column("<f4", 3)] = ()
    closed: Sequence[Count] = ()
    free_memory_bytes: Annotated[Column, _column("<f8", is_finite=False)] = ()
    assigned_seconds: Annotated[Column, _column("<f8")] = ()

    def encode(self) -> str:
        """JSON text."""
        return dumps(
            {
                "version": self.version,
                "ledger_time": self.ledger_time,
                "fleet_version": self.fleet_version,
                "knowledge_version": self.knowledge_version,
                "waiting_count": _pack(self.waiting_count, "<i4"),
                "waiting_seconds": _pack(self.waiting_seconds, "<f4"),
                "assigned_seconds": _pack(self.assigned_seconds, "<f8"),
                "running": _pack(self.running, "<f4"),
                "closed": list(self.closed),
                "free_memory_bytes": _pack(self.free_memory_bytes, "<f8"),
            }
        )

    def __eq__(self, other: object) -> bool:
        """Whether both say the same."""
        return isinstance(other, View) and self.encode() == other.encode()

    __hash__ = None  # type: ignore[assignment]  # as of any dataclass that holds lists


@dataclass(frozen=True, slots=True)
class Knowledge:
    """The policy's snapshot, as published to producers."""

    version: int
    policy: str
    snapshot: Mapping[str, Any]

    def encode(self) -> str:
        """JSON text."""
        return encode_knowledge(self.version, self.policy, dumps(dict(self.snapshot)))


def encode_knowledge(version: int, policy: str, snapshot: str) -> str:
    """JSON text of a ``Knowledge`` record, of a snapshot that is JSON text already."""
    return f'{{"version":{version},"policy":{dumps(policy)},"snapshot":{snapshot}}}'


Record = TypeVar("Record", FleetRecord, View, Knowledge)


def decode_record(kind: type[Record], text: str | bytes) -> Record | None:
    """Read a record; unknown keys are ignored; None when it makes no sense."""
    return read_checked(kind, text)
