"""Metrics of free-text answers: one file per metric family, listed in `registry.FAMILIES`."""
