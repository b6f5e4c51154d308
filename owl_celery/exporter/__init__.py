"""Prometheus metrics over HTTP, from what any process can read of an application."""

from __future__ import annotations

from owl_celery.exporter.exporter import Exporter, start_exporter

__all__ = ["Exporter", "start_exporter"]
