"""The audio language model: audio tokens of an adapter inserted into the prompt of an LLM, and the loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.modeling.attention import MATMUL
from audiolm_lite.modeling.batch import AUDIO_SLOT, IGNORE, Batch
from audiolm_lite.modeling.llm_layers import additive, attention_masks, check_llm, is_recurrent, word_embeddings
from audiolm_lite.modeling.logits import llm_logits, logit_rescaling
from audiolm_lite.modeling.lora import unwrap_peft
from audiolm_lite.modeling.losses import (
    check_loss_kernel,
    chunk_positions,
    chunked_loss,
    cross_entropy,
    torch_cross_entropy,
)
from audiolm_lite.modeling.masks import valid_mask


class Loss(NamedTuple):
    """Sums over the supervised tokens of a batch, so that batches of any size add up exactly.

    It is a tuple because FSDP and DDP search tuples for the tensors that will be differentiated.

    Attributes
    ----------
    total : Tensor
        Sum of the cross-entropies, or of the losses of an objective, float32 scalar in nats, differentiable.
    tokens : Tensor
        Number of supervised tokens, int64 scalar.
    correct : Tensor, optional
        Number of them with the highest logit, int64 scalar; None in training steps with `loss_kernel: torch`, which
        computes no ranks.
    """

    total: Tensor
    tokens: Tensor
    correct: Tensor | None


class AudioLanguageModel(nn.Module):
    """An optional encoder, an adapter and a causal LLM.

    Parameters
    ----------
    adapter : nn.Module
        Maps features [A, L, T, D] and frames [A] to tokens [A, N, H] and counts [A].
    llm : nn.Module
        Causal language model of transformers, with or without a PEFT wrapper.
    encoder : nn.Module, optional
        Maps waveforms [A, S] and samples [A] to features and frames; needed only for batches of waveforms.
    loss_chunk : int
        Positions whose logits are in memory at the same time; 0: as many as fit in 256 MB.
    loss_kernel : str
        Implementation of the loss in training steps, one of `config.keys.LOSS_KERNELS`. Validation and objectives
        always use "chunked": they need ranks and logits.

    Raises
    ------
    ConfigError
        The loss kernel is unknown or cannot be used with this LLM, or the LLM takes no audio tokens.
    """

    def __init__(
        self,
        adapter: nn.Module,
        llm: nn.Module,
        encoder: nn.Module | None = None,
        loss_chunk: int = 0,
        loss_kernel: str = "chunked",
    ):
        super().__init__()
        self.loss_chunk = loss_chunk
        self.encoder = encoder
        self.adapter = adapter
        self.llm = llm
        try:
            check_llm(llm)
            rescaled = logit_rescaling(llm) is not None
        except ValueError as error:
            raise ConfigError(f"llm: {error}; choose another LLM") from error
        check_loss_kernel(loss_kernel, self.head)
        if loss_kernel != "chunked" and rescaled:
            raise ConfigError(f"loss_kernel {loss_kernel} knows no logits that the LLM scales or caps: use chunked")
        self.loss_kernel = loss_kernel
        # Rule for clips longer than the encoder accepts, an `audio.long_audio.LongAudio`; None: they are errors.
        self.long_audio: Any = None

    @property
    def causal_lm(self) -> Any:
        """The LLM without its PEFT wrapper; a LoRA stays active."""
        return unwrap_peft(self.llm)

    @property
    def embedding(self) -> nn.Module:
        """The LLM's input embeddings."""
        return self.causal_lm.get_input_embeddings()

    def train(self, mode: bool = True) -> "AudioLanguageModel":
        """Set the training mode, but keep modules without a trainable parameter in eval mode.

        Frozen encoders and LLMs therefore apply no dropout or layer drop. A module without parameters, such as a
        dropout, has the mode of its parent.
        """
        self.training = mode
        _set_mode(self, mode)
        return self

    def audio_tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Audio tokens [A, N, H] and counts [A], from the batch's features or, through the encoder, its waveforms."""
        features, frames = batch.features, batch.frames
        if features is None:
            if self.encoder is None:
                raise ValueError(
                    "The batch has waveforms and the model has no encoder. Pass an encoder, or a batch of features."
                )
            encode: Callable = self.encoder if self.long_audio is None else self.long_audio.encode
            compute: Callable = self._zeros if batch.without_audio else encode
            features, frames = compute(batch.waveforms, batch.samples)
        return self.adapter(features.to(next(self.adapter.parameters()).dtype), frames)

    def _zeros(self, waveforms: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Features [A, L, T, D] of zeros, as many frames [A] as the encoder would return."""
        encoder: Any = self.encoder
        frames = (self.long_audio or encoder).num_frames(samples)
        shape = (len(frames), encoder.num_layers, int(frames.max()), encoder.feature_dim)
        return waveforms.new_zeros(shape), frames

    def embed(self, batch: Batch, audio: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """LLM inputs [B, S, H]: word embeddings, with the audio tokens in the audio slots in reading order.

        Parameters
        ----------
        batch : Batch
        audio : (Tensor, Tensor), optional
            The result of `audio_tokens`, if it has been computed already.

        Raises
        ------
        ValueError
            The adapter returns another number of audio tokens than a prompt has slots.
        """
        slots = batch.input_ids == AUDIO_SLOT  # [B, S]
        embedded = word_embeddings(self.llm, batch.input_ids.masked_fill(slots, 0))
        if batch.features is None and batch.waveforms is None:  # a batch of text
            return embedded
        tokens, counts = self.audio_tokens(batch) if audio is None else audio
        tokens = tokens[valid_mask(counts, tokens.shape[1])].to(embedded.dtype)
        rows = batch.audio_rows
        if rows is None:
            rows = torch.arange(len(counts), device=counts.device)
        available, required = torch.zeros_like(slots.sum(1)).index_add(0, rows, counts), slots.sum(1)
        if not torch.equal(available, required):
            row = int((available != required).nonzero()[0])
            name = ", ".join(batch.ids) if batch.packed else batch.ids[row]
            raise ValueError(
                f"{name}: the adapter returns {int(available[row])} audio tokens and the prompt has "
                f"{int(required[row])} slots. Build the dataset with this adapter's num_tokens and this encoder's "
                "features."
            )
        return embedded.masked_scatter(slots[..., None], tokens)

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states [B, S, H]; positions count valid tokens unless the batch has `position_ids`."""
        mask, positions = batch.attention_mask, batch.position_ids
        if batch.packed and is_recurrent(self.llm):
            raise ValueError(
                "The LLM has recurrent layers, which would read from one item of a packed batch into the next"
            )
        if positions is None:
            positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        embeds = self.embed(batch)
        outputs = self.causal_lm.base_model(
            inputs_embeds=embeds,
            attention_mask=self._packed_mask(positions, embeds.dtype) if batch.packed else mask,
            position_ids=positions,
            use_cache=False,
        )
        return outputs.last_hidden_state

    def _packed_mask(self, positions: Tensor, dtype: torch.dtype) -> Any:
        """The mask of a packed batch with positions [1, S], which restart at each item."""
        config = self.causal_lm.config.get_text_config()
        if config._attn_implementation not in ("sdpa", "eager", MATMUL):
            return None  # flash attention separates the items itself, where their positions restart
        item, place = (positions == 0).cumsum(dim=1), torch.arange(positions.shape[1], device=positions.device)
        same = (item[:, :, None] == item[:, None, :])[:, None]
        fused = config._attn_implementation == "sdpa"
        return attention_masks(
            config, place[None], place, lambda mask: mask & same if fused else additive(mask & same, dtype)
        )

    @property
    def head(self) -> nn.Module:
        """The LLM's output layer, which some LLMs follow by a scale or a cap: see `logits`."""
        return self.causal_lm.get_output_embeddings()

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of last hidden states [..., H], as the LLM's own forward pass returns them."""
        return llm_logits(self.llm, hidden)

    def supervised(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Last hidden states [K, H] of the positions whose next token is supervised, and those tokens [K]."""
        targets, mask = batch.labels[:, 1:], supervised_positions(batch)
        return self.hidden(batch)[:, :-1][mask], targets[mask]

    def loss(self, batch: Batch, objective: Callable | None = None) -> Loss:
        """Next-token cross-entropy over the supervised tokens.

        Logits are computed for supervised positions only, one chunk at a time: logits of batch x time x vocabulary
        would take most of the memory in training.

        Parameters
        ----------
        batch : Batch
        objective : callable, optional
            (model, batch) -> another loss function and its further targets (`training.distillation.Distillation`,
            `training.task_weights.TaskWeights`).
        """
        function, further_targets = (cross_entropy, []) if objective is None else objective(self, batch)
        hidden, targets = self.supervised(batch)
        tokens = targets.new_full((), len(targets))
        if self.loss_kernel == "torch" and objective is None and torch.is_grad_enabled() and len(targets):
            return Loss(torch_cross_entropy(self.head, hidden, targets), tokens, correct=None)
        chunk = chunk_positions(self.causal_lm.config.get_text_config().vocab_size, self.loss_chunk)
        total, correct = chunked_loss(self._on_raw(function), self.head, hidden, [targets, *further_targets], chunk)
        return Loss(total, tokens, correct)

    def _on_raw(self, function: Callable) -> Callable:
        """A loss function of logits, as one of what the output layer returns."""
        rescale = logit_rescaling(self.llm)
        if rescale is None:
            return function
        return lambda raw, *targets: function(rescale(raw), *targets)

    def forward(self, batch: Batch, objective: Callable | None = None) -> Loss:
        """Same as `loss`; wrappers for distributed training call `forward`."""
        return self.loss(batch, objective)


def supervised_positions(batch: Batch) -> Tensor:
    """Mask [B, S - 1] of the positions whose next token is supervised.

    Examples
    --------
    >>> labels, mask = torch.tensor([[IGNORE, 5, 7, IGNORE]]), torch.tensor([[True, True, True, False]])
    >>> ids = torch.tensor([[3, 5, 7, 0]])
    >>> batch = Batch([], [], None, None, None, None, input_ids=ids, attention_mask=mask, labels=labels)
    >>> supervised_positions(batch)
    tensor([[ True,  True, False]])
    """
    supervised = batch.labels[:, 1:] != IGNORE
    # A target without a valid token before it cannot be predicted, even if its label is set.
    if batch.packed:
        assert batch.position_ids is not None
        return supervised & (batch.position_ids[:, 1:] > 0)
    return supervised & batch.attention_mask[:, :-1] if batch.position_ids is None else supervised


def _set_mode(module: nn.Module, mode: bool) -> None:
    for child in module.children():
        parameters = list(child.parameters())
        child.training = mode and (not parameters or any(parameter.requires_grad for parameter in parameters))
        _set_mode(child, child.training)
