"""Training of audio language models: experiment files, trainable parts, the Brain, checkpoints, stage hand-over."""
