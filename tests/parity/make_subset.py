"""Reduce the reference files of the published systems to the subset in `data/` (see data/README.md).

    python tests/parity/make_subset.py FOLDER PROJECTOR_PY

FOLDER has the complete reference files. PROJECTOR_PY is SLAM-LLM's src/slam_llm/models/projector.py. Needs transformers
4.57.6, the version that computed the complete files. It uses no code of this library.
"""

import importlib.util
import json
import re
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

DATA = Path(__file__).parent / "data"
Tensors = dict[str, Tensor]


def read(path: Path) -> tuple[dict, Tensors, str]:
    """Config, tensors and source of a reference file."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    return json.loads(metadata["config"]), tensors, metadata["source"]


def write(name: str, config: dict, tensors: Tensors, source: str, subset: str) -> None:
    """Write a file of the subset; `subset` describes the difference from the complete file."""
    metadata = {"config": json.dumps(config), "source": source, "subset": subset}
    contiguous = {key: tensor.contiguous() for key, tensor in sorted(tensors.items())}
    path = DATA / f"{name}.safetensors"
    save_file(contiguous, path, metadata)
    path.chmod(0o644)


def without(tensors: Tensors, pattern: str) -> Tensors:
    """Tensors whose names do not match a regular expression."""
    return {name: tensor for name, tensor in tensors.items() if not re.search(pattern, name)}


def with_prefix(tensors: Tensors, prefix: str) -> Tensors:
    """Tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def cut_tltr(folder: Path) -> None:
    config, tensors, source = read(folder / "ltu_tltr_a.safetensors")
    tensors = without(tensors, r"\.mlp_layer\.")
    first = {"input.audio_rep": 1, "output.projected": 1, "output.tltr": 1}
    first |= {"output.time_tr": config["n_layer"], "output.layer_tr": config["T"]}
    tensors |= {name: tensors[name][:count] for name, count in first.items()}
    write("ltu_tltr", config | {"B": 1}, tensors, source, "First clip; without the unused classifier mlp_layer.")


def cut_linear(folder: Path, dim: int = 2) -> None:
    config, tensors, source = read(folder / "slam_cov1d.safetensors")
    for name in ("state.encoder_projector.linear2.weight", "state.encoder_projector.linear2.bias"):
        tensors[name] = tensors[name][:dim]
    tensors["output.projected"] = tensors["output.projected"][..., :dim]
    write("slam_cov1d", config | {"llm_dim": dim}, tensors, source, f"First {dim} dimensions of the output.")


def cut_conformer(folder: Path) -> None:
    config, tensors, source = read(folder / "nemo_adapter.safetensors")
    tensors = without(tensors, r"\.layers\.1\.|^output\..*_full_length$")
    for name in ("adapter", "projected"):
        tensors[f"output.{name}"] = tensors[f"output.{name}"][:1]
    subset = "Weights of the first of two blocks; outputs of the complete adapter for the first clip only."
    write("nemo_adapter", config, tensors, source, subset)


def cut_splice(folder: Path) -> None:
    config, tensors, source = read(folder / "splice_salmonn.safetensors")
    write("splice_salmonn", config, without(tensors, r"^(in|out)put\.b\."), source, "First of two batches.")


def cut_log_mel(folder: Path) -> None:
    config, tensors, source = read(folder / "whisper_logmel.safetensors")
    tensors = without(tensors, r"wave_a|log_mel_a|^output\.log_mel$")
    write("whisper_logmel", config, tensors, source, "Second of two clips, spectrogram of openai-whisper only.")


