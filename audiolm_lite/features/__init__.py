"""Audio features on disk: a frozen encoder computes them once, and every training run reads them."""
