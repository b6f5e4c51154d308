"""``python -m owl_celery``: the same as ``owl``."""

from owl_celery.cli import owl

owl(prog_name="owl")
