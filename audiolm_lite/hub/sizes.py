"""Sizes in a model folder: nothing is built that is larger than what its files contain.

A component is first built on the meta device, which allocates nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from audiolm_lite.config.errors import errors_about
from audiolm_lite.config.registry import build, map_sources, sources
from audiolm_lite.hub.contents import check_source
from audiolm_lite.hub.folder import CONFIG_FILE, ModelFolderError

# Numbers that a component may have beyond the stored ones: random encoders, and tables that are computed.
_UNSTORED = 2**24


def check_built_size(name: str, make: Callable[[], nn.Module], files: Sequence[Path]) -> None:
    """Compare the numbers of a component with those in its files.

    Parameters
    ----------
    name : str
        The component, for the message.
    make : callable
        Builds it.
    files : sequence of Path
        Its safetensors files; those that are missing have no numbers.

    Raises
    ------
    ModelFolderError
        It has more than four times as many, for example because a size was changed. (Tied weights are stored once, and
        weights in 4 bits as two in one.)

    Examples
    --------
    >>> check_built_size("adapter", lambda: nn.Linear(8, 8), [])
    >>> check_built_size("adapter", lambda: nn.Linear(100_000, 100_000), [])
    Traceback (most recent call last):
    audiolm_lite.hub.folder.ModelFolderError: adapter: its configuration describes 10000100000 numbers, and its files...
    """
    with errors_about(f"{name}: its configuration cannot be built"), torch.device("meta"):
        module = make()
    needed, stored = sum(parameter.numel() for parameter in module.parameters()), sum(map(_stored, files))
    if needed > 4 * stored + _UNSTORED:
        raise ModelFolderError(
            f"{name}: its configuration describes {needed} numbers, and its files contain {stored}; download the model "
            "again"
        )


def _stored(path: Path) -> int:
    """Numbers in a safetensors file, from its header; 0 if it is missing."""
    if not path.is_file():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, OSError) as error:
        raise ModelFolderError(f"{path}: damaged ({error}); download it again") from error
    return sum(torch.Size(shape).numel() for shape in shapes)


def check_llm_size(source: Path, folder: Path) -> None:
    """Compare the LLM in a model folder with its files; one from elsewhere is not compared.

    Raises
    ------
    ModelFolderError, ConfigError
        See `check_built_size`, or its configuration cannot be read.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "llm").mkdir()
    >>> sizes = '"vocab_size": 30000000, "hidden_size": 4096, "num_hidden_layers": 1'
    >>> _ = (folder / "llm" / "config.json").write_text(f'{{"model_type": "llama", {sizes}}}')
    >>> check_llm_size(folder / "llm", folder)
    Traceback (most recent call last):
    audiolm_lite.hub.folder.ModelFolderError: llm: its configuration describes ... numbers, and its files contain 0; ...
    """

    def make() -> nn.Module:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        text = config.text_config if config.model_type == "voxtral" else config
        return AutoModelForCausalLM.from_config(text, trust_remote_code=False)

    if source.is_absolute() and source.resolve().is_relative_to(folder.resolve()):
        check_built_size("llm", make, sorted(source.glob("*.safetensors")))


def check_encoder_size(config: Mapping[str, Any], folder: Path) -> None:
    """Compare the encoders in a model folder, and one whose sizes are in its configuration, with their files.

    Parameters
    ----------
    config : mapping
        Content of `audiolm_lite.json`.
    folder : Path
        The model folder.

    Raises
    ------
    ModelFolderError, ConfigError
        See `check_built_size`.

    Examples
    --------
    >>> sizes = {"d_model": 65536, "encoder_layers": 64, "encoder_attention_heads": 8}
    >>> check_encoder_size({"encoder": {"type": "whisper", "source": sizes}}, getfixture("tmp_path"))
    Traceback (most recent call last):
    audiolm_lite.hub.folder.ModelFolderError: encoder: its configuration describes ... numbers, and its files contain...
    """

    def check(source: str, where: str) -> str:
        try:
            path = check_source(source, folder)
        except ValueError as error:
            raise ModelFolderError(f"{folder / CONFIG_FILE}: {where} source {error}") from error
        if path is not None:

            def make() -> nn.Module:
                return AutoModel.from_config(
                    AutoConfig.from_pretrained(path, trust_remote_code=False), trust_remote_code=False
                )

            check_built_size(where, make, sorted(path.glob("*.safetensors")))
        return source

    map_sources(config["encoder"], check, "encoder")
    if not sources(config["encoder"]):
        check_built_size("encoder", lambda: build("encoders", config["encoder"]), [folder / "encoder.safetensors"])


def check_rank(lora: Any, stored: Mapping[str, Tensor], path: Path) -> None:
    """Compare the rank of a LoRA's configuration with its tensors.

    Raises
    ------
    ModelFolderError
        No A matrix in the file `path` has this rank.

    Examples
    --------
    >>> check_rank({"r": 10**9}, {"q_proj.lora_A.weight": torch.zeros(8, 64)}, Path("adapter_model.safetensors"))
    Traceback (most recent call last):
    audiolm_lite.hub.folder.ModelFolderError: adapter_model.safetensors: the rank of its LoRA is [8], and the ...
    """
    ranks = sorted({tensor.shape[0] for name, tensor in stored.items() if "lora_A" in name and tensor.dim()})
    if not isinstance(lora, Mapping) or lora.get("r") not in ranks:
        rank = lora.get("r") if isinstance(lora, Mapping) else lora
        raise ModelFolderError(
            f"{path}: the rank of its LoRA is {ranks}, and the configuration says {rank!r:.40}; download it again"
        )
