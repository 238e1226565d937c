"""Training of audio language models, stage by stage: model and datasets, training loop, checkpoints, logs."""
