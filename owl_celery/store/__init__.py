"""Where what was learned is kept: SQLite by default, Postgres by ``DATABASE_URL``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from owl_celery.settings import Settings
    from owl_celery.store.sql import SqlStore


def open_store(settings: Settings, namespace: str | None = None) -> SqlStore:
    """Make the store of one application; it connects and updates the schema at first use.

    Parameters
    ----------
    settings
        ``database_url``, or ``continuous_learning_storage_path`` without one.
    namespace
        Keeps applications that share a database apart; ``settings.namespace`` when omitted.

    Raises
    ------
    StoreError
        When ``database_url`` is no address of a database we can use.

    """
    # Importing SQLAlchemy takes longer than a worker parent that never leads should pay.
    from owl_celery.store.engine import database_of
    from owl_celery.store.sql import SqlStore

    return SqlStore(database_of(settings), settings.namespace if namespace is None else namespace)
