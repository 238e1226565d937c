"""Adapters: audio features [B, L, T, D] to audio tokens [B, N, H] in the LLM's embedding space.

Every adapter has `forward(features, frames) -> (tokens, counts)` and `num_tokens(frames)` (the same counts from frame
numbers alone, so that collation can lay out the prompt before any feature is computed). Those that end in a linear map,
`projection`, also have `hidden(features, frames)`, which it reads. A new adapter is one file here with a module
constant `PART`. `frames.py` and `query_block.py` hold what several share.
"""
