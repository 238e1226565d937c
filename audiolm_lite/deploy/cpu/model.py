"""An LLM in the form of the C++ step: its weights, packed in a format, and its sizes."""

import ctypes
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from audiolm_lite.decoding.state import DecodeState
from audiolm_lite.deploy.cpu.build import load_library
from audiolm_lite.deploy.cpu.support import why_unsupported
from audiolm_lite.deploy.machine import BackendError
from audiolm_lite.modeling.lora import unwrap_peft

# The order is that of `dispatch` in formats.h.
FORMATS = ("f32", "bf16x2", "int8", "int4")
LINE = 64  # bytes of a cache line, and the multiple to which inputs are padded
BLOCK = 16  # rows that are packed together
PACKED_ROWS = 4096  # rows converted to float32 at a time, so that packing needs little memory
CHUNK = 256  # tokens per call, which bounds the buffers of a step


class _Matrix(ctypes.Structure):
    _fields_ = [
        ("format", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("inputs", ctypes.c_int32),
        ("blocks", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Matrix) for name in ("query_key_value", "output", "gate_up", "down")),
        *((name, ctypes.c_void_p) for name in ("attention_norm", "mlp_norm", "query_norm", "key_norm")),
        ("rotary", ctypes.c_int32),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_int32)
            for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "rotary_dim", "intermediate")
        ),
        ("epsilon", ctypes.c_float),
        ("scaling", ctypes.c_float),
        ("layer", ctypes.POINTER(_Layer)),
        ("final_norm", ctypes.c_void_p),
        ("head", _Matrix),
        ("cosine", ctypes.c_void_p),
        ("sine", ctypes.c_void_p),
    ]


