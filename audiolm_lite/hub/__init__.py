"""Model folders: their format, and saving and loading finished models."""
