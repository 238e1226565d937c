"""Experiment files and command lines: YAML reading, documented keys, the registry of components, errors."""
