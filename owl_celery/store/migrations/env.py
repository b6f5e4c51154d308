"""Runs the migrations on the connection that ``owl_celery.store.migrate`` gives."""

from __future__ import annotations

from alembic import context

from owl_celery.store.migrate import VERSION_TABLE
from owl_celery.store.models import OwlModel

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=OwlModel.metadata,
    version_table=VERSION_TABLE,
    # Both databases can undo DDL, and our SQLite connections begin transactions by themselves.
    transactional_ddl=True,
    # SQLite cannot alter columns: Alembic copies the table instead.
    render_as_batch=True,
)
context.run_migrations()