class _Tokens(ctypes.Structure):
    _fields_ = [
        ("count", ctypes.c_int64),
        ("rows", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("hidden", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("cache_is_bf16", ctypes.c_int32),
        ("capacity", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("chosen", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
    ]


def is_bf16(weight: Tensor) -> bool:
    """Find out whether every number of a tensor is a bfloat16 number, so that packing it in bf16 changes nothing.

    Examples
    --------
    >>> is_bf16(torch.tensor([1.5, -0.25])), is_bf16(torch.tensor([1.0001]))
    (True, False)
    """
    if weight.dtype == torch.bfloat16:
        return True
    return all(bool((part.to(torch.bfloat16).float() == part).all()) for part in weight.split(PACKED_ROWS))


class Memory:
    """One piece of memory for all packed weights, in huge pages where the system has them.

    Prefetching stops at the end of a page, so reading weights from pages of 4 KiB takes a third longer.

    Parameters
    ----------
    size : int
        Bytes.

    Examples
    --------
    >>> memory = Memory(256)
    >>> first, second = memory.take(100), memory.take(100)
    >>> second - first, first % 64
    (128, 0)
    """

    def __init__(self, size: int):
        self._array = np.empty(size + LINE, dtype=np.uint8)  # numpy asks for huge pages, torch does not
        self._next = self._array.ctypes.data + -self._array.ctypes.data % LINE

    def take(self, size: int) -> int:
        """Return the address of the next `size` bytes, at a multiple of 64."""
        address = self._next
        self._next += -(-size // LINE) * LINE
        return address


class PackedMatrix:
    """Linear layers with the same inputs, one below the other, to be packed in a format.

    Parameters
    ----------
    layers : sequence of nn.Linear
        float32 or bfloat16; with or without bias.
    number_format : str
        One of FORMATS.
    library : ctypes.CDLL
        From `build.load_library`.

    Examples
    --------
    >>> matrix = PackedMatrix([nn.Linear(48, 16, bias=False)], "bf16x2", load_library())
    >>> matrix.bytes == 64 * 16 * 2  # inputs are padded to 64
    True
    """

    def __init__(self, layers: Sequence[nn.Linear], number_format: str, library: ctypes.CDLL):
        self.layers, self.library, self.code = layers, library, FORMATS.index(number_format)
        self.rows, self.inputs = sum(layer.out_features for layer in layers), layers[0].in_features
        self.bytes = self._bytes(self.rows)
        self.bias: Tensor | None = None
        if any(layer.bias is not None for layer in layers):
            zeros = [torch.zeros(layer.out_features) for layer in layers]
            biases = [zero if layer.bias is None else layer.bias.detach().float() for layer, zero in zip(layers, zeros)]
            self.bias = torch.cat(biases)

    def _bytes(self, rows: int) -> int:
        return self.library.packed_bytes(self.code, ctypes.c_int64(rows), ctypes.c_int64(self.inputs))

    def pack(self, memory: Memory) -> _Matrix:
        """Pack the weights, and return the matrix for the C++ code; `bias` must live as long as it does."""
        blocks = to = memory.take(self.bytes)
        rows = torch.empty(0, self.inputs)
        parts = [part for layer in self.layers for part in layer.weight.detach().split(PACKED_ROWS)]
        for number, part in enumerate(parts):
            rows = torch.cat([rows, part.float()])
            whole = len(rows) if number + 1 == len(parts) else len(rows) // BLOCK * BLOCK
            sizes = ctypes.c_int64(whole), ctypes.c_int64(self.inputs)
            self.library.pack(self.code, *sizes, ctypes.c_void_p(rows.data_ptr()), ctypes.c_void_p(to))
            to += self._bytes(whole)
            rows = rows[whole:].clone()
        bias = None if self.bias is None else self.bias.data_ptr()
        return _Matrix(self.code, self.rows, -(-self.inputs // LINE) * LINE, blocks, bias)


class CpuModel:
    """An LLM that the C++ step runs; the weights are copied, so later changes of the LLM have no effect.

    Parameters
    ----------
    llm : nn.Module
        Causal language model of transformers, in float32 or bfloat16 on the CPU.
    number_format : str
        One of FORMATS for every matrix, int4 with an int8 head; or "exact": "bf16x2" for a matrix whose weights are
        bfloat16 numbers, else "f32". Products and sums are float32; bf16x2 splits activations into two bfloat16 numbers
        whose sum has 16 bits, int8 and int4 round them to int8 with a scale per 32.
    threads : int, optional
        Threads of a step; by default torch's number.
    instructions : str
        Instruction set of the code, see `build.compiler_command`.

    Raises
    ------
    BackendError
        The LLM has a part that the step cannot run; the message names it.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> llm = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)).eval()
    >>> model, state = CpuModel(llm, "f32"), DecodeState.allocate(llm, batch_size=2, max_length=4)
    >>> model.step(state, torch.ones(3, 8), rows=[1, 1, 0], positions=[0, 1, 0], chosen=[1, 2]).shape
    torch.Size([2, 8])
    """

    def __init__(
        self, llm: nn.Module, number_format: str = "exact", threads: int | None = None, instructions: str = "native"
    ):
        if reason := why_unsupported(llm):
            raise BackendError(f"the cpu backend cannot run {reason}; use eager or aoti")
        self.library = load_library(instructions)
        causal_lm = unwrap_peft(llm)
        self.decoder = causal_lm.base_model
        self.number_format = number_format
        self.hidden = causal_lm.get_input_embeddings().embedding_dim
        self.vocabulary = causal_lm.get_output_embeddings().out_features
        self.threads = threads or torch.get_num_threads()
        self._kept: list[Any] = []  # whatever the structures point to
        layers = list(self.decoder.layers)
        first, config = layers[0].self_attn, causal_lm.config.get_text_config()
        self.kv_heads = first.k_proj.out_features // first.head_dim
        self.head_dim = first.head_dim
        matrices = [self._matrices(layer) for layer in layers]
        head = self._matrix([causal_lm.get_output_embeddings()], head=True)
        everything = [matrix for group in (*matrices, [head]) for matrix in group]
        self.weight_bytes = sum(matrix.bytes for matrix in everything)
        memory = Memory(sum(matrix.bytes + LINE for matrix in everything))
        self._kept += [memory, everything]
        self._layers = (_Layer * len(layers))(
            *(
                _Layer(*(matrix.pack(memory) for matrix in group), *self._vectors(layer))
                for group, layer in zip(matrices, layers)
            )
        )
        self._model = _Model(
            len(layers),
            self.hidden,
            first.q_proj.out_features // first.head_dim,
            self.kv_heads,
            first.head_dim,
            0,  # the rotary angles are set by `_set_angles`
            config.intermediate_size,
            config.rms_norm_eps,
            first.scaling,
            self._layers,
            self._vector(self.decoder.norm.weight),
            head.pack(memory),
        )
        self._angles: tuple[Tensor, Tensor] | None = None
        self._engine = ctypes.c_void_p(self.library.make_engine(self.threads))
        self._lock = threading.Lock()  # the engine has one set of buffers
        weakref.finalize(self, self.library.free_engine, self._engine)

    def _matrices(self, layer: nn.Module) -> list[PackedMatrix]:
        attention, mlp = layer.self_attn, layer.mlp
        groups = ([attention.q_proj, attention.k_proj, attention.v_proj], [attention.o_proj])
        return [self._matrix(group) for group in (*groups, [mlp.gate_proj, mlp.up_proj], [mlp.down_proj])]

    def _matrix(self, layers: Sequence[nn.Linear], head: bool = False) -> PackedMatrix:
        number_format = self.number_format
        if number_format == "exact":
            number_format = "bf16x2" if all(is_bf16(layer.weight) for layer in layers) else "f32"
        elif number_format == "int4" and head:
            number_format = "int8"
        return PackedMatrix(layers, number_format, self.library)

    def _vectors(self, layer: nn.Module) -> tuple[int | None, ...]:
        """Addresses of the norms of a layer, and whether it has rotary positions: the last fields of `_Layer`."""
        attention = layer.self_attn
        norms = [layer.input_layernorm, layer.post_attention_layernorm]
        norms += [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        addresses = (None if norm is None else self._vector(norm.weight) for norm in norms)
        return *addresses, bool(getattr(attention, "use_rope", True))

    def _vector(self, weight: Tensor) -> int:
        vector = weight.detach().float().clone()
        self._kept.append(vector)
        return vector.data_ptr()

    def _set_angles(self, positions: int) -> None:
        """Make the table of rotary angles for so many positions, by the LLM's own module."""
        if self._angles is not None and len(self._angles[0]) >= positions:
            return
        slots = torch.arange(positions)[None]
        with torch.no_grad():
            cosine, sine = self.decoder.rotary_emb(torch.zeros(1), slots)
        self._angles = cosine[0].float().contiguous(), sine[0].float().contiguous()
        self._model.rotary_dim = cosine.shape[-1]
        self._model.cosine, self._model.sine = (table.data_ptr() for table in self._angles)

    @torch.no_grad()
    def step(
        self,
        state: DecodeState,
        embeds: Tensor,
        rows: Tensor | Sequence[int],
        positions: Tensor | Sequence[int],
        chosen: Tensor | Sequence[int],
    ) -> Tensor:
        """Process M tokens of any rows, and predict the next token after some of them.

        One function serves a decoding step (one token per row), chunks of prompts, and the verification of drafted
        tokens (several tokens per row). Keys and values are written to the cache at the tokens' positions; a token
        attends to every slot of its row up to its own. `state.position` is neither read nor changed.

        Parameters
        ----------
        state : DecodeState
            Cache in float32 or bfloat16.
        embeds : Tensor
            [M, H] embeddings of the tokens.
        rows, positions : Tensor or sequence of int
            [M] row and slot of each token. The slots of a row are given in ascending order, without gaps after those
            that earlier calls filled.
        chosen : Tensor or sequence of int
            [O] indices of the tokens after which logits are wanted.

        Returns
        -------
        Tensor
            [O, V] float32 logits.

        Raises
        ------
        ValueError
            The cache does not belong to an LLM of these sizes, or a row, position or index is outside of it.
        """
        hidden = embeds.to(torch.float32, copy=True).contiguous()
        rows, positions, chosen = (
            torch.as_tensor(numbers, dtype=torch.int64).contiguous() for numbers in (rows, positions, chosen)
        )
        count, batch, capacity = len(hidden), state.batch_size, state.max_length
        self._check(state)
        for name, numbers, size in (("row", rows, batch), ("position", positions, capacity), ("token", chosen, count)):
            low, high = (int(number) for number in numbers.aminmax()) if len(numbers) else (0, 0)
            if low < 0 or high >= size:
                raise ValueError(f"cpu backend: {name} {high if high >= size else low} is outside of 0..{size - 1}")
        if hidden.shape != (count, self.hidden) or not len(rows) == len(positions) == count:
            raise ValueError(
                f"cpu backend: embeds {list(embeds.shape)}, {len(rows)} rows and {len(positions)} positions; give "
                f"[M, {self.hidden}] embeddings and as many rows and positions"
            )
        logits = torch.empty(len(chosen), self.vocabulary)
        layers = ctypes.c_void_p * len(state.keys)
        keys, values = (layers(*(cache.data_ptr() for cache in caches)) for caches in (state.keys, state.values))
        with self._lock:
            self._set_angles(capacity)
            for start in range(0, count, CHUNK):
                end = min(start + CHUNK, count)
                wanted = (chosen >= start) & (chosen < end)
                local = chosen[wanted] - start
                part = logits if len(local) == len(chosen) else torch.empty(len(local), self.vocabulary)
                tokens = _Tokens(
                    end - start,
                    rows.data_ptr() + 8 * start,
                    positions.data_ptr() + 8 * start,
                    hidden.data_ptr() + 4 * self.hidden * start,
                    ctypes.cast(keys, ctypes.c_void_p),
                    ctypes.cast(values, ctypes.c_void_p),
                    state.keys[0].dtype == torch.bfloat16,
                    capacity,
                    len(local),
                    local.data_ptr(),
                    part.data_ptr(),
                )
                self.library.run_step(self._engine, ctypes.byref(self._model), ctypes.byref(tokens))
                if part is not logits:
                    logits[wanted] = part
        return logits

    def _check(self, state: DecodeState) -> None:
        shape = (state.batch_size, self.kv_heads, state.max_length, self.head_dim)
        caches = [*state.keys, *state.values]
        like = state.keys[0]
        if (
            len(caches) != 2 * len(self._layers)
            or like.dtype not in (torch.float32, torch.bfloat16)
            or any(
                cache.shape != shape or cache.dtype != like.dtype or not cache.is_contiguous() or not cache.is_cpu
                for cache in caches
            )
        ):
            raise ValueError(
                f"cpu backend: a cache of {len(state.keys)} layers {list(like.shape)} {like.dtype} on {like.device}; "
                f"this LLM needs {len(self._layers)} contiguous layers {list(shape)} in float32 or bfloat16 on the CPU"
            )
