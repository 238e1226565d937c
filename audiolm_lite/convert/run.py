"""Convert published checkpoints, and export LoRAs and LLMs: audiolm-lite convert FORMAT SOURCE OUT

With --encoder and --llm, OUT is a model folder for `AudioLM.from_pretrained`. Otherwise OUT contains the adapter, its
YAML block and the LoRA. The formats ctranslate2 and gguf are pretrained encoders and LLMs; OUT is a folder in
transformers' format. The formats export_lora and export_merged read a model folder.
"""

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from audiolm_lite.backbones.tensor_report import ConversionError, require_complete, status_table
from audiolm_lite.config.errors import ConfigError, UserError, describe
from audiolm_lite.convert import export
from audiolm_lite.convert.llm_names import check_lora, lora_block
from audiolm_lite.convert.read import Published, read_published
from audiolm_lite.convert.tensor_rules import check_adapter
from audiolm_lite.convert.write import write_folder
from audiolm_lite.hub.folder import ModelFolderError
from audiolm_lite.storage.atomic import atomic_folder

FORMATS = ("slam_llm", "salmonn", "nemo_salm", "ltu_as", "voxtral")
BACKBONES = ("ctranslate2", "gguf")  # complete pretrained models, to folders in transformers' format


def convert(
    name: str,
    source: Path,
    out: Path,
    *,
    lora_alpha: float | None = None,
    encoder: dict[str, Any] | None = None,
    llm: dict[str, Any] | None = None,
    template: str | None = None,
    **options: Any,
) -> None:
    """Convert a checkpoint of the format `name`, and print what happened to each tensor.

    Parameters
    ----------
    name : str
        One of FORMATS.
    source, out : path
        The checkpoint; the folder to write.
    lora_alpha : float, optional
        The LoRA's alpha; None: that of the checkpoint, or of the published code.
    encoder, llm : dict, optional
        YAML blocks; see `write_folder`.
    template : str, optional
        Prompt; None: the published one.
    **options
        Further options of the format, its OPTIONS.

    Raises
    ------
    ConversionError
        The checkpoint is incomplete, is not of this format, or cannot be read without running code.
    FileExistsError
        `out` exists.

    Examples
    --------
    >>> import torch
    >>> from safetensors.torch import save_file
    >>> folder = getfixture("tmp_path")
    >>> tensors = {"perception.proj.weight": torch.zeros(8, 4), "perception.proj.bias": torch.zeros(8)}
    >>> save_file(tensors, folder / "model.safetensors")
    >>> convert("nemo_salm", folder, folder / "converted")
    tensor                  count  status  new name or reason
    perception.proj.bias    1      used    adapter: projection.bias
    perception.proj.weight  1      used    adapter: projection.weight
    2 used, 0 ignored, 0 missing, 0 misshapen, 0 unexpected
    written to .../converted
    >>> sorted(file.name for file in (folder / "converted").iterdir())
    ['adapter.safetensors', 'adapter.yaml']
    """
    module = importlib.import_module(f"audiolm_lite.convert.{name}")
    published = read_published(source, module.FILES, getattr(module, "LORA_PREFIX", None))
    converted = module.convert(published.tensors, **options)
    if "lora" in converted.block:  # a LoRA on the adapter itself; tensors do not contain its alpha
        converted.block["lora"]["alpha"] = _alpha(published, lora_alpha, None)
    if converted.block:
        check_adapter(converted)
    try:
        check_lora(converted)
        require_complete(converted.report)
    except ConversionError as error:
        error.report = converted.report
        raise
    print(status_table(converted.report))
    lora, peft_config = None, None
    if name == "voxtral" and converted.lora:
        peft_config = module.peft_config(published.peft, converted.lora)
    elif converted.lora:
        lora = lora_block(converted.lora, _alpha(published, lora_alpha, module.LORA_ALPHA))
    template = template or module.TEMPLATE
    write_folder(converted, out, lora=lora, peft_config=peft_config, encoder=encoder, llm=llm, template=template)
    print(f"written to {out}")


