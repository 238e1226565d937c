"""Estimate of a training step's memory before any weight is read: audiolm-lite plan hparams/stage_3.yaml --vram 8

`simulate` runs the real step on tensors with shapes and without content, and counts every allocation. So there are no
formulas for activations that could differ from what the model, the adapter or the loss allocate.
"""
