"""Make the folder of a released model from a finished stage: audiolm-lite release STAGE OUT --notes NOTES.md

The trained tensors are stored in float16, with a model card (README.md), the log of the training and the digests of the
backbones' weights. A folder below `audiolm_lite/released/` is part of the package: `AudioLM.from_pretrained(name)` and
`audiolm-lite transcribe` find it by its name.
"""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from audiolm_lite.hub.folder import CONFIG_FILE, CTC_HEAD_FILE, ModelFolderError, read_config, read_tensors
from audiolm_lite.hub.load import load_model
from audiolm_lite.hub.released import backbone_digests
from audiolm_lite.hub.save import write_config
from audiolm_lite.sharing.model_card import model_card
from audiolm_lite.sharing.upload import require_named_sources
from audiolm_lite.storage.atomic import atomic_folder, write_text

LOG = "train_log.txt"
LORA = "lora/adapter_model.safetensors"


class Rounding(NamedTuple):
    """What storing a tensor in float16 changes.

    Attributes
    ----------
    tensor : str
        Its name.
    error : float
        Largest absolute difference of a number, divided by the largest absolute value of the tensor.
    """

    tensor: str
    error: float


def to_float16(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Rounding]:
    """Convert the floating-point tensors of a file to float16.

    Returns
    -------
    dict, Rounding
        The tensors, and the one that the conversion changes most.

    Raises
    ------
    ModelFolderError
        A number is not finite or too large for float16.

    Examples
    --------
    >>> stored, worst = to_float16({"norm": torch.ones(2), "weight": torch.tensor([1.0, 1.0 + 2**-11])})
    >>> stored["weight"].dtype, worst.tensor, round(worst.error, 6)
    (torch.float16, 'weight', 0.000488)
    """
    stored, worst = {}, Rounding("", 0.0)
    for name, tensor in tensors.items():
        stored[name] = tensor
        if not tensor.is_floating_point():
            continue
        stored[name] = rounded = tensor.to(torch.float16)
        if not bool(rounded.isfinite().all()):
            peak = tensor.float().abs().max().item()
            raise ModelFolderError(f"{name}: {peak:g} is not finite or too large for float16; train the stage again")
        exact = tensor.float()
        largest = exact.abs().max().item() if exact.numel() else 0.0
        error = (rounded.float() - exact).abs().max().item() / largest if largest else 0.0
        if error > worst.error:
            worst = Rounding(name, error)
    return stored, worst


def release(
    folder: Path, out: Path, notes: str, metrics: Mapping[str, Any] | None = None, licence: str = "Apache-2.0"
) -> Rounding:
    """Write the folder of a released model, and load it once.

    Parameters
    ----------
    folder : Path
        Model folder, for example of a finished stage.
    out : Path
        Folder to write; its name is the name of the model.
    notes : str
        Markdown for the model card: training data, commands, limits.
    metrics : mapping, optional
        Content of a `metrics.json` for the model card.
    licence : str
        SPDX identifier of the licence of the trained tensors.

    Returns
    -------
    Rounding
        The tensor that float16 changes most.

    Raises
    ------
    ModelFolderError
        The folder is no model, names a pretrained model by a path, was saved with copies of its pretrained models, or
        has a number that is too large for float16.
    FileExistsError
        `out` exists.
    """
    config = read_config(folder)
    require_named_sources(config, folder)
    if copies := [name for name in ("llm", "encoder") if (folder / name).is_dir()]:
        raise ModelFolderError(f"{folder}: contains a copy of its {copies[0]}; release the folder of the stage itself")
    worst = Rounding("", 0.0)
    with atomic_folder(out) as unfinished:
        for name in config["tensors"]:
            file = LORA if name == "lora" else name
            tensors = read_tensors(folder / file)
            if name != CTC_HEAD_FILE:  # small, and its format is float32
                tensors, rounding = to_float16(tensors)
                worst = max(worst, rounding, key=lambda entry: entry.error)
            (unfinished / file).parent.mkdir(exist_ok=True)
            save_file(tensors, unfinished / file)
        if "lora" in config["tensors"]:
            shutil.copyfile(folder / "lora" / "adapter_config.json", unfinished / "lora" / "adapter_config.json")
        if (folder / LOG).is_file():
            shutil.copyfile(folder / LOG, unfinished / LOG)
        counts = config.pop("tensors")
        write_config(unfinished, config, counts)
        load_model(unfinished)
        # Only now, because loading fetches the backbones where they are missing.
        config["backbones"] = config.get("backbones") or backbone_digests(config)
        write_config(unfinished, config, counts)
        write_text(unfinished / "README.md", model_card(config, out.name, metrics, notes, licence))
    return worst


def main(argv: Sequence[str]) -> None:
    """Write a released model and print its files.

    Raises
    ------
    UserError, FileExistsError
        As in `release`, or a file cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="audiolm-lite release", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", type=Path, metavar="STAGE", help=f"folder of a finished stage, with {CONFIG_FILE}")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; its name is the name of the model")
    notes = "Markdown for the model card: training data, commands, limits"
    parser.add_argument("--notes", type=Path, required=True, metavar="NOTES.md", help=notes)
    parser.add_argument("--metrics", type=Path, metavar="METRICS.json", help="result of evaluate, for the model card")
    parser.add_argument("--licence", default="Apache-2.0", help="of the trained tensors (default: %(default)s)")
    options = parser.parse_args(argv)
    metrics = json.loads(options.metrics.read_text(encoding="utf-8")) if options.metrics else None
    text = options.notes.read_text(encoding="utf-8")
    worst = release(options.stage, options.out, text, metrics, options.licence)
    files = sorted(path for path in options.out.rglob("*") if path.is_file())
    for path in files:
        print(f"{path.stat().st_size / 1e6:8.3f} MB  {path}")
    print(f"{sum(path.stat().st_size for path in files) / 1e6:8.3f} MB")
    print(f"float16 changes {worst.tensor} most: by {worst.error:.1e} of its largest value")
