"""What was imported from other sites, and where a task type may not be sent."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the table of imports and two columns; release 0001 goes on writing beside them."""
    op.create_table(
        "owl_prior",
        sa.Column("namespace", sa.Text, primary_key=True, nullable=False),
        sa.Column("number", sa.BigInteger, primary_key=True, nullable=False, autoincrement=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("report", sa.Text),
        sa.Column("taken_at", sa.Double),
    )
    op.add_column(
        "owl_learner",
        sa.Column("prior", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    )
    op.add_column(
        "owl_q_value", sa.Column("is_open", sa.Boolean, nullable=False, server_default=sa.true())
    )


def downgrade() -> None:
    """Drop them again."""
    op.drop_column("owl_q_value", "is_open")
    op.drop_column("owl_learner", "prior")
    op.drop_table("owl_prior")
