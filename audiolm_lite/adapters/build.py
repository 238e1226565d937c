"""Building an adapter from its YAML block, optionally with a LoRA on its own linear layers."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.registry import build

_LORA_ENTRIES = {"r", "alpha", "dropout"}


def build_adapter(config: Mapping[str, Any], *, feature_dim: int, num_layers: int, llm_dim: int) -> nn.Module:
    """Build an adapter from its YAML block.

    Parameters
    ----------
    config : mapping
        `type` and the arguments of that adapter. `lora: {r, alpha, dropout}` adds a LoRA to each of its linear layers,
        for adapter-only tuning of Voxtral; the LoRA's parameters are named `adapter.*lora_*`.
    feature_dim, num_layers : int
        Dimension D and layers L of the encoder's features.
    llm_dim : int
        Embedding dimension H of the LLM.

    Returns
    -------
    nn.Module
        Adapter with `forward(features, frames) -> (tokens, counts)` and `num_tokens(frames)`.

    Raises
    ------
    ConfigError
        The block is not valid, or it adds a LoRA to an adapter without linear layers.

    Examples
    --------
    >>> adapter = build_adapter({"type": "linear", "stride": 5}, feature_dim=8, num_layers=1, llm_dim=16)
    >>> adapter.num_tokens(52)
    10
    """
    config = dict(config)
    lora = config.pop("lora", None)
    adapter = build("adapters", config, feature_dim=feature_dim, num_layers=num_layers, llm_dim=llm_dim)
    if lora is None:
        return adapter
    from peft import LoraConfig, inject_adapter_in_model  # slow to import, and rarely needed

    if not isinstance(lora, Mapping) or set(lora) != _LORA_ENTRIES:
        raise ConfigError(f"adapter, lora: is {lora!r}, it must be {{r, alpha, dropout}}")
    linear = [name for name, module in adapter.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigError(f"adapter, lora: {config['type']} has no linear layer for a LoRA; remove the entry lora")
    settings = LoraConfig(r=lora["r"], lora_alpha=lora["alpha"], lora_dropout=lora["dropout"], target_modules=linear)
    return inject_adapter_in_model(settings, adapter)
