"""Language models and their prompts."""