def recompute_qformer(folder: Path, projector_file: Path, blocks: int = 2, hidden_dim: int = 32) -> None:
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    config, tensors, source = read(folder / "slam_qformer.safetensors")
    sizes = config["qformer"]
    tensors = without(tensors, rf"^output\.|\.layer\.[{blocks}-9]\.")
    for name, tensor in tensors.items():
        if "intermediate_query" in name:
            tensors[name] = tensor[:hidden_dim]
        elif name.endswith("output_query.dense.weight"):
            tensors[name] = tensor[:, :hidden_dim]
    sizes |= {"num_hidden_layers": blocks, "intermediate_size": hidden_dim}
    config["qformer_layers"] = blocks

    def model(configuration: Blip2QFormerConfig) -> Blip2QFormerModel:
        configuration.num_hidden_layers = blocks  # the published class sets 8
        return Blip2QFormerModel(configuration)

    names = ("hidden_size", "num_attention_heads", "intermediate_size", "cross_attention_frequency", "layer_norm_eps")
    small = {name: sizes[name] for name in names}
    specification = importlib.util.spec_from_file_location("projector", projector_file)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    library = sys.modules["transformers"]
    with (
        patch.object(library, "Blip2QFormerConfig", lambda: Blip2QFormerConfig(**small)),
        patch.object(library, "Blip2QFormerModel", model),
    ):
        published = module.EncoderProjectorQFormer(_Config(config)).eval()
    published.load_state_dict(with_prefix(tensors, "state.encoder_projector."))
    states: list[Tensor] = []
    published.qformer.register_forward_hook(lambda *args: states.append(args[-1].last_hidden_state))
    mask = tensors["input.encoder_mask"]
    for values, ending in ((mask, ""), (torch.ones_like(mask), "_full_mask")):
        tensors[f"output.projected{ending}"] = published(tensors["input.encoder_outs"], values)
        tensors[f"output.qformer_last_hidden{ending}"] = states[-1]
    subset = f"First {blocks} blocks and {hidden_dim} units of their MLPs; outputs recomputed by the published code."
    write("slam_qformer", config, tensors, source, subset)


class _Config(dict):
    """Configuration as SLAM-LLM reads it, by `config.name` and by `config.get("name")`."""

    __getattr__ = dict.__getitem__


def recompute_voxtral(folder: Path, frames: int = 40, mels: int = 32) -> None:
    from transformers import VoxtralConfig, VoxtralForConditionalGeneration

    config, tensors, source = read(folder / "voxtral.safetensors")
    tensors = without(tensors, r"^output\.|\.layers\.[1-9]\.")
    cut = {
        "state.audio_tower.embed_positions.weight": lambda tensor: tensor[:frames],
        "state.audio_tower.conv1.weight": lambda tensor: tensor[:, :mels],
        "input.input_features": lambda tensor: tensor[:, :mels, : 2 * frames],
    }
    tensors |= {name: change(tensors[name]) for name, change in cut.items()}
    config["audio_config"] |= {"num_mel_bins": mels, "max_source_positions": frames, "num_hidden_layers": 1}
    config["text_config"]["num_hidden_layers"] = 1
    audio = [config["audio_token_id"]] * (frames // 4)
    ids = [*config["before"], *audio, *config["after"], *config["answer"]]
    unsupervised = len(ids) - len(config["answer"])
    tensors["input.input_ids"] = torch.tensor([ids])
    tensors["input.attention_mask"] = torch.ones(1, len(ids), dtype=torch.int64)
    tensors["input.labels"] = torch.tensor([[-100] * unsupervised + config["answer"]])

    notes = ("activation_function", "layer_norm_eps", "k_proj_bias")
    sizes = {name: value for name, value in config["audio_config"].items() if name not in notes}
    settings = VoxtralConfig(
        audio_config=sizes, text_config=config["text_config"], audio_token_id=config["audio_token_id"]
    )
    published = VoxtralForConditionalGeneration(settings).eval()
    published.set_attn_implementation("eager")
    published.load_state_dict(with_prefix(tensors, "state."))
    llm_inputs = {}
    published.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: llm_inputs.update(kwargs), with_kwargs=True
    )
    result = published(**with_prefix(tensors, "input."))
    states = published.audio_tower(tensors["input.input_features"]).last_hidden_state
    stacked = states.reshape(-1, config["audio_config"]["intermediate_size"])
    outputs = {
        "encoder_last_hidden_head": states,
        "projector_input_head": stacked,
        "projected": published.multi_modal_projector(stacked),
        "inputs_embeds": llm_inputs["inputs_embeds"],
        "position_ids": torch.arange(len(ids))[None],
        "logits": result.logits,
        "loss": result.loss[None],
    }
    tensors |= {f"output.{name}": tensor.clone() for name, tensor in outputs.items()}
    subset = (
        f"First {frames} encoder frames, {mels} mel bins and one layer each; outputs recomputed by the published code."
    )
    write("voxtral", config, tensors, source, subset)


if __name__ == "__main__":
    full, projector = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_grad_enabled(False)
    for cut_file in (cut_tltr, cut_linear, cut_conformer, cut_splice, cut_log_mel, recompute_voxtral):
        cut_file(full)
    recompute_qformer(full, projector)
