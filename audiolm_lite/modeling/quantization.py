"""Settings of bitsandbytes for 8-bit and 4-bit weights of encoders and LLMs loaded by transformers."""

import importlib.util

import torch
from transformers import BitsAndBytesConfig

from audiolm_lite.config.errors import ConfigError

QUANTIZATIONS = (None, "8bit", "4bit")


def check_quantization(where: str, bits: str | None) -> None:
    """Raise ConfigError unless `bits` is one of `QUANTIZATIONS`; `where` is the block of the experiment file.

    Examples
    --------
    >>> check_quantization("llm", "4bit")
    >>> check_quantization("llm", "2bit")
    Traceback (most recent call last):
    audiolm_lite.config.errors.ConfigError: llm: quantization is '2bit', it must be one of None, 8bit, 4bit.
    """
    if bits not in QUANTIZATIONS:
        raise ConfigError(f"{where}: quantization is {bits!r}, it must be one of {', '.join(map(str, QUANTIZATIONS))}.")


def bitsandbytes_config(
    where: str, bits: str | None, dtype: torch.dtype, skip: list[str] | None = None
) -> BitsAndBytesConfig | None:
    """Value of `from_pretrained(quantization_config=...)`.

    Parameters
    ----------
    where : str
        Block of the experiment file, for messages.
    bits : {None, "8bit", "4bit"}
        "4bit" is NF4 with double quantization (Dettmers et al. 2023, arXiv 2305.14314).
    dtype : torch.dtype
        Dtype in which 4-bit layers compute.
    skip : list of str, optional
        Modules that are not quantized; by default those that transformers chooses (the output layer).

    Returns
    -------
    BitsAndBytesConfig or None
        None for no quantization.

    Raises
    ------
    ConfigError
        Unknown value of `bits`, no NVIDIA GPU, or bitsandbytes is not installed.

    Examples
    --------
    >>> bitsandbytes_config("llm", None, torch.bfloat16) is None
    True
    """
    check_quantization(where, bits)
    if bits is None:
        return None
    if not torch.cuda.is_available():
        raise ConfigError(
            f'{where}: quantization "{bits}" needs an NVIDIA GPU, and torch finds none: set quantization: null.'
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
