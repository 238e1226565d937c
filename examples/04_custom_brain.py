"""Change the forward pass and the loss: python 04_custom_brain.py DATA_FOLDER [--epochs 3 ...]

DATA_FOLDER has train.jsonl and valid.jsonl, for example those of 02_your_own_data.py. The subclass below drops some
audio tokens in training, so that the LLM cannot rely on single ones, and adds a penalty that keeps their lengths near
those of word embeddings. A recipe names its own Brain in YAML: `brain: !name:my_module.MyBrain`.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from audiolm_lite.config.errors import run_command
from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.start import start_run
from audiolm_lite.modeling.audio_language_model import Loss
from audiolm_lite.modeling.batch import Batch
from audiolm_lite.training.brain import AudioLMBrain
from audiolm_lite.training.build import build_datasets, build_model

if TYPE_CHECKING:
    import speechbrain as sb

HERE = Path(__file__).parent
DROP, PENALTY = 0.1, 0.01


class DroppingBrain(AudioLMBrain):
    """Drops audio tokens in training, and penalises audio tokens that are longer or shorter than word embeddings."""

    def __init__(self, model: nn.Module, hparams: dict, run_opts: dict | None = None):
        super().__init__(model, hparams, run_opts)
        model.adapter.register_forward_hook(self._drop_and_measure)
        self.word_length = model.embedding.weight.detach().float().norm(dim=-1).mean()

    def _drop_and_measure(self, adapter: nn.Module, inputs: tuple, output: tuple[Tensor, Tensor]):
        tokens, counts = output
        # zero, not removed: the prompt has a slot for each of them
        tokens = tokens * nn.functional.dropout(tokens.new_ones(tokens.shape[:2]), DROP, adapter.training)[..., None]
        self.length_error = (tokens.float().norm(dim=-1) / self.word_length - 1).square().sum()
        return tokens, counts

    def compute_forward(self, batch: Batch, stage: "sb.Stage") -> Loss:
        """Run the model as usual; the hook has changed its audio tokens."""
        return super().compute_forward(batch, stage)

    def compute_objectives(self, predictions: Loss, batch: Batch, stage: "sb.Stage") -> Tensor:
        """Add the penalty to the sum of the cross-entropies; both are divided by the answer tokens of the window."""
        return super().compute_objectives(predictions, batch, stage) + PENALTY * self.length_error


def main(argv: list[str]) -> None:
    """Train the same stage with the plain Brain and with the subclass, and print both validation results."""
    folder, *options = argv
    folder = str(Path(folder).resolve())
    os.chdir(HERE)
    for name, brain_class in (("plain", AudioLMBrain), ("dropping", DroppingBrain)):
        output = ["--output_folder", f"{folder}/results/{name}"]
        hparams, run_opts, resolved = load_experiment(
            ["hparams/own_data.yaml", "--data_folder", folder, *output, *options]
        )
        start_run(hparams, resolved)
        model, tokenizer = build_model(hparams)
        datasets = build_datasets(hparams, model, tokenizer)
        brain = brain_class(model, hparams | {"brain": brain_class}, run_opts)
        brain.fit_stage(datasets["train"], datasets["valid"])
        print(f"{name}: {brain.validate(datasets['valid'])}")


if __name__ == "__main__":
    run_command(main)
