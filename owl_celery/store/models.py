"""The tables, all named ``owl_...`` so that they can live in a database with others'.

Each has the columns of its value in ``aggregates`` or ``types`` after ``namespace``, which keeps
applications that share a database apart. Times are Unix times, durations are seconds. A column
that a later release adds must have a server default, so that this one can go on writing.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Double, Text, UniqueConstraint, text, true
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel


class OwlModel(SQLModel, registry=registry()):
    """A table of ours, in metadata of our own: a user's SQLModel migrations do not see it."""


class LearnerRow(OwlModel, table=True):
    """How far an application has learned: the row on which controllers meet."""

    __tablename__ = "owl_learner"

    namespace: str = Field(primary_key=True, sa_type=Text)
    cursor: str = Field(sa_type=Text)
    commits: int = Field(sa_type=BigInteger)
    outcomes: int = Field(sa_type=BigInteger)
    updated_at: float = Field(sa_type=Double)
    prior: int = Field(sa_type=BigInteger, sa_column_kwargs={"server_default": text("0")})


class OutcomeRow(OwlModel, table=True):
    """One try of one task; the oldest are dropped."""

    __tablename__ = "owl_outcome"
    __table_args__ = (UniqueConstraint("namespace", "key", name="owl_outcome_key"),)

    namespace: str = Field(primary_key=True, sa_type=Text)
    number: int = Field(primary_key=True, sa_type=BigInteger)
    key: str = Field(sa_type=Text)
    task_id: str = Field(sa_type=Text)
    decision_id: str = Field(sa_type=Text)
    attempt: int = Field(sa_type=BigInteger)
    task_type: str = Field(sa_type=Text)
    size: float = Field(sa_type=Double)
    queue: str = Field(sa_type=Text)
    worker_id: str = Field(sa_type=Text)
    gpu_model: str = Field(sa_type=Text)
    state: str = Field(sa_type=Text)
    service_seconds: float = Field(sa_type=Double)
    finished_at: float = Field(sa_type=Double)
    wait_seconds: float | None = Field(sa_type=Double, nullable=True)
    predicted_seconds: float | None = Field(sa_type=Double, nullable=True)
    algorithm: str = Field(sa_type=Text)
    explored: bool
    error: str | None = Field(sa_type=Text, nullable=True)
    out_of_memory: bool
    peak_memory_bytes: int | None = Field(sa_type=BigInteger, nullable=True)
    model: str | None = Field(sa_type=Text, nullable=True)


class PolicyRow(OwlModel, table=True):
    """The state of one policy in one format, as JSON text; ``commit_number`` orders the saves."""

    __tablename__ = "owl_policy"

    namespace: str = Field(primary_key=True, sa_type=Text)
    name: str = Field(primary_key=True, sa_type=Text)
    format: int = Field(primary_key=True, sa_type=BigInteger)
    state: str = Field(sa_type=Text)
    commit_number: int = Field(sa_type=BigInteger)
    updated_at: float = Field(sa_type=Double)


class TallyColumns(OwlModel):
    """The columns of ``Tally``."""

    successes: int = Field(sa_type=BigInteger)
    failures: int = Field(sa_type=BigInteger)
    revoked: int = Field(sa_type=BigInteger)
    service_seconds: float = Field(sa_type=Double)
    last_finished_at: float = Field(sa_type=Double)


class TaskTypeRow(TallyColumns, table=True):
    """``TaskTypeStats``."""

    __tablename__ = "owl_task_type"

    namespace: str = Field(primary_key=True, sa_type=Text)
    task_type: str = Field(primary_key=True, sa_type=Text)
    out_of_memory: int = Field(sa_type=BigInteger)


class WorkerRow(TallyColumns, table=True):
    """``WorkerStats``."""

    __tablename__ = "owl_worker"

    namespace: str = Field(primary_key=True, sa_type=Text)
    worker_id: str = Field(primary_key=True, sa_type=Text)
    gpu_model: str = Field(sa_type=Text)


class AssignmentRow(TallyColumns, table=True):
    """``AssignmentStats``."""

    __tablename__ = "owl_assignment"

    namespace: str = Field(primary_key=True, sa_type=Text)
    task_type: str = Field(primary_key=True, sa_type=Text)
    worker_id: str = Field(primary_key=True, sa_type=Text)


class ServiceRow(OwlModel, table=True):
    """``ServiceStats``."""

    __tablename__ = "owl_service"

    namespace: str = Field(primary_key=True, sa_type=Text)
    task_type: str = Field(primary_key=True, sa_type=Text)
    gpu_model: str = Field(primary_key=True, sa_type=Text)
    count: int = Field(sa_type=BigInteger)
    mean_seconds: float = Field(sa_type=Double)
    m2: float = Field(sa_type=Double)
    failures: int = Field(sa_type=BigInteger)
    out_of_memory: int = Field(sa_type=BigInteger)
    peak_memory_bytes: int | None = Field(sa_type=BigInteger, nullable=True)


class AlgorithmColumns(TallyColumns):
    """The columns that ``AlgorithmStats`` and ``CurvePoint`` share."""

    responses: int = Field(sa_type=BigInteger)
    response_seconds: float = Field(sa_type=Double)
    response_squared: float = Field(sa_type=Double)
    explored: int = Field(sa_type=BigInteger)
    predictions: int = Field(sa_type=BigInteger)
    predicted_error_seconds: float = Field(sa_type=Double)


class AlgorithmRow(AlgorithmColumns, table=True):
    """``AlgorithmStats``."""

    __tablename__ = "owl_algorithm"

    namespace: str = Field(primary_key=True, sa_type=Text)
    algorithm: str = Field(primary_key=True, sa_type=Text)


class CurveRow(AlgorithmColumns, table=True):
    """``CurvePoint``."""

    __tablename__ = "owl_curve"

    namespace: str = Field(primary_key=True, sa_type=Text)
    bucket_seconds: int = Field(primary_key=True, sa_type=BigInteger)
    started_at: int = Field(primary_key=True, sa_type=BigInteger)
    algorithm: str = Field(primary_key=True, sa_type=Text)


class QValueRow(OwlModel, table=True):
    """``QValue``: the readable Q table."""

    __tablename__ = "owl_q_value"

    namespace: str = Field(primary_key=True, sa_type=Text)
    task_type: str = Field(primary_key=True, sa_type=Text)
    queue: str = Field(primary_key=True, sa_type=Text)
    gpu_model: str = Field(sa_type=Text)
    seconds: float = Field(sa_type=Double)
    idle_seconds: float = Field(sa_type=Double)
    visits: int = Field(sa_type=BigInteger)
    changed_at: float = Field(sa_type=Double)
    is_open: bool = Field(sa_type=Boolean, sa_column_kwargs={"server_default": true()})


class PriorRow(OwlModel, table=True):
    """What was imported from another site; the text goes when the policy has taken it."""

    __tablename__ = "owl_prior"

    namespace: str = Field(primary_key=True, sa_type=Text)
    number: int = Field(primary_key=True, sa_type=BigInteger)
    document: str = Field(sa_type=Text)
    created_at: float = Field(sa_type=Double)
    report: str | None = Field(sa_type=Text, nullable=True)
    taken_at: float | None = Field(sa_type=Double, nullable=True)


class SchemaRow(OwlModel, table=True):
    """The oldest schema number whose release can still use this database."""

    __tablename__ = "owl_schema"

    id: int = Field(primary_key=True, sa_type=BigInteger)
    readable_by: int = Field(sa_type=BigInteger)
