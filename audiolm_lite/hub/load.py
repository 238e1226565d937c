"""Loading a model folder, or starting another model from its tensors (`hub.folder` describes the format)."""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from audiolm_lite.adapters.build import build_adapter
from audiolm_lite.audio.long_audio import LongAudio
from audiolm_lite.config.registry import build, map_sources
from audiolm_lite.decoding.bundle import ModelBundle
from audiolm_lite.hub.folder import (
    CONFIG_FILE,
    CTC_HEAD_FILE,
    ModelFolderError,
    lora_is_trained,
    read_config,
    read_tensors,
    resolve_source,
    stored_name,
    tensor_files,
)
from audiolm_lite.hub.released import backbone_digests, check_backbones, model_folder
from audiolm_lite.hub.sizes import check_built_size, check_encoder_size, check_llm_size, check_rank
from audiolm_lite.language.llm import load_llm, wrap_lora
from audiolm_lite.language.prompt import PromptTemplate
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.modeling.ctc import check_head
from audiolm_lite.modeling.lora import (
    LORA_TENSORS,
    add_lora,
    is_quantized,
    lora_difference,
    lora_scale,
    peft_block,
)
from audiolm_lite.storage.hashes import sha256_of

PEFT_CONFIG = "adapter_config.json"


def load_model(folder: str | Path, device: str | torch.device = "cpu", *, merge: bool = False) -> ModelBundle:
    """Load a model folder, a released model, or a repository of the Hugging Face hub that contains one.

    Parameters
    ----------
    folder : str or path
        The folder, the name of a released model, or "owner/name" on the hub.
    device : str or torch.device
        Where the model is loaded. A quantised LLM stays on the device that its quantisation chose.
    merge : bool
        See `load_language_model`; the model then cannot be saved.

    Returns
    -------
    ModelBundle
        The model in eval mode, without trainable parameters.

    Raises
    ------
    ModelFolderError
        Not a model folder, another format version, tensors that are missing or do not belong to the model, or a LoRA
        whose B matrices are all zero.
    ConfigError
        A configuration that this version of the library does not know.

    Warns
    -----
    UserWarning
        The weights of the encoder or the LLM are not those that the model was trained with.
    """
    folder = model_folder(folder)
    config = read_config(folder)
    check_encoder_size(config, folder)
    encoder = build("encoders", _resolved(config, "encoder", folder))
    llm, tokenizer = load_language_model(folder, config, merge)
    weights = {name: _resolved(config, name, folder) for name in ("encoder", "llm")}
    check_backbones(weights, config.get("backbones", {}), folder)
    sizes = {
        "feature_dim": encoder.feature_dim,
        "num_layers": encoder.num_layers,
        "llm_dim": llm.get_input_embeddings().embedding_dim,
    }
    check_built_size("adapter", lambda: build_adapter(config["adapter"], **sizes), [folder / "adapter.safetensors"])
    adapter = build_adapter(config["adapter"], **sizes)
    model = AudioLanguageModel(adapter, llm, encoder)
    counts = config["tensors"]
    for component in ("adapter", "encoder"):
        if f"{component}.safetensors" in counts or component == "adapter":
            _load_component(model, component, folder, counts)
    model.requires_grad_(False).eval()
    # Of other rules, only "chunk" changes how a clip is encoded; the others decide what is read of it.
    model.long_audio = LongAudio(config.get("long_audio", "reject"), encoder)
    for module in (model.adapter, model.encoder, *([] if is_quantized(llm) else [llm])):
        module.to(device)
    template = PromptTemplate(config["template"])
    template.check_special_tokens(tokenizer)
    return ModelBundle(
        model,
        tokenizer,
        template,
        config["generation"],
        config["instructions"],
        _identity(folder, config, backbone_digests(weights, by_name=False)),
        ctc_head=read_ctc_head(folder, counts, model.embedding),
    )


