"""Memory of a training step before any weight is read: audiolm-lite plan hparams/stage_3.yaml --vram 8

The step itself runs, on tensors that have shapes and no content (`simulate`), so there is no formula to go wrong: what
the model, its adapter or its loss allocate is what is counted.
"""
