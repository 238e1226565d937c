"""The audio language model: its batches, masks and losses, and settings of the transformers inside it."""
