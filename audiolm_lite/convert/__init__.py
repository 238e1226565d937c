"""Conversion of published checkpoints to model folders, and export of LoRAs and LLMs: `audiolm-lite convert`.

One file per format: `slam_llm`, `salmonn`, `nemo_salm`, `ltu_as`, `voxtral`. Each has a list of rules for the names of
all published tensors, so that none is dropped or misread silently. `export` writes folders that PEFT and transformers
load.
"""
