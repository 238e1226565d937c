"""Audio encoders: waveforms [B, S] and lengths [B] to features [B, L, T, D] and valid frames [B]. One file each.

`layer_selection`, `clip_length`, `checkpoints`, `pooling` and `relative_position` are used by several encoders.
"""
