"""Causal language models, their tokenizers, and prompt templates."""
