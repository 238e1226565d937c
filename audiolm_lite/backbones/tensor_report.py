"""The report of a conversion: each tensor is used, ignored (on purpose), missing, misshapen or unexpected."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

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


def compare(report: list[TensorStatus], tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Report the converted tensors that a model lacks, has in another shape, or does not know.

    Parameters
    ----------
    report : list of TensorStatus
        Extended in place.
    tensors : mapping of str to Tensor
        The converted tensors.
    expected : mapping of str to Tensor
        The model's own, of which only the shapes matter; the meta device will do.

    Examples
    --------
    >>> import torch
    >>> report = []
    >>> compare(report, {"weight": torch.zeros(2)}, {"weight": torch.zeros(3), "bias": torch.zeros(3)})
    >>> for tensor in report:
    ...     print(tensor.name, tensor.status, tensor.note)
    weight misshapen [2], expected [3]
    bias missing shape [3]
    """
    for name, tensor in expected.items():
        if name not in tensors:
            report.append(TensorStatus(name, "missing", f"shape {list(tensor.shape)}"))
        elif tensors[name].shape != tensor.shape:
            note = f"{list(tensors[name].shape)}, expected {list(tensor.shape)}"
            report.append(TensorStatus(name, "misshapen", note))
    for name in sorted(tensors.keys() - expected.keys()):
        report.append(TensorStatus(name, "unexpected", "not in the model"))


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
    return re.sub(r"\b(layers?|blocks|blk)([._])\d+", r"\1\2*", name)


def require_complete(report: Sequence[TensorStatus]) -> None:
    """Raise ConversionError if a tensor is missing, misshapen or unexpected.

    Examples
    --------
    >>> require_complete([TensorStatus("adapter: norm.bias", "missing", "shape [4]")])
    Traceback (most recent call last):
    audiolm_lite.backbones.tensor_report.ConversionError: 1 tensors do not fit the format: adapter: norm.bias is ...
    """
    bad = [tensor for tensor in report if tensor.status in ("missing", "misshapen", "unexpected")]
    if bad:
        shown = "; ".join(f"{tensor.name} is {tensor.status} ({tensor.note})" for tensor in bad[:3])
        raise ConversionError(
            f"{len(bad)} tensors do not fit the format: {shown}{'; ...' if len(bad) > 3 else ''}. "
            "Choose the format of the file, or download the file again.",
            report,
        )
