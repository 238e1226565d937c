"""Export of a model folder: its LoRA as a PEFT folder, or its LLM with the LoRA merged as a Hugging Face folder."""

import shutil
from pathlib import Path

from audiolm_lite.backbones.tensor_report import ConversionError
from audiolm_lite.hub.contents import LORA_FILES
from audiolm_lite.hub.folder import read_config
from audiolm_lite.hub.load import load_language_model
from audiolm_lite.modeling.lora import is_quantized, merge_lora
from audiolm_lite.storage.atomic import atomic_folder


def export_lora(folder: Path, out: Path) -> None:
    """Copy the LoRA of a model folder to `out`, which `PeftModel.from_pretrained` loads onto the same LLM.

    Raises
    ------
    ConversionError
        The model has no LoRA.
    FileExistsError
        `out` exists.

    Examples
    --------
    >>> from audiolm_lite.hub.save import make_config, write_config
    >>> folder = getfixture("tmp_path") / "model"
    >>> (folder / "lora").mkdir(parents=True)
    >>> _ = (folder / "lora/adapter_model.safetensors").write_bytes(b"")
    >>> blocks = {"encoder": {}, "adapter": {}, "llm": {"source": "owner/llm"}, "template": "{instruction}"}
    >>> write_config(folder, make_config(blocks, folder), {"lora": 2})
    >>> export_lora(folder, folder / "peft")
    >>> [file.name for file in (folder / "peft").iterdir()]
    ['adapter_model.safetensors']
    """
    if "lora" not in read_config(folder)["tensors"]:  # which also checks the files
        raise ConversionError(f"{folder}: this model has no LoRA; export_merged writes its LLM")
    with atomic_folder(out) as unfinished:
        for name in LORA_FILES:
            if (folder / "lora" / name).is_file():
                shutil.copyfile(folder / "lora" / name, unfinished / name)


def export_merged(folder: Path, out: Path) -> None:
    """Write the LLM of a model folder, LoRA and trained tensors merged, for `AutoModelForCausalLM`.

    A quantised LLM is loaded without quantisation: quantising the sum of rounded weights and a LoRA would add a second
    rounding error.

    Raises
    ------
    ConversionError
        The LLM was published with quantised weights.
    FileExistsError
        `out` exists.
    """
    with atomic_folder(out) as unfinished:
        config = read_config(folder)
        config["llm"] = {name: value for name, value in config["llm"].items() if name != "quantization"}
        llm, tokenizer = load_language_model(folder, config)
        if is_quantized(llm):
            raise ConversionError(
                f"{folder}: the weights of {config['llm']['source']} are quantised, and a LoRA is never merged into "
                "such weights; use export_lora"
            )
        merge_lora(llm).save_pretrained(unfinished, safe_serialization=True)
        tokenizer.save_pretrained(unfinished)
