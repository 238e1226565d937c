"""Reference files of published systems, and what several checks build from them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from audiolm_lite.adapters.build import build_adapter
from audiolm_lite.backbones.tensor_report import require_complete
from audiolm_lite.convert.tensor_rules import Converted, check_adapter
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.modeling.batch import Batch

# Absolute tolerances. An additional relative tolerance would hide wrong epsilons of norms.
STATES, LOGITS, LOSS, LOG_MEL, CONFORMER = 2e-5, 5e-5, 1e-5, 5e-5, 1e-5


@dataclass
class Reference:
    """One file: hyperparameters, weights, inputs and outputs of a published module.

    Attributes
    ----------
    config : dict
        Hyperparameters; "case" names the module.
    state, inputs, outputs : dict of str to Tensor
        By name, without the prefixes `state.`, `input.` and `output.`.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @property
    def subcases(self) -> list[str]:
        """First parts of the input names, e.g. "a" of "a.speech"."""
        return sorted({name.split(".")[0] for name in self.inputs})


def read_reference(path: Path) -> Reference:
    """Read a file."""
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    groups = (
        {name.removeprefix(kind): tensor for name, tensor in tensors.items() if name.startswith(kind)}
        for kind in ("state.", "input.", "output.")
    )
    return Reference(config, *groups)


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Absolute comparison; tensors that must be equal have tolerance 0."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def converted_adapter(converted: Converted, num_layers: int = 1, **changes: Any) -> nn.Module:
    """Adapter with all tensors of a conversion; `changes` replace entries of its block."""
    converted.block |= changes
    converted.sizes["num_layers"] = num_layers
    check_adapter(converted)
    require_complete(converted.report)
    adapter = build_adapter(converted.block, **converted.sizes)
    adapter.load_state_dict(converted.adapter)
    return adapter.eval()


def llama(config: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
    """The tiny LLM of a reference, from entries of its config and the tensors of a conversion."""
    llm = LlamaForCausalLM(LlamaConfig(**{"tie_word_embeddings": False, **config}))
    llm.load_state_dict(state)
    return llm.eval()


def make_batch(features: Tensor, frames: Tensor, input_ids: Tensor, mask: Tensor, labels: Tensor) -> Batch:
    """A batch in the layout of a publication, in which padding has positions."""
    count, size = input_ids.shape
    positions = torch.arange(size).expand(count, -1)
    ids = [str(i) for i in range(count)]
    return Batch(ids, [{}] * count, features, frames, None, None, input_ids, mask.bool(), labels, positions)


def all_logits(model: AudioLanguageModel, batch: Batch) -> Tensor:
    """Logits [B, S, V] of all positions; the model itself computes those of supervised positions only."""
    return model.llm.get_output_embeddings()(model.hidden(batch))
