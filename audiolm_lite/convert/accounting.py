"""What becomes of every tensor of a published checkpoint: used, ignored on purpose, missing or unexpected."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from audiolm_lite.adapters.build import build_adapter
from audiolm_lite.config.errors import UserError


@dataclass
class Line:
    """One row of the account: a tensor's name, its status, and its new name or the reason."""

    name: str
    status: str
    note: str


class ConversionError(UserError, ValueError):
    """A checkpoint that cannot be converted; the message names the tensor or file, what is wrong and the remedy.

    `lines` is the account of its tensors as far as it was made.
    """

    def __init__(self, message: str, lines: Sequence[Line] = ()):
        super().__init__(message)
        self.lines = lines


@dataclass(frozen=True)
class Rule:
    """Where tensors of matching names go.

    Attributes
    ----------
    pattern : str
        Regular expression for the whole published name.
    part : {"adapter", "lora", "llm", "ignored"}
    name : str
        Replacement that makes our name of it; for "ignored", the reason.
    change : callable, optional
        Changes the tensor's shape.
    """

    pattern: str
    part: str
    name: str
    change: Callable[[Tensor], Tensor] | None = None


class Tensors(dict):
    """Tensors by our names; asking for one that is not there says so."""

    lines: Sequence[Line] = ()

    def __missing__(self, name: str) -> Tensor:
        message = f"the checkpoint has no tensor for {name}, without which its sizes are unknown; is this its format?"
        raise ConversionError(message, self.lines)


@dataclass
class Converted:
    """A checkpoint under our names.

    Attributes
    ----------
    adapter, lora, llm : Tensors
        The adapter's tensors; the LoRA's as PEFT stores them; tensors of the LLM that were trained themselves.
    lines : list of Line
        The account.
    block : dict
        The adapter's YAML block.
    sizes : dict
        `feature_dim` and `llm_dim`, with which the block builds the adapter; weights do not depend on `num_layers`.
    """

    adapter: Tensors = field(default_factory=Tensors)
    lora: Tensors = field(default_factory=Tensors)
    llm: Tensors = field(default_factory=Tensors)
    lines: list[Line] = field(default_factory=list)
    block: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


def sort_tensors(tensors: Mapping[str, Tensor], rules: Sequence[Rule]) -> Converted:
    """Hand every tensor to the first rule that matches its name; what matches none becomes an "unexpected" line."""
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    result = Converted()
    for name, tensor in sorted(tensors.items()):
        match, rule = next(((m, rule) for regex, rule in compiled if (m := regex.fullmatch(name))), (None, None))
        if match is None or rule is None:
            result.lines.append(Line(name, "unexpected", "no tensor of this format"))
        elif rule.part == "ignored":
            result.lines.append(Line(name, "ignored", rule.name))
        else:
            part, new = getattr(result, rule.part), match.expand(rule.name)
            if new in part:
                result.lines.append(Line(name, "unexpected", f"a second tensor for {rule.part}: {new}"))
                continue
            part[new] = (rule.change(tensor) if rule.change else tensor).contiguous()
            result.lines.append(Line(name, "used", f"{rule.part}: {new}"))
    result.adapter.lines = result.lines
    return result


def check_adapter(converted: Converted) -> None:
    """Compare the adapter with what its block builds; missing and misshapen tensors become lines of the account."""
    with torch.device("meta"):
        own = build_adapter(converted.block, **{"num_layers": 1, **converted.sizes}).state_dict()
    for name, tensor in own.items():
        if name not in converted.adapter:
            converted.lines.append(Line(f"adapter: {name}", "missing", f"shape {list(tensor.shape)}"))
        elif converted.adapter[name].shape != tensor.shape:
            found = list(converted.adapter[name].shape)
            converted.lines.append(Line(f"adapter: {name}", "misshapen", f"{found}, expected {list(tensor.shape)}"))
    for name in converted.adapter.keys() - own.keys():
        converted.lines.append(Line(f"adapter: {name}", "unexpected", f"no place in {converted.block['type']}"))


def table(lines: Sequence[Line]) -> str:
    """Write the account with one row for tensors that differ only in the number of their layer."""
    rows: dict[tuple[str, str, str], int] = {}
    for line in lines:
        key = (_any_layer(line.name), line.status, _any_layer(line.note))
        if line.status not in ("used", "ignored"):
            key = (line.name, line.status, line.note)
        rows[key] = rows.get(key, 0) + 1
    order = ["used", "ignored", "missing", "misshapen", "unexpected"]
    cells = [("tensor", "number", "status", "as / why")]
    cells += [(n, str(rows[n, s, w]), s, w) for n, s, w in sorted(rows, key=lambda row: (order.index(row[1]), row))]
    widths = [max(map(len, column)) for column in zip(*cells)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]
    counts = {status: sum(line.status == status for line in lines) for status in order}
    return "\n".join([*text, ", ".join(f"{count} {status}" for status, count in counts.items())])


def _any_layer(name: str) -> str:
    return re.sub(r"\b(layers?|blocks)\.\d+", r"\1.*", name)


def require_complete(converted: Converted) -> None:
    """Raise ConversionError when a tensor is missing, misshapen or unexpected."""
    bad = [line for line in converted.lines if line.status in ("missing", "misshapen", "unexpected")]
    if bad:
        shown = "; ".join(f"{line.name} is {line.status} ({line.note})" for line in bad[:3])
        raise ConversionError(
            f"{len(bad)} tensors do not fit the format: {shown}{'; ...' if len(bad) > 3 else ''}. "
            "Choose the format that the file has, or fetch it again."
        )
