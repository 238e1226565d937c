"""Audio features on disk: computed once by a frozen encoder, read by every training run."""
