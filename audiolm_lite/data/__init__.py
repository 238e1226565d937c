"""Manifests, datasets and batches: from JSON lines to what the model reads."""
