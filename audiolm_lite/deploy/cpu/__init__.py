"""The "cpu" backends: one step of a Llama-like LLM in C++, for any tokens of any rows, near the memory's speed."""