def load_trained(model: AudioLanguageModel, folder: str | Path) -> list[str]:
    """Start a model from the trained tensors of a model folder: adapter, LoRA and tensors of the LLM and the encoder.

    This continues the training of a converted checkpoint or of a model from the hub. A LoRA that `model` has and the
    folder lacks, on the LLM or on the adapter, keeps its initial values.

    Parameters
    ----------
    model : AudioLanguageModel
        Changed in place. Trained tensors of the encoder are skipped if it has no encoder.
    folder : str or path
        A model folder, the name of a released model, or "owner/name" on the hub.

    Returns
    -------
    list of str
        Names of the model's tensors that were loaded.

    Raises
    ------
    ModelFolderError
        As in `load_model`, or the adapter differs from the folder's, or the LLM does not have the folder's LoRA.

    Examples
    --------
    >>> from audiolm_lite.hub.save import save_model
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> llm = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)).requires_grad_(False)
    >>> model, folder = AudioLanguageModel(nn.Linear(2, 8), llm), getfixture("tmp_path")
    >>> blocks = {"encoder": {"type": "whisper"}, "adapter": {"type": "linear"}, "llm": {"source": "owner/llm"}}
    >>> save_model(model, {**blocks, "template": "{audio}"}, folder)
    >>> load_trained(model, folder)
    ['adapter.bias', 'adapter.weight']
    """
    folder = model_folder(folder)
    config = read_config(folder)
    counts = config["tensors"]
    names = _load_component(model, "adapter", folder, counts)
    for component in ("llm", "encoder"):
        if f"{component}.safetensors" in counts and getattr(model, component) is not None:
            names += _load_component(model, component, folder, counts)
    if "lora" in counts:
        if not hasattr(model.llm, "peft_config"):
            raise ModelFolderError(
                f"{folder}: the folder has a LoRA, and the llm block has none; give it the same lora entry"
            )
        path = folder / "lora" / "adapter_model.safetensors"
        stored = config["llm"]["lora"]
        block = {**peft_block(model.llm.active_peft_config.to_dict()), "target_modules": stored.get("target_modules")}
        if different := lora_difference(stored, block, "llm.lora"):  # the tensors show which modules have one
            raise ModelFolderError(f"{folder}: {'; '.join(different)}")
        _load_lora(model.llm, read_tensors(path), path)
        names += [name for name in model.state_dict() if name.startswith("llm.") and "lora_" in name]
    return names


def read_ctc_head(
    folder: Path, counts: Mapping[str, int], embedding: nn.Module | None = None
) -> dict[str, Tensor] | None:
    """Read the tensors of a model folder's CTC head (see `modeling.ctc`).

    Parameters
    ----------
    folder : path
        The model folder.
    counts : mapping
        Its files, the entry `tensors` of its configuration.
    embedding : nn.Module, optional
        The LLM's input embeddings, which the tensors have to fit.

    Returns
    -------
    dict or None
        As `CTCHead.tensors` returns them; None if the folder has no head.

    Raises
    ------
    ModelFolderError
        The file is missing or damaged, or has other tensors.

    Examples
    --------
    >>> print(read_ctc_head(getfixture("tmp_path"), {"adapter.safetensors": 4}))
    None
    """
    if CTC_HEAD_FILE not in counts:
        return None
    tensors = read_tensors(folder / CTC_HEAD_FILE)
    try:
        check_head(tensors, *(() if embedding is None else (embedding.num_embeddings, embedding.embedding_dim)))
    except ValueError as error:
        raise ModelFolderError(f"{folder / CTC_HEAD_FILE}: {error}; download it again") from error
    return tensors


