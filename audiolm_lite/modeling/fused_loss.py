"""Other libraries' kernels for output layer and cross-entropy in one, as options in place of `chunked`.

They give the loss and its gradients and no ranks, so they are for training steps; validation, which also counts right
tokens, and distillation, which needs logits, go through `chunked` whatever is chosen here.
"""

from collections.abc import Callable
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolm_lite.config.errors import ConfigError

# (hidden [K, H], weight [V, H], targets [K]) -> sum of the cross-entropies
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


def load_kernel(name: str, head: nn.Module) -> Kernel | None:
    """The function of one of `config.keys.LOSS_KERNELS`, for this output layer; None for "chunked".

    Raises
    ------
    ConfigError
        Its library or a GPU is missing, or the layer is more than a matrix.
    """
    if name == "chunked":
        return None
    if type(head) is not nn.Linear or head.bias is not None:
        raise ConfigError(f"loss_kernel {name} takes an output layer that is one matrix: use chunked with a LoRA on it")
    return {"torch": _torch, "liger": _liger, "cut_cross_entropy": _cut_cross_entropy}[name]()


def fused_loss(kernel: Kernel, head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy (nats, float32) of hidden states [K, H], K > 0, in the precision that autocast asks for."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight.dtype
    with torch.autocast(device, enabled=False):
        return kernel(hidden.to(dtype), head.weight.to(dtype), targets).float()


def _torch() -> Kernel:
    """torch's own: gradients in chunks as here, and those of the weight added up in float32."""
    if not hasattr(F, "linear_cross_entropy"):
        raise ConfigError(f"loss_kernel torch needs torch 2.13, and this is {torch.__version__}: use chunked")
    options = torch.nn.LinearCrossEntropyOptions()

    def kernel(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return F.linear_cross_entropy(hidden, weight, targets, reduction="sum", options=options)

    return kernel


def _liger() -> Kernel:
    """Liger Kernel (Hsu et al. 2024, arXiv 2410.10989)."""
    function = _import("liger", "liger_kernel.transformers.functional", "liger_fused_linear_cross_entropy")
    return lambda hidden, weight, targets: function(hidden, weight, targets, reduction="sum")


def _cut_cross_entropy() -> Kernel:
    """Cut cross-entropy (Wijmans et al. 2025, arXiv 2411.09009), which leaves out gradients too small to count."""
    function = _import("cut_cross_entropy", "cut_cross_entropy", "linear_cross_entropy")
    return lambda hidden, weight, targets: function(hidden, weight, targets, reduction="sum")


def _import(name: str, module: str, function: str) -> Kernel:
    if not torch.cuda.is_available():
        raise ConfigError(f"loss_kernel {name} needs a GPU: use chunked or torch")
    try:
        return getattr(import_module(module), function)
    except ImportError as error:
        raise ConfigError(f'loss_kernel {name}: {error}. Run pip install "audiolm_lite[kernels]"') from error
