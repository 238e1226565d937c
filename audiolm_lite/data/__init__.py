"""From manifests to batches: selecting and checking rows, reading clips, building prompts, padding."""
