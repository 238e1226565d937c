"""Data preparation: corpus readers, text normalisation, questions, manifests, and conversion between formats."""
