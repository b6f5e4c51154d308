"""Between values and rows: how each value is written to its table and read back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cached_property
from operator import attrgetter, itemgetter
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import ColumnElement, Connection, Select, Table, bindparam, func, select
from sqlalchemy.dialects import postgresql, sqlite

from owl_celery.aggregates import (
    AlgorithmStats,
    AssignmentStats,
    CurvePoint,
    QValue,
    ServiceStats,
    TaskTypeStats,
    WorkerStats,
)
from owl_celery.store.base import NumberedOutcome
from owl_celery.store.models import (
    AlgorithmRow,
    AssignmentRow,
    CurveRow,
    LearnerRow,
    OutcomeRow,
    OwlModel,
    PolicyRow,
    PriorRow,
    QValueRow,
    ServiceRow,
    TaskTypeRow,
    WorkerRow,
)
from owl_celery.types import Outcome, TryState

Value = TypeVar("Value")
Insert = postgresql.Insert | sqlite.Insert


def table_of(model: type[OwlModel]) -> Table:
    """The table of a model."""
    return OwlModel.metadata.tables[str(model.__tablename__)]


COUNTED: Final = {"preserve_rowcount": True}
"""Without it SQLAlchemy says -1 of an INSERT."""


class Writer:
    """Writes many rows of a table by one statement, compiled once for each kind of database.

    Parameters
    ----------
    table
        Where to.
    names
        Columns that each row gives, in order.
    replaces
        Whether a row replaces the one with the same primary key; else it is left out when it
        breaks any unique key.

    """

    def __init__(self, table: Table, names: Sequence[str], replaces: bool) -> None:
        self.table = table
        self.names = tuple(names)
        self._replaces = replaces
        self._sqlite = self._statement(
            sqlite.insert(table).values({name: bindparam(name) for name in self.names})
        )
        # Arrays make one statement of any number of rows, ten times as fast as one for each.
        arrays = [
            func.unnest(bindparam(name, type_=postgresql.ARRAY(table.c[name].type)))
            for name in self.names
        ]
        self._postgres = self._statement(
            postgresql.insert(table).from_select(self.names, select(*arrays))
        )

    def _statement(self, insert: Insert) -> Insert:
        if not self._replaces:
            return insert.on_conflict_do_nothing()
        return insert.on_conflict_do_update(
            index_elements=list(self.table.primary_key),
            set_={name: insert.excluded[name] for name in self.names if not self._is_key(name)},
        )

    def _is_key(self, name: str) -> bool:
        return bool(self.table.c[name].primary_key)

    @cached_property
    def _on_sqlite(self) -> tuple[str, Callable[[tuple[Any, ...]], tuple[Any, ...]]]:
        """The statement as text, and what puts a row in the order of its parameters."""
        compiled = self._sqlite.compile(dialect=sqlite.dialect(paramstyle="qmark"))
        order = [self.names.index(name) for name in compiled.positiontup or ()]
        return str(compiled), itemgetter(*order)

    def write(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> int:
        """Write rows, each with the values of ``names`` in order; returns how many were written."""
        if not rows:
            return 0
        if connection.dialect.name == "sqlite":
            statement, in_order = self._on_sqlite
            done = connection.exec_driver_sql(
                statement, [in_order(row) for row in rows], execution_options=COUNTED
            )
        else:
            columns = zip(*rows, strict=True)
            arrays = {name: list(column) for name, column in zip(self.names, columns, strict=True)}
            done = connection.execute(self._postgres, arrays, execution_options=COUNTED)
        return done.rowcount


class Mapper(Generic[Value]):
    """Writes and reads the values of one kind, whose fields are the columns of a table.

    Parameters
    ----------
    kind
        A dataclass.
    model
        Its table, with ``namespace`` besides.

    """

    def __init__(self, kind: type[Value], model: type[OwlModel]) -> None:
        self.kind = kind
        self.table = table_of(model)
        self.names = tuple(field.name for field in fields(kind))  # type: ignore[arg-type]
        self._values_of = attrgetter(*self.names)
        self._writer = Writer(self.table, ("namespace", *self.names), replaces=True)

    def write(self, connection: Connection, namespace: str, values: Sequence[Value]) -> None:
        """Write values in the place of those with the same key."""
        rows = [(namespace, *self._values_of(value)) for value in values]
        self._writer.write(connection, rows)

    def select(self, namespace: str) -> Select[Any]:
        """Query of the columns in order of the fields, in this namespace."""
        columns = [self.table.c[name] for name in self.names]
        return select(*columns).where(self.table.c.namespace == namespace)

    def all(self, connection: Connection, namespace: str) -> tuple[Value, ...]:
        """Read every value of a namespace."""
        rows = connection.execute(self.select(namespace))
        return tuple(self.kind(**dict(zip(self.names, row, strict=True))) for row in rows)


OUTCOME: Final = table_of(OutcomeRow)
LEARNER: Final = table_of(LearnerRow)
POLICY: Final = table_of(PolicyRow)
PRIOR: Final = table_of(PriorRow)

TASK_TYPES: Final = Mapper(TaskTypeStats, TaskTypeRow)
WORKERS: Final = Mapper(WorkerStats, WorkerRow)
ASSIGNMENTS: Final = Mapper(AssignmentStats, AssignmentRow)
SERVICES: Final = Mapper(ServiceStats, ServiceRow)
ALGORITHMS: Final = Mapper(AlgorithmStats, AlgorithmRow)
CURVE: Final = Mapper(CurvePoint, CurveRow)
Q_VALUES: Final = Mapper(QValue, QValueRow)

LEARNER_WRITER: Final = Writer(LEARNER, tuple(LEARNER.c.keys()), replaces=False)
POLICY_WRITER: Final = Writer(POLICY, tuple(POLICY.c.keys()), replaces=True)
PRIOR_WRITER: Final = Writer(PRIOR, tuple(PRIOR.c.keys()), replaces=False)

_OUTCOME_NAMES: Final = tuple(field.name for field in fields(Outcome))
_OUTCOME_WRITER: Final = Writer(
    OUTCOME, ("namespace", "number", "key", *_OUTCOME_NAMES), replaces=False
)
_values_of = attrgetter(*_OUTCOME_NAMES)


def insert_outcomes(
    connection: Connection, namespace: str, first_number: int, outcomes: Sequence[Outcome]
) -> None:
    """Add outcomes, numbered in order; one whose key is there already is left out."""
    _OUTCOME_WRITER.write(
        connection,
        [
            (namespace, number, outcome.key, *_values_of(outcome))
            for number, outcome in enumerate(outcomes, first_number)
        ],
    )


def latest_outcomes(connection: Connection, namespace: str, limit: int) -> list[Outcome]:
    """Read the outcomes with the highest numbers, the highest last."""
    found = numbered_outcomes(connection, namespace, (), limit)
    return [outcome for _, outcome in reversed(found)]


def numbered_outcomes(
    connection: Connection,
    namespace: str,
    conditions: Sequence[ColumnElement[bool]],
    limit: int,
) -> list[NumberedOutcome]:
    """Read those outcomes with the highest numbers that meet the conditions, the highest first."""
    query = (
        select(OUTCOME.c.number, *(OUTCOME.c[name] for name in _OUTCOME_NAMES))
        .where(OUTCOME.c.namespace == namespace, *conditions)
        .order_by(OUTCOME.c.number.desc())
        .limit(limit)
    )
    found = []
    for number, *row in connection.execute(query):
        values = dict(zip(_OUTCOME_NAMES, row, strict=True))
        outcome = Outcome(**values | {"state": TryState(values["state"])})
        found.append(NumberedOutcome(number, outcome))
    return found
