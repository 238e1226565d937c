"""Records of a run: progress bar, files of JSON lines, TensorBoard, Weights & Biases, and the curves as a picture."""
