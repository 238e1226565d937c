"""Pretrained models by name: where they are published, how they are fetched, checked and converted.

`resolve` turns a name into a folder in transformers' format. `ctranslate2` and `gguf` read two formats in which such
models are published.
"""