def load_language_model(
    folder: Path, config: Mapping[str, Any], merge: bool = False
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Load the LLM of a model folder with its LoRA and trained tensors.

    Parameters
    ----------
    folder : path
        The model folder.
    config : mapping
        Content of its configuration file, as `read_config` returns it.
    merge : bool
        Add the LoRA to the weights, as `modeling.lora.merge_lora` does, but without PEFT: this takes less time and
        memory. A DoRA, the LoRA of an embedding and that of a quantised LLM, also one published so, are not merged.

    Returns
    -------
    llm : nn.Module
        The LLM, wrapped by PEFT if it has a LoRA that is not merged.
    tokenizer : PreTrainedTokenizerBase
        Its tokenizer.

    Raises
    ------
    ModelFolderError, ConfigError
        As in `load_model`.

    Examples
    --------
    >>> from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> folder = getfixture("tmp_path")
    >>> LlamaForCausalLM(LlamaConfig(vocab_size=384, **sizes)).save_pretrained(folder / "llm")
    >>> _ = ByT5Tokenizer().save_pretrained(folder / "llm")
    >>> llm, tokenizer = load_language_model(folder, {"llm": {"source": "llm"}, "tensors": {}})
    >>> type(llm).__name__, type(tokenizer).__name__
    ('LlamaForCausalLM', 'ByT5Tokenizer')
    """
    llm_config = _resolved(config, "llm", folder)
    lora, path = llm_config.get("lora"), folder / "lora" / "adapter_model.safetensors"
    stored = {} if lora is None else read_tensors(path)
    if lora is not None:
        check_rank(lora, stored, path)
    if lora is not None and (different := lora_difference(_recorded_block(path.parent, lora), lora, "llm.lora")):
        raise ModelFolderError(
            f"{folder / CONFIG_FILE}: {'; '.join(different)}, as {path.parent / PEFT_CONFIG} records; correct it, or "
            "download the model again"
        )
    check_llm_size(Path(llm_config["source"]), folder)
    merge = merge and all(name.endswith(LORA_TENSORS) for name in stored)
    merge = merge and lora is not None and not lora.get("dora") and llm_config.get("quantization") is None
    llm, tokenizer = load_llm({**llm_config, "lora": None} if merge else llm_config)
    if merge and lora is not None and is_quantized(llm):
        llm, merge = wrap_lora(llm, lora), False
    if "llm.safetensors" in config["tensors"]:
        _load_component(nn.ModuleDict({"llm": llm}), "llm", folder, config["tensors"])
    if merge and lora is not None:
        if len(stored) != config["tensors"].get("lora"):
            raise ModelFolderError(
                f"{path}: {len(stored)} tensors instead of {config['tensors'].get('lora')}; download it again"
            )
        try:
            add_lora(llm, stored, lora_scale(lora))
        except ValueError as error:
            raise ModelFolderError(f"{path}: {error}; download or convert the model again") from error
    elif lora is not None:
        _load_lora(llm, stored, path)
    return llm, tokenizer


def _recorded_block(folder: Path, default: Mapping[str, Any]) -> Mapping[str, Any]:
    """Block of a LoRA as PEFT's file in its folder records it, with the dropout and the modules of `default`.

    These two do not change an answer, and a converted file may write the modules in another form.
    """
    path = folder / PEFT_CONFIG
    if not path.is_file():
        return default
    try:
        stored = peft_block(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFolderError(f"{path}: damaged ({error!r}); download it again") from error
    same = {name: default[name] for name in ("dropout", "target_modules") if name in default}
    return {**stored, **same}


def _resolved(config: Mapping[str, Any], name: str, folder: Path) -> dict[str, Any]:
    """Configuration of the encoder or the LLM, with its sources resolved."""
    return map_sources(config[name], partial(resolve_source, folder=folder), name)


@torch.no_grad()
def _load_component(model: nn.Module, component: str, folder: Path, counts: Mapping[str, int]) -> list[str]:
    """Copy the tensors of a component's file into the model and return their names in the model.

    Each must belong to the model and have its shape. None of an adapter may be missing, except that a file without
    LoRA fits an adapter with one, which then keeps its initial values.
    """
    path = folder / f"{component}.safetensors"
    stored, count = read_tensors(path), counts.get(path.name)
    targets = {n: t for n, t in model.state_dict(keep_vars=True).items() if n.startswith(f"{component}.")}
    if component == "adapter" and not any("lora_" in name for name in stored):
        targets = {name: tensor for name, tensor in targets.items() if "lora_" not in name}
        full_names = {stored_name(name, component).replace(".base_layer.", "."): name for name in targets}
    else:
        full_names = {stored_name(name, component): name for name in targets}
    if unknown := sorted(set(stored) - set(full_names)):
        raise ModelFolderError(
            f"{path}: {len(unknown)} tensors do not belong to this {component}, for example {unknown[0]}"
        )
    missing = sorted(set(full_names) - set(stored)) if component == "adapter" else []
    if missing or len(stored) != count:
        example = f" ({missing[0]} is missing)" if missing else ""
        raise ModelFolderError(f"{path}: {len(stored)} tensors instead of {count}{example}; download it again")
    for name, tensor in stored.items():
        target = targets[full_names[name]]
        if target.shape != tensor.shape:
            raise ModelFolderError(
                f"{path}: {name} has shape {list(tensor.shape)}, but {list(target.shape)} in this {component}"
            )
        target.copy_(tensor)
    return [full_names[name] for name in stored]


def _load_lora(llm: nn.Module, stored: dict[str, Tensor], path: Path) -> None:
    """Copy the tensors of the file `path` into the LoRA of an LLM that PEFT has wrapped."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    expected = get_peft_model_state_dict(llm, save_embedding_layers=False)
    if different := sorted(set(expected) ^ set(stored)):
        problem = "is not in the file" if different[0] in expected else "does not belong to this LLM"
        raise ModelFolderError(f"{path}: {len(different)} tensors do not match this LoRA: {different[0]} {problem}")
    for name, tensor in stored.items():
        if expected[name].shape != tensor.shape:
            raise ModelFolderError(
                f"{path}: {name} has shape {list(tensor.shape)}, but {list(expected[name].shape)} in this LLM"
            )
    set_peft_model_state_dict(llm, stored)
    if not lora_is_trained(llm):
        raise ModelFolderError(
            f"{path}: every lora_B is zero, so the LoRA has no effect; download or convert the model again"
        )


def _identity(folder: Path, config: Mapping[str, Any], weights: Mapping[str, str]) -> str:
    """SHA-256 of the configuration, with digests in place of the sources of pretrained models, and of all tensors."""

    def by_digest(source: str, where: str) -> str:
        return weights.get(where, source)

    same = {name: map_sources(config[name], by_digest, name) for name in ("encoder", "llm")}
    text = json.dumps({**config, **same, "backbones": None, "licences": None}, sort_keys=True)
    tensors = sha256_of(*(folder / file for file in tensor_files(config["tensors"])))
    return hashlib.sha256((text + tensors).encode()).hexdigest()
