"""Rules that map published tensor names to the names of this project, and the report of what happened to each tensor.

The status of a tensor is used, ignored (on purpose), missing, misshapen or unexpected.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from audiolm_lite.adapters.build import build_adapter
from audiolm_lite.config.errors import UserError

STATUSES = ("used", "ignored", "missing", "misshapen", "unexpected")


@dataclass
class TensorStatus:
    """One line of the report.

    Attributes
    ----------
    name : str
        Published name of the tensor; for a missing or misshapen one, the name in this project.
    status : str
        One of STATUSES.
    note : str
        The name in this project, or the reason of the status.
    """

    name: str
    status: str
    note: str


class ConversionError(UserError, ValueError):
    """A checkpoint that cannot be converted; the message names the tensor or file, what is wrong and what to do.

    Attributes
    ----------
    report : sequence of TensorStatus
        What is known about its tensors so far.
    """

    def __init__(self, message: str, report: Sequence[TensorStatus] = ()):
        super().__init__(message)
        self.report = report


@dataclass(frozen=True)
class Rule:
    """Where tensors with matching names go.

    Attributes
    ----------
    pattern : str
        Regular expression that must match the complete published name.
    part : {"adapter", "lora", "llm", "ignored"}
    name : str
        Replacement that gives the name in this project; for "ignored", the reason.
    change : callable, optional
        Changes the shape of the tensor.
    """

    pattern: str
    part: str
    name: str
    change: Callable[[Tensor], Tensor] | None = None


class Tensors(dict):
    """Tensors by the names of this project; a name that is missing raises ConversionError with the report."""

    report: Sequence[TensorStatus] = ()

    def __missing__(self, name: str) -> Tensor:
        message = f"no tensor for {name} in the checkpoint, so its sizes are unknown; check that this is its format"
        raise ConversionError(message, self.report)


@dataclass
class Converted:
    """A checkpoint under the names of this project.

    Attributes
    ----------
    adapter, lora, llm : Tensors
        Tensors of the adapter; of the LoRA, named as PEFT stores them; of the LLM, where they were trained.
    report : list of TensorStatus
        What happened to each tensor.
    block : dict
        YAML block of the adapter; empty without an adapter.
    sizes : dict
        `feature_dim` and `llm_dim`, with which the block builds the adapter. No weight depends on `num_layers`.
    """

    adapter: Tensors = field(default_factory=Tensors)
    lora: Tensors = field(default_factory=Tensors)
    llm: Tensors = field(default_factory=Tensors)
    report: list[TensorStatus] = field(default_factory=list)
    block: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


def apply_rules(tensors: Mapping[str, Tensor], rules: Sequence[Rule]) -> Converted:
    """Apply the first rule that matches to each tensor; one without a rule is reported as unexpected.

    Examples
    --------
    >>> rules = [Rule(r"proj\\.(weight|bias)", "adapter", r"projection.\\1"), Rule(r"step", "ignored", "a counter")]
    >>> result = apply_rules({"proj.bias": torch.zeros(4), "step": torch.zeros(1), "head": torch.zeros(2)}, rules)
    >>> print(status_table(result.report))
    tensor     count  status      new name or reason
    proj.bias  1      used        adapter: projection.bias
    step       1      ignored     a counter
    head       1      unexpected  no tensor of this format
    1 used, 1 ignored, 0 missing, 0 misshapen, 1 unexpected
    """
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    result = Converted()
    for name, tensor in sorted(tensors.items()):
        match, rule = next(((m, rule) for regex, rule in compiled if (m := regex.fullmatch(name))), (None, None))
        if match is None or rule is None:
            result.report.append(TensorStatus(name, "unexpected", "no tensor of this format"))
        elif rule.part == "ignored":
            result.report.append(TensorStatus(name, "ignored", rule.name))
        else:
            part, new_name = getattr(result, rule.part), match.expand(rule.name)
            if new_name in part:
                result.report.append(TensorStatus(name, "unexpected", f"a second tensor for {rule.part}: {new_name}"))
                continue
            part[new_name] = (rule.change(tensor) if rule.change else tensor).contiguous()
            result.report.append(TensorStatus(name, "used", f"{rule.part}: {new_name}"))
    result.adapter.report = result.report
    return result


def check_adapter(converted: Converted) -> None:
    """Compare the adapter's tensors with those of the adapter that its block builds; report every difference.

    Examples
    --------
    >>> converted = Converted(block={"type": "identity"}, sizes={"feature_dim": 4, "llm_dim": 8})
    >>> converted.adapter["projection.weight"] = torch.zeros(8, 5)
    >>> check_adapter(converted)
    >>> for tensor in converted.report:
    ...     print(tensor.name, tensor.status, tensor.note)
    adapter: projection.weight misshapen [8, 5], expected [8, 4]
    adapter: projection.bias missing shape [8]
    """
    with torch.device("meta"):
        expected = build_adapter(converted.block, **{"num_layers": 1, **converted.sizes}).state_dict()
    report = converted.report
    for name, tensor in expected.items():
        if name not in converted.adapter:
            report.append(TensorStatus(f"adapter: {name}", "missing", f"shape {list(tensor.shape)}"))
        elif converted.adapter[name].shape != tensor.shape:
            shape = list(converted.adapter[name].shape)
            report.append(TensorStatus(f"adapter: {name}", "misshapen", f"{shape}, expected {list(tensor.shape)}"))
    for name in converted.adapter.keys() - expected.keys():
        report.append(TensorStatus(f"adapter: {name}", "unexpected", f"not in {converted.block['type']}"))


def status_table(report: Sequence[TensorStatus]) -> str:
    """Format a report; tensors that are used or ignored and differ only in their layer's number share one line.

    Examples
    --------
    >>> report = [TensorStatus(f"layers.{i}.norm", "ignored", "pretrained") for i in range(2)]
    >>> print(status_table([*report, TensorStatus("head", "unexpected", "no tensor of this format")]))
    tensor         count  status      new name or reason
    layers.*.norm  2      ignored     pretrained
    head           1      unexpected  no tensor of this format
    0 used, 2 ignored, 0 missing, 0 misshapen, 1 unexpected
    """
    counts: dict[tuple[str, str, str], int] = {}
    for tensor in report:
        key = (tensor.name, tensor.status, tensor.note)
        if tensor.status in ("used", "ignored"):
            key = (_any_layer(tensor.name), tensor.status, _any_layer(tensor.note))
        counts[key] = counts.get(key, 0) + 1
    cells = [("tensor", "count", "status", "new name or reason")]
    for key in sorted(counts, key=lambda key: (STATUSES.index(key[1]), key)):
        name, status, note = key
        cells.append((name, str(counts[key]), status, note))
    widths = [max(map(len, column)) for column in zip(*cells)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]
    totals = {status: sum(tensor.status == status for tensor in report) for status in STATUSES}
    return "\n".join([*text, ", ".join(f"{total} {status}" for status, total in totals.items())])


def _any_layer(name: str) -> str:
    return re.sub(r"\b(layers?|blocks)\.\d+", r"\1.*", name)


def require_complete(converted: Converted) -> None:
    """Raise ConversionError if a tensor is missing, misshapen or unexpected.

    Examples
    --------
    >>> require_complete(Converted(report=[TensorStatus("adapter: norm.bias", "missing", "shape [4]")]))
    Traceback (most recent call last):
    audiolm_lite.convert.tensor_rules.ConversionError: 1 tensors do not fit the format: adapter: norm.bias is ...
    """
    bad = [tensor for tensor in converted.report if tensor.status in ("missing", "misshapen", "unexpected")]
    if bad:
        shown = "; ".join(f"{tensor.name} is {tensor.status} ({tensor.note})" for tensor in bad[:3])
        raise ConversionError(
            f"{len(bad)} tensors do not fit the format: {shown}{'; ...' if len(bad) > 3 else ''}. "
            "Choose the format of the file, or download the file again."
        )
