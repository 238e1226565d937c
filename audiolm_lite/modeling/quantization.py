"""8-bit and 4-bit weights through bitsandbytes, for whatever transformers loads."""

import importlib.util

import torch
from transformers import BitsAndBytesConfig

from audiolm_lite.config.errors import ConfigError

CHOICES = (None, "8bit", "4bit")


def bitsandbytes_config(
    where: str, bits: str | None, dtype: torch.dtype, skip: list[str] | None = None
) -> BitsAndBytesConfig | None:
    """What `from_pretrained(quantization_config=...)` takes: None for None.

    Parameters
    ----------
    where : str
        The configuration's block, for messages.
    bits : {None, "8bit", "4bit"}
        "4bit" is NF4 with double quantisation (Dettmers et al. 2023, arXiv 2305.14314).
    dtype : torch.dtype
        What 4-bit layers compute in.
    skip : list of str, optional
        Modules that stay as they are; transformers' own choice (the output layer) if None.

    Raises
    ------
    ConfigError
        Another value, no NVIDIA GPU, or bitsandbytes is not installed.
    """
    if bits not in CHOICES:
        raise ConfigError(f"{where}: quantization is {bits!r}, it must be one of {', '.join(map(str, CHOICES))}.")
    if bits is None:
        return None
    if not torch.cuda.is_available():
        raise ConfigError(
            f'{where}: quantization "{bits}" needs an NVIDIA GPU, and there is none: set quantization: null.'
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(f'{where}: quantization "{bits}" needs bitsandbytes: pip install bitsandbytes')
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skip,
    )
