"""The first tables."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make every table."""
    op.create_table(
        "owl_schema",
        _key("id", sa.BigInteger),
        _count("readable_by"),
    )
    op.execute("INSERT INTO owl_schema (id, readable_by) VALUES (1, 1)")
    op.create_table(
        "owl_learner",
        _key("namespace"),
        _text("cursor"),
        _count("commits"),
        _count("outcomes"),
        _number("updated_at"),
    )
    op.create_table(
        "owl_outcome",
        _key("namespace"),
        _key("number", sa.BigInteger),
        _text("key"),
        _text("task_id"),
        _text("decision_id"),
        _count("attempt"),
        _text("task_type"),
        _number("size"),
        _text("queue"),
        _text("worker_id"),
        _text("gpu_model"),
        _text("state"),
        _number("service_seconds"),
        _number("finished_at"),
        sa.Column("wait_seconds", sa.Double),
        sa.Column("predicted_seconds", sa.Double),
        _text("algorithm"),
        sa.Column("explored", sa.Boolean, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("out_of_memory", sa.Boolean, nullable=False),
        sa.Column("peak_memory_bytes", sa.BigInteger),
        sa.Column("model", sa.Text),
        sa.UniqueConstraint("namespace", "key", name="owl_outcome_key"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "owl_policy",
        _key("namespace"),
        _key("name"),
        _key("format", sa.BigInteger),
        _text("state"),
        _count("commit_number"),
        _number("updated_at"),
    )
    op.create_table(
        "owl_task_type",
        _key("namespace"),
        _key("task_type"),
        *_tally(),
        _count("out_of_memory"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "owl_worker",
        _key("namespace"),
        _key("worker_id"),
        *_tally(),
        _text("gpu_model"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "owl_assignment",
        _key("namespace"),
        _key("task_type"),
        _key("worker_id"),
        *_tally(),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "owl_service",
        _key("namespace"),
        _key("task_type"),
        _key("gpu_model"),
        _count("count"),
        _number("mean_seconds"),
        _number("m2"),
        _count("failures"),
        _count("out_of_memory"),
        sa.Column("peak_memory_bytes", sa.BigInteger),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "owl_algorithm",
        _key("namespace"),
        _key("algorithm"),
        *_tally(),
        *_judgement(),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "owl_curve",
        _key("namespace"),
        _key("bucket_seconds", sa.BigInteger),
        _key("started_at", sa.BigInteger),
        _key("algorithm"),
        *_tally(),
        *_judgement(),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "owl_q_value",
        _key("namespace"),
        _key("task_type"),
        _key("queue"),
        _text("gpu_model"),
        _number("seconds"),
        _number("idle_seconds"),
        _count("visits"),
        _number("changed_at"),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Drop every table, and with it all that was learned."""
    for name in (
        "owl_q_value",
        "owl_curve",
        "owl_algorithm",
        "owl_service",
        "owl_assignment",
        "owl_worker",
        "owl_task_type",
        "owl_policy",
        "owl_outcome",
        "owl_learner",
        "owl_schema",
    ):
        op.drop_table(name)


def _key(name: str, kind: type[sa.types.TypeEngine[Any]] = sa.Text) -> sa.Column[Any]:
    return sa.Column(name, kind, primary_key=True, nullable=False, autoincrement=False)


def _text(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Text, nullable=False)


def _count(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.BigInteger, nullable=False)


def _number(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Double, nullable=False)


def _tally() -> list[sa.Column[Any]]:
    return [
        _count("successes"),
        _count("failures"),
        _count("revoked"),
        _number("service_seconds"),
        _number("last_finished_at"),
    ]


def _judgement() -> list[sa.Column[Any]]:
    return [
        _count("responses"),
        _number("response_seconds"),
        _number("response_squared"),
        _count("explored"),
        _count("predictions"),
        _number("predicted_error_seconds"),
    ]
