"""Compiled backends of a trained model, and measurement of its latency."""

from audiolm_lite.deploy.backends import available_backends, make_backend
from audiolm_lite.deploy.latency import measure

__all__ = ["available_backends", "make_backend", "measure"]
