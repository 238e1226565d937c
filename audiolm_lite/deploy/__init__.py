"""Making a trained model fast, and measuring how fast it is."""

from audiolm_lite.decoding.backend import Backend
from audiolm_lite.deploy.backends import available_backends, make_backend
from audiolm_lite.deploy.latency import measure, write_latency

__all__ = ["Backend", "available_backends", "make_backend", "measure", "write_latency"]
