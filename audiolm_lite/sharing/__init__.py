"""Publishing finished models on the Hugging Face hub, with a model card."""
