"""Audio encoders: (waveforms [B, S], lengths [B]) -> (features [B, L, T, D], frames [B]). One file, one encoder."""
