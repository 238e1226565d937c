"""DeepSpeed's configuration: the user's JSON file, completed from the keys of the YAML file."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiolm_lite.config.errors import ConfigError

# Keys of DeepSpeed's JSON file, and the keys of the YAML file that set the same.
_SET_BY_YAML = {
    "optimizer": "optimizer, learning_rates, betas and weight_decay",
    "scheduler": "schedule and warmup_steps",
    "gradient_clipping": "max_grad_norm",
    "gradient_accumulation_steps": "grad_accumulation_factor",
    "train_batch_size": "batch_tokens",
    "train_micro_batch_size_per_gpu": "batch_tokens",
    **dict.fromkeys(("fp16", "bf16", "amp", "torch_autocast", "data_types"), "precision and the llm's dtype"),
}
_SUPPORTED = (
    "zero_optimization",
    "communication_data_type",
    "comms_logger",
    "flops_profiler",
    "wall_clock_breakdown",
    "memory_breakdown",
    "steps_per_print",
    "dump_state",
)


def read_config(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Read the file that `deepspeed_config` names, and complete it from the keys of the YAML file.

    Raises
    ------
    ConfigError
        DeepSpeed is not installed; the file cannot be read; it sets what a key of the YAML file sets; a stage, an
        offload, an optimiser or a precision is not supported with DeepSpeed.
    """
    require_deepspeed()
    config = _read_file(hparams["deepspeed_config"])
    where = f"deepspeed_config {hparams['deepspeed_config']}"
    for name in config:
        if name in _SET_BY_YAML:
            raise ConfigError(f"{where}: remove {name}; it is set by {_SET_BY_YAML[name]} in the YAML file")
        if name not in _SUPPORTED:
            raise ConfigError(f"{where}: {name} is not supported; supported are {', '.join(_SUPPORTED)}")
    zero = config.get("zero_optimization") or {}
    if zero.get("stage") not in (2, 3):
        raise ConfigError(f"{where}: zero_optimization.stage is {zero.get('stage')}; choose 2 or 3")
    for name in ("offload_optimizer", "offload_param"):
        if (zero.get(name) or {}).get("device", "none") not in ("none", "cpu"):
            raise ConfigError(f"{where}: zero_optimization.{name}.device is {zero[name]['device']}; choose cpu or none")
    if not zero.get("compute_grad_norm", True):
        raise ConfigError(f"{where}: remove zero_optimization.compute_grad_norm; max_grad_norm needs the norm")
    _require_supported_keys(hparams, zero["stage"])
    if hparams["precision"] == "bf16":
        # the empty list: no module may sum up its gradients in 16 bits
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return {
        "steps_per_print": None,
        **config,
        "train_micro_batch_size_per_gpu": 1,  # required by DeepSpeed, which uses it for its statistics only
        "gradient_accumulation_steps": 1,  # the training loop sets which batch of a window is the last
        "gradient_clipping": hparams["max_grad_norm"],
        "zero_allow_untested_optimizer": True,
    }


def _require_supported_keys(hparams: Mapping[str, Any], stage: int) -> None:
    """Raise ConfigError where a key of the YAML file does not go together with DeepSpeed or this stage of ZeRO."""
    if hparams["optimizer"] != "adamw":
        raise ConfigError(f"optimizer {hparams['optimizer']} does not support parallel deepspeed: use adamw, or ddp")
    if stage == 3 and (hparams["loss_chunk"] or hparams["loss_kernel"] != "chunked"):
        raise ConfigError(
            "ZeRO-3 computes all logits of a batch at once: remove loss_chunk and loss_kernel, or use stage 2"
        )
    if stage == 3 and hparams["compile"]:
        raise ConfigError("compile has no effect with ZeRO-3, whose parameters change their size: use stage 2")
    if hparams["precision"] == "fp16":
        # DeepSpeed's scaler divides the gradients by the loss scale only after clipping them
        raise ConfigError("precision fp16 does not support parallel deepspeed: use bf16, or parallel ddp or fsdp")


def require_deepspeed() -> None:
    """Raise ConfigError where DeepSpeed is not installed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            "DeepSpeed is not installed: pip install 'audiolm_lite[distributed]', or pip install deepspeed"
        )


def offloads_optimizer(config: Mapping[str, Any]) -> bool:
    """Whether the optimiser's state is kept in the host's memory.

    Examples
    --------
    >>> offloads_optimizer({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}})
    True
    """
    return (config["zero_optimization"].get("offload_optimizer") or {}).get("device", "none") == "cpu"


def _read_file(path: str | None) -> dict[str, Any]:
    if path is None:
        raise ConfigError("parallel deepspeed needs deepspeed_config, a JSON file such as hparams/deepspeed/zero2.json")
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"deepspeed_config {path}: the JSON file cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise ConfigError(f"deepspeed_config {path}: must be an object, as in hparams/deepspeed/zero2.json")
    return _without_auto(config)


def _without_auto(config: Mapping[str, Any]) -> dict[str, Any]:
    """Remove entries with the value "auto", which files written for other libraries leave to these libraries."""
    entries = {name: _without_auto(value) if isinstance(value, dict) else value for name, value in config.items()}
    return {name: value for name, value in entries.items() if value not in ("auto", {})}
