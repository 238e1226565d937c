"""Products of packed matrices with tokens: every format, instruction set, size and remainder against torch."""

import ctypes
import platform

import pytest
import torch
from torch import nn

from audiolm_lite.deploy.cpu.build import load_library
from audiolm_lite.deploy.cpu.model import FORMATS, Memory, PackedMatrix
from audiolm_lite.deploy.machine import machine_facts, missing_compiler

pytestmark = pytest.mark.skipif(missing_compiler() is not None, reason="no C++ compiler")

# The plain code runs everywhere; the others where the CPU has their instructions.
X86 = platform.machine() in ("x86_64", "AMD64")
FLAGS = " ".join(machine_facts())
INSTRUCTIONS = ["native", *["x86-64-v3"] * (X86 and "avx2" in FLAGS), *["x86-64"] * X86]


def multiply(matrix, x, library, threads=1):
    """x [M, K] -> [M, N] by the C++ code."""
    engine, memory = ctypes.c_void_p(library.make_engine(threads)), Memory(matrix.bytes)
    out, x = torch.full((len(x), matrix.rows), float("nan")), x.contiguous()
    struct = matrix.pack(memory)
    library.multiply(
        engine,
        ctypes.byref(struct),
        ctypes.c_int64(len(x)),
        ctypes.c_void_p(x.data_ptr()),
        ctypes.c_int64(x.shape[1]),
        ctypes.c_void_p(out.data_ptr()),
    )
    library.free_engine(engine)
    return out


def in_groups(x, size=32):
    """[rows, K] -> [rows, K / size padded, size]."""
    return nn.functional.pad(x, (0, -x.shape[1] % size)).unflatten(1, (-1, size))


def quantised_weight(weight, steps):
    """Nearest multiples of a scale per 32 weights, the smallest bfloat16 number that reaches the largest of them."""
    groups = in_groups(weight)
    exact = groups.abs().amax(-1, keepdim=True) / steps
    bits = exact.view(torch.int32)  # bfloat16 is the upper half of float32: round it up
    scale = (bits + 0xFFFF & ~0xFFFF).view(torch.float32)
    integers = torch.where(scale > 0, groups / scale, 0.0).round()
    assert integers.abs().max() <= steps
    return (integers * scale).flatten(1)[:, : weight.shape[1]]


def quantised_activations(x):
    groups = in_groups(x)
    largest = groups.abs().amax(-1, keepdim=True)
    integers = torch.where(largest > 0, groups * (127 / largest), 0.0).round()
    return (integers * (largest / 127)).flatten(1)[:, : x.shape[1]]


def expected(number_format, weight, x):
    if number_format == "bf16x2":
        weight = weight.bfloat16()
    elif number_format != "f32":
        weight = quantised_weight(weight, 127 if number_format == "int8" else 7)
        x = quantised_activations(x)
    return x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("rows, inputs", [(1, 1), (16, 64), (17, 65), (31, 32), (48, 100), (5, 576), (33, 1536)])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 7, 8, 9, 19])
def test_products_equal_torch(instructions, number_format, rows, inputs, tokens):
    library = load_library(instructions)
    layer = nn.Linear(inputs, rows, bias=rows % 2 == 0)
    nn.init.normal_(layer.weight, std=0.3)
    x = torch.randn(tokens, inputs) * torch.logspace(-2, 2, inputs)  # groups of different scales
    out = multiply(PackedMatrix([layer], number_format, library), x, library).double()
    result, size = expected(number_format, layer.weight.detach(), x)
    if layer.bias is not None:
        result = result + layer.bias.detach().double()
    # Rounding of float32 sums; bf16x2 keeps 16 bits of every activation.
    torch.testing.assert_close(out, result, rtol=0, atol=float((size.max() + 1) * 2.0**-17))
    assert ((out - result).abs() <= size * 2.0**-15 + 1e-5).all()


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("number_format", FORMATS)
def test_a_token_has_the_same_bits_in_any_batch_and_with_any_threads(instructions, number_format):
    library = load_library(instructions)
    matrix = PackedMatrix([nn.Linear(192, 100)], number_format, library)
    x = torch.randn(21, 192)
    together = multiply(matrix, x, library)
    assert torch.equal(torch.cat([multiply(matrix, row[None], library) for row in x]), together)
    assert torch.equal(multiply(matrix, x[5:12], library, threads=3), together[5:12])


def test_layers_are_packed_one_below_the_other():
    """Also across the parts in which large matrices are converted."""
    library = load_library()
    layers = [nn.Linear(8, rows, bias=biased) for rows, biased in ((4097, False), (5, True), (3, False))]
    x = torch.randn(2, 8)
    out = multiply(PackedMatrix(layers, "f32", library), x, library)
    torch.testing.assert_close(out, torch.cat([layer(x) for layer in layers], dim=1).detach())


@pytest.mark.parametrize("number_format", FORMATS)
def test_zeros_and_outliers(number_format):
    """A group of zeros has scale zero; one large weight or activation only affects its group."""
    library = load_library()
    layer = nn.Linear(128, 16, bias=False)
    with torch.no_grad():
        layer.weight[:, :32] = 0
        layer.weight[3, 64] = 1e4
    x = torch.randn(3, 128)
    x[1] = 0
    x[2, 100] = -1e4
    out = multiply(PackedMatrix([layer], number_format, library), x, library).double()
    result, size = expected(number_format, layer.weight.detach(), x)
    assert ((out - result).abs() <= size * 2.0**-15).all() and (out[1] == 0).all()


@pytest.mark.parametrize("number_format, per_weight", [("f32", 4), ("bf16x2", 2), ("int8", 1.0625), ("int4", 0.5625)])
def test_bytes_per_weight(number_format, per_weight):
    assert PackedMatrix([nn.Linear(64, 32)], number_format, load_library()).bytes == 64 * 32 * per_weight
