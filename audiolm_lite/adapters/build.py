"""Building an adapter from its block, with a LoRA on its own linear maps where the block has one."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.registry import build

_LORA_ENTRIES = {"r", "alpha", "dropout"}


def build_adapter(config: Mapping[str, Any], *, feature_dim: int, num_layers: int, llm_dim: int) -> nn.Module:
    """Build the adapter that a block describes.

    Parameters
    ----------
    config : mapping
        `type` and the arguments of that adapter. `lora: {r, alpha, dropout}` puts a LoRA on every linear map in it, as
        adapter-only tuning of Voxtral does; its parameters are named `adapter.*lora_*`.
    feature_dim, num_layers : int
        Dimension D and layers L of the encoder's features.
    llm_dim : int
        Embedding dimension H of the LLM.

    Raises
    ------
    ConfigError
        A wrong block, or a LoRA on an adapter without linear maps.
    """
    config = dict(config)
    lora = config.pop("lora", None)
    adapter = build("adapters", config, feature_dim=feature_dim, num_layers=num_layers, llm_dim=llm_dim)
    if lora is None:
        return adapter
    from peft import LoraConfig, inject_adapter_in_model  # slow to import, and few adapters have one

    if not isinstance(lora, Mapping) or set(lora) != _LORA_ENTRIES:
        raise ConfigError(f"adapter, lora: expected {{r, alpha, dropout}}, got {lora!r}")
    linear = [name for name, module in adapter.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigError(f"adapter, lora: {config['type']} has no linear map to put a LoRA on")
    settings = LoraConfig(r=lora["r"], lora_alpha=lora["alpha"], lora_dropout=lora["dropout"], target_modules=linear)
    return inject_adapter_in_model(settings, adapter)
