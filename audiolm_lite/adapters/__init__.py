"""Adapters: audio features [B, L, T, D] to audio tokens [B, N, H] in the LLM's embedding space.

Every adapter has `forward(features, frames) -> (tokens, counts)`, `num_tokens(frames)` (the same counts from frame
numbers alone, so that collation can lay out the prompt before any feature is computed) and `hidden(features, frames)`
(what its last linear map, `projection`, reads). A new adapter is one file here with a module constant `PART`.
"""