def _alpha(published: Published, requested: float | None, default: float | None) -> float:
    """Alpha of a LoRA: the requested one, else that of `adapter_config.json` or the checkpoint, else the default."""
    if published.peft.get("use_rslora") or published.peft.get("use_dora"):
        raise ConversionError("its adapter_config.json is that of rsLoRA or DoRA; only plain LoRA is supported")
    config = published.config
    candidates = [
        published.peft,
        *(config.get(name) for name in ("lora", "model")),
        (config.get("cfg") or {}).get("lora"),
    ]
    recorded = [block["lora_alpha"] for block in candidates if isinstance(block, dict) and "lora_alpha" in block]
    for alpha in (requested, *recorded, default):
        if alpha is not None:
            return alpha
    raise ConversionError("the checkpoint does not contain the alpha of its LoRA; set --lora_alpha")


def _block(text: str | None) -> dict[str, Any] | None:
    """Block of a YAML file, or a block with only a source."""
    if text is None:
        return None
    if text.endswith((".yaml", ".yml")):
        try:
            block = yaml.safe_load(Path(text).read_text(encoding="utf-8"))  # no tags: they could name code
        except yaml.YAMLError as error:
            raise UserError(f"{text}: not a YAML block of plain values ({describe(error)}); correct it") from error
        if not isinstance(block, dict):
            raise UserError(f"{text}: not a block of entries; see hparams/encoders and hparams/llms")
        return block
    return {"source": text}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="audiolm-lite convert", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="format", required=True, metavar="|".join((*FORMATS, *BACKBONES, "export_*")))
    for name in FORMATS:
        module = importlib.import_module(f"audiolm_lite.convert.{name}")
        command = commands.add_parser(name, help=(module.__doc__ or "").splitlines()[0])
        command.add_argument("source", type=Path, help="file or folder of the checkpoint")
        command.add_argument("out", type=Path, help="folder to write; it must not exist")
        command.add_argument("--encoder", metavar="BLOCK.yaml", help="block of the encoder, as in hparams/encoders")
        command.add_argument("--llm", metavar="SOURCE|BLOCK.yaml", help="name or folder of the LLM, or its block")
        command.add_argument("--template", help="prompt (default: the published one)")
        if hasattr(module, "LORA_ALPHA"):
            fallback = "" if module.LORA_ALPHA is None else f", or {module.LORA_ALPHA} if it has none"
            text = f"alpha of the LoRA (default: the checkpoint's{fallback})"
            command.add_argument("--lora_alpha", type=float, help=text)
        for option, (kind, default, text) in module.OPTIONS.items():
            command.add_argument(f"--{option}", type=kind, default=default, help=text)
    for name in BACKBONES:
        module = importlib.import_module(f"audiolm_lite.backbones.{name}")
        command = commands.add_parser(name, help=(module.__doc__ or "").splitlines()[0])
        command.add_argument("source", type=Path, help="file, or folder that contains it and its tokenizer")
        command.add_argument("out", type=Path, help="folder to write; it must not exist")
    for name in ("export_lora", "export_merged"):
        command = commands.add_parser(name, help=getattr(export, name).__doc__.splitlines()[0])
        command.add_argument("source", type=Path, help="model folder")
        command.add_argument("out", type=Path, help="folder to write; it must not exist")
    return parser


def main(argv: Sequence[str]) -> None:
    """Run one conversion or export; after an error nothing is written.

    Raises
    ------
    UserError
        The checkpoint or model folder cannot be converted, or the output folder exists.
    """
    options = vars(_parser().parse_args(argv))
    name, source, out = options.pop("format"), options.pop("source"), options.pop("out")
    if out.exists():
        raise UserError(f"{out} exists; choose a folder that does not exist")
    try:
        if name in FORMATS:
            blocks: dict[str, Any] = {part: _block(options.pop(part)) for part in ("encoder", "llm")}
            convert(name, source, out, **blocks, **options)
        elif name in BACKBONES:
            with atomic_folder(out) as unfinished:
                report = importlib.import_module(f"audiolm_lite.backbones.{name}").convert(source, unfinished)
            print(status_table(report), f"written to {out}", sep="\n")
        else:
            getattr(export, name)(source, out)
    except (ConversionError, ModelFolderError, ConfigError) as error:
        if report := getattr(error, "report", ()):
            print(status_table(report))
        raise UserError(f"{source}: {error}") from error
