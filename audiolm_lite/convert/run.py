"""Convert published checkpoints: audiolm-lite convert <format> <file-or-folder> <out>

With --encoder and --llm, <out> is a model's folder for `AudioLM.from_pretrained`; without, it holds the adapter (with
its YAML block) and the LoRA. Outwards: export_lora and export_merged take a model's folder.
"""

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from audiolm_lite.config.errors import ConfigError, UserError
from audiolm_lite.convert import export
from audiolm_lite.convert.accounting import (
    ConversionError,
    check_adapter,
    require_complete,
    table,
)
from audiolm_lite.convert.llm_names import check_lora, lora_block
from audiolm_lite.convert.read import Published, read_published
from audiolm_lite.convert.write import write_folder
from audiolm_lite.hub.folder import ModelFolderError

FORMATS = ("slam_llm", "salmonn", "nemo_salm", "ltu_as", "voxtral")


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
    """Convert a checkpoint of the format `name`, printing what became of each tensor.

    Parameters
    ----------
    name : str
        One of FORMATS.
    source, out : path
        The checkpoint; the folder to make.
    lora_alpha : float, optional
        The LoRA's alpha, where the checkpoint does not say it.
    encoder, llm : dict, optional
        YAML blocks; see `write_folder`.
    template : str, optional
        Prompt; the format's published one if None.
    **options
        The format's further options.

    Raises
    ------
    ConversionError
        The checkpoint is not whole, not of this format, or cannot be read without running code.
    """
    form = importlib.import_module(f"audiolm_lite.convert.{name}")
    published = read_published(source, form.FILES, getattr(form, "LORA_BESIDE", None))
    converted = form.convert(published.tensors, **options)
    if "lora" in converted.block:  # on the adapter itself; its alpha is not among the tensors
        converted.block["lora"]["alpha"] = _alpha(published, lora_alpha, None)
    if converted.block:
        check_adapter(converted)
    try:
        check_lora(converted)
    finally:
        print(table(converted.lines))
    require_complete(converted)
    lora, peft = None, None
    if name == "voxtral" and converted.lora:
        peft = form.peft_config(published.peft, converted.lora)
    elif converted.lora:
        lora = lora_block(converted.lora, _alpha(published, lora_alpha, form.LORA_ALPHA))
    write_folder(converted, out, lora=lora, peft=peft, encoder=encoder, llm=llm, template=template or form.TEMPLATE)
    print(f"written to {out}")


def _alpha(published: Published, given: float | None, usual: float | None) -> float:
    """Alpha of a LoRA: what was given, or lies beside it, or the checkpoint's configuration says, or is usual."""
    if published.peft.get("use_rslora") or published.peft.get("use_dora"):
        raise ConversionError("its adapter_config.json asks for rsLoRA or DoRA; plain LoRA is supported")
    config = published.config
    candidates = [
        published.peft,
        *(config.get(name) for name in ("lora", "model")),
        (config.get("cfg") or {}).get("lora"),
    ]
    stated = [block["lora_alpha"] for block in candidates if isinstance(block, dict) and "lora_alpha" in block]
    for alpha in (given, *stated, usual):
        if alpha is not None:
            return alpha
    raise ConversionError("the checkpoint does not say its LoRA's alpha: give --lora_alpha")


def _block(text: str | None) -> dict[str, Any] | None:
    """A YAML file's block, or one with only a source."""
    if text is None:
        return None
    if text.endswith((".yaml", ".yml")):
        return yaml.safe_load(Path(text).read_text(encoding="utf-8"))
    return {"source": text}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="audiolm-lite convert", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="format", required=True, metavar="|".join((*FORMATS, "export_*")))
    for name in FORMATS:
        form = importlib.import_module(f"audiolm_lite.convert.{name}")
        command = commands.add_parser(name, help=(form.__doc__ or "").splitlines()[0])
        command.add_argument("source", type=Path, help="file or folder")
        command.add_argument("out", type=Path, help="folder to make")
        command.add_argument("--encoder", metavar="BLOCK.yaml", help="encoder's block, as in hparams/encoders")
        command.add_argument("--llm", metavar="SOURCE|BLOCK.yaml", help="LLM's name, folder or block")
        command.add_argument("--template", help="prompt; default: the published one")
        if hasattr(form, "LORA_ALPHA"):
            command.add_argument(
                "--lora_alpha", type=float, help=f"the LoRA's; default: as the checkpoint says, or {form.LORA_ALPHA}"
            )
        for option, (kind, default, text) in form.OPTIONS.items():
            command.add_argument(f"--{option}", type=kind, default=default, help=text)
    for name in ("export_lora", "export_merged"):
        command = commands.add_parser(name, help=getattr(export, name).__doc__.splitlines()[0])
        command.add_argument("source", type=Path, help="a model's folder")
        command.add_argument("out", type=Path, help="folder to make")
    return parser


def main(argv: Sequence[str]) -> None:
    """Run one command; an error is one line, and nothing is written."""
    options = vars(_parser().parse_args(argv))
    name, source, out = options.pop("format"), options.pop("source"), options.pop("out")
    try:
        if name in FORMATS:
            blocks: dict[str, Any] = {part: _block(options.pop(part)) for part in ("encoder", "llm")}
            convert(name, source, out, **blocks, **options)
        else:
            getattr(export, name)(source, out)
    except (ConversionError, ModelFolderError, ConfigError) as error:
        if lines := getattr(error, "lines", ()):
            print(table(lines))
        raise UserError(f"{source}: {error}") from error
