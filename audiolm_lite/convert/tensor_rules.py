"""Rules that map published tensor names to the names of this project."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from audiolm_lite.adapters.build import build_adapter
from audiolm_lite.backbones.tensor_report import ConversionError, TensorStatus


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
    >>> for tensor in result.report:
    ...     print(tensor.name, tensor.status, tensor.note)
    head unexpected no tensor of this format
    proj.bias used adapter: projection.bias
    step ignored a counter
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
