"""Settings of `accelerate launch --config_file FILE`, as keys of this library.

Accelerate starts the processes as torchrun does, and passes its settings in environment variables.
"""

from collections.abc import Mapping
from typing import Any

from audiolm_lite.config.errors import ConfigError


def accelerate_options(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the keys that the configuration file of `accelerate launch` sets; none without such a file.

    Parameters
    ----------
    environment : mapping
        The process's environment variables.

    Returns
    -------
    dict
        Some of precision, compile, parallel, cpu_offload, gradient_checkpointing, deepspeed_config.

    Raises
    ------
    ConfigError
        The file requests an engine or a precision that is not supported.

    Examples
    --------
    >>> accelerate_options({"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_FSDP": "true"})
    {'precision': 'bf16', 'parallel': 'fsdp'}
    """

    def requested(name: str) -> bool:
        return environment.get(name, "false").lower() in ("true", "1")

    if requested("ACCELERATE_USE_MEGATRON_LM"):
        raise ConfigError("accelerate: Megatron-LM is not supported; set distributed_type to FSDP or DEEPSPEED")
    options: dict[str, Any] = {}
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "bf16", "fp16"):
        raise ConfigError(f"accelerate: mixed_precision {precision} is not supported; set it to bf16, fp16 or no")
    if precision != "no":
        options["precision"] = precision
    if environment.get("ACCELERATE_DYNAMO_BACKEND", "NO") != "NO":
        options["compile"] = True
    if requested("ACCELERATE_USE_FSDP"):
        options["parallel"] = "fsdp"
        if requested("FSDP_OFFLOAD_PARAMS"):
            options["cpu_offload"] = True
        if requested("FSDP_ACTIVATION_CHECKPOINTING"):
            options["gradient_checkpointing"] = 1
    if requested("ACCELERATE_USE_DEEPSPEED"):
        options["parallel"] = "deepspeed"
        file = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
        if file.lower() == "none":
            raise ConfigError("accelerate: name DeepSpeed's JSON file as deepspeed_config_file, under deepspeed_config")
        options["deepspeed_config"] = file
    return options
