"""The demo: the same tasks through plain Celery's shared queue, then through the router."""
