"""Adapters: audio features [B, L, T, D] to audio tokens [B, N, H] in the LLM's embedding space. One file each.

Every adapter has `forward(features, frames) -> (tokens, counts)` and `num_tokens(frames)`, which computes the same
counts from numbers of frames: collation places the audio slots before any feature is computed. Adapters whose last
operation is a linear map, `projection`, also have `hidden(features, frames)`, its input. `single_layer` and
`query_block` are used by several adapters; `build` adds a LoRA.
"""
