"""Train with an adapter of your own: python 03_custom_adapter.py DATA_FOLDER [--epochs 3 ...]

DATA_FOLDER has train.jsonl and valid.jsonl, for example those of 02_your_own_data.py. To name the adapter in YAML, move
the class to audiolm_lite/adapters/gated_pooling.py, add `COMPONENT = GatedPooling`, and write `type: gated_pooling`.
"""

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from audiolm_lite.config.errors import run_command
from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.start import start_run
from audiolm_lite.modeling.masks import valid_mask
from audiolm_lite.training.build import build_datasets, build_model

HERE = Path(__file__).parent


class GatedPooling(nn.Module):
    """Average each two frames with learned weights, and map the result to the LLM's embedding size.

    Parameters
    ----------
    feature_dim : int
        Dimension D of one encoder frame.
    llm_dim : int
        Embedding dimension H of the LLM.
    """

    def __init__(self, feature_dim: int, llm_dim: int):
        super().__init__()
        self.gate = nn.Linear(feature_dim, 1)
        self.norm = nn.LayerNorm(feature_dim)
        self.projection = nn.Linear(feature_dim, llm_dim)

    def num_tokens(self, frames):
        """Audio tokens of a clip with `frames` frames; the prompt is laid out by this before any audio is read."""
        return (frames + 1) // 2

    def forward(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Map features [B, L, T, D] with `frames` [B] valid frames to tokens [B, N, H] and counts [B]."""
        x = features.mean(dim=1)  # [B, T, D]
        x = nn.functional.pad(x, (0, 0, 0, x.shape[1] % 2))
        valid = valid_mask(frames, x.shape[1])[..., None]
        # A padding frame has no weight, so a clip's tokens do not depend on its neighbours in the batch.
        weights = self.gate(x).masked_fill(~valid, -1e9).unflatten(1, (-1, 2)).softmax(dim=2)
        pooled = (x.unflatten(1, (-1, 2)) * weights).sum(dim=2)
        return self.projection(self.norm(pooled)), self.num_tokens(frames)


def main(argv: list[str]) -> None:
    """Train one stage with the adapter in place of the one that the YAML file names."""
    folder, *options = argv
    folder = str(Path(folder).resolve())
    os.chdir(HERE)
    output = ["--output_folder", f"{folder}/results/gated_pooling"]
    hparams, run_opts, resolved = load_experiment(["hparams/own_data.yaml", "--data_folder", folder, *output, *options])
    start_run(hparams, resolved)
    model, tokenizer = build_model(hparams)
    model.adapter = GatedPooling(model.encoder.feature_dim, model.embedding.embedding_dim)
    datasets = build_datasets(hparams, model, tokenizer)
    brain = hparams["brain"](model, hparams, run_opts)
    brain.print_parts()
    brain.fit_stage(datasets["train"], datasets["valid"])
    with torch.no_grad():
        print(f"validation after training: {brain.validate(datasets['valid'])}")


if __name__ == "__main__":
    run_command(main)
