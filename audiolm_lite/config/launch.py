"""What `accelerate launch --config_file FILE` asks for, as keys of this library.

Accelerate starts the processes as torchrun does and says in environment variables how they should share the work.
"""

from collections.abc import Mapping
from typing import Any

from audiolm_lite.config.errors import ConfigError


def accelerate_options(environment: Mapping[str, str]) -> dict[str, Any]:
    """Keys that the configuration file of `accelerate launch` decides on; none without it.

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
        It asks for an engine or a precision that is not here.
    """

    def asked(name: str) -> bool:
        return environment.get(name, "false").lower() in ("true", "1")

    if asked("ACCELERATE_USE_MEGATRON_LM"):
        raise ConfigError("accelerate: there is no Megatron-LM here; set distributed_type to FSDP or DEEPSPEED")
    options: dict[str, Any] = {}
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "bf16", "fp16"):
        raise ConfigError(f"accelerate: mixed_precision {precision} is not here; set it to bf16, fp16 or no")
    if precision != "no":
        options["precision"] = precision
    if environment.get("ACCELERATE_DYNAMO_BACKEND", "NO") != "NO":
        options["compile"] = True
    if asked("ACCELERATE_USE_FSDP"):
        options["parallel"] = "fsdp"
        if asked("FSDP_OFFLOAD_PARAMS"):
            options["cpu_offload"] = True
        if asked("FSDP_ACTIVATION_CHECKPOINTING"):
            options["gradient_checkpointing"] = 1
    if asked("ACCELERATE_USE_DEEPSPEED"):
        options["parallel"] = "deepspeed"
        file = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
        if file.lower() == "none":
            raise ConfigError("accelerate: name DeepSpeed's JSON file as deepspeed_config_file, under deepspeed_config")
        options["deepspeed_config"] = file
    return options
