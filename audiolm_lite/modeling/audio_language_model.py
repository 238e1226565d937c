"""The audio language model: an adapter's audio tokens spliced into an LLM's prompt, and the loss on the answer."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from audiolm_lite.modeling.batch import AUDIO_SLOT, IGNORE, Batch
from audiolm_lite.modeling.chunked_loss import chunk_positions, chunked_loss, cross_entropy
from audiolm_lite.modeling.fused_loss import fused_loss, load_kernel


class Loss(NamedTuple):
    """Sums over the supervised tokens of a batch, so that batches of any size add up exactly.

    A tuple, because engines of distributed training look into tuples for what will be differentiated.

    Attributes
    ----------
    total : Tensor
        Sum of the cross-entropies (or of what distillation has in their place), float32 scalar in nats, differentiable.
    tokens : Tensor
        Number of supervised tokens, int64 scalar.
    correct : Tensor, optional
        How many of them the model ranks first, int64 scalar; None in training steps with a `loss_kernel` that does not
        rank.
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
        A causal language model of transformers, PEFT-wrapped or not.
    encoder : nn.Module, optional
        Maps waveforms [A, S] and samples [A] to features and frames; needed for batches of waveforms only.
    loss_chunk : int
        Positions whose logits exist at a time; 0: as many as fit in 256 MB.
    loss_kernel : str
        What computes the loss of training steps, one of `config.keys.LOSS_KERNELS`.
    """

    # Factors that some architectures apply after the output layer, which the loss below calls on its own.
    _LOGIT_FACTORS = ("final_logit_softcapping", "logit_scale", "logits_scaling")

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
        self._loss_kernel = load_kernel(loss_kernel, self.head)
        config = self._causal_lm.config
        for name in self._LOGIT_FACTORS:
            if getattr(config, name, None) not in (None, 1.0):
                raise ValueError(
                    f"llm: {config.model_type} scales its logits ({name}), which the loss does not support."
                )

    @property
    def _causal_lm(self) -> nn.Module:
        """The LLM without its PEFT wrapper; adapted layers live inside it all the same."""
        return self.llm.get_base_model() if hasattr(self.llm, "get_base_model") else self.llm

    @property
    def embedding(self) -> nn.Module:
        """The LLM's input embeddings."""
        return self._causal_lm.get_input_embeddings()

    def train(self, mode: bool = True) -> "AudioLanguageModel":
        """Set the training mode, but keep every part without a trainable parameter in eval mode.

        Otherwise dropout and layer drop would come back in frozen encoders and LLMs. A module without parameters, such
        as a dropout, follows the module it belongs to.
        """
        self.training = mode
        _set_mode(self, mode)
        return self

    def audio_tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Audio tokens [A, N, H] and counts [A], from the batch's features or, through the encoder, its waveforms."""
        features, frames = batch.features, batch.frames
        if features is None:
            if self.encoder is None:
                raise ValueError("the batch holds waveforms, and this model has no encoder: give it one, or features.")
            features, frames = self.encoder(batch.waveforms, batch.samples)
        return self.adapter(features.to(next(self.adapter.parameters()).dtype), frames)

    def embed(self, batch: Batch) -> Tensor:
        """LLM inputs [B, S, H]: word embeddings, with the audio tokens in the audio slots in reading order."""
        slots = batch.input_ids == AUDIO_SLOT  # [B, S]
        embedded = self.embedding(batch.input_ids.masked_fill(slots, 0))
        if batch.features is None and batch.waveforms is None:  # text alone
            return embedded
        tokens, counts = self.audio_tokens(batch)
        valid = torch.arange(tokens.shape[1], device=tokens.device) < counts[:, None]  # [A, N]
        tokens = tokens[valid].to(embedded.dtype)
        rows = batch.audio_rows
        if rows is None:
            rows = torch.arange(len(counts), device=counts.device)
        given = torch.zeros_like(slots.sum(1)).index_add(0, rows, counts)
        if not torch.equal(given, slots.sum(1)):
            row = int((given != slots.sum(1)).nonzero()[0])
            name = ", ".join(batch.ids) if batch.packed else batch.ids[row]
            raise ValueError(
                f"{name}: the adapter gives {int(given[row])} audio tokens and the prompt has "
                f"{int(slots[row].sum())} slots: build the dataset with this adapter's num_tokens and this encoder's "
                "features."
            )
        return embedded.masked_scatter(slots[..., None], tokens)

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states [B, S, H]; positions count valid tokens unless the batch says otherwise."""
        mask, positions = batch.attention_mask, batch.position_ids
        if positions is None:
            positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        if batch.packed:
            mask = None  # transformers then tells items apart by where positions start anew, whatever the kernel
        outputs = self._causal_lm.base_model(
            inputs_embeds=self.embed(batch), attention_mask=mask, position_ids=positions, use_cache=False
        )
        return outputs.last_hidden_state

    @property
    def head(self) -> nn.Module:
        """The LLM's output layer."""
        return self._causal_lm.get_output_embeddings()

    def supervised(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Last hidden states [K, H] of the positions whose next token is supervised, and these tokens [K]."""
        targets, chosen = batch.labels[:, 1:], supervised_positions(batch)
        return self.hidden(batch)[:, :-1][chosen], targets[chosen]

    def loss(self, batch: Batch, distillation: Callable | None = None) -> Loss:
        """Next-token cross-entropy over the supervised tokens; logits exist for those alone, a chunk at a time.

        Batch x time x vocabulary logits would dominate the memory of training.

        Parameters
        ----------
        batch : Batch
        distillation : callable, optional
            Gives another loss function and what it needs at each position (see `training.distillation`).
        """
        function, more = (cross_entropy, []) if distillation is None else distillation(self, batch)
        hidden, targets = self.supervised(batch)
        tokens = targets.new_full((), len(targets))
        if self._loss_kernel and distillation is None and torch.is_grad_enabled() and len(targets):
            return Loss(fused_loss(self._loss_kernel, self.head, hidden, targets), tokens, correct=None)
        chunk = chunk_positions(self._causal_lm.config.vocab_size, self.loss_chunk)
        total, correct = chunked_loss(function, self.head, hidden, [targets, *more], chunk)
        return Loss(total, tokens, correct)

    def forward(self, batch: Batch, distillation: Callable | None = None) -> Loss:
        """The loss: what wrappers for distributed training call."""
        return self.loss(batch, distillation)


def supervised_positions(batch: Batch) -> Tensor:
    """Mask [B, S - 1] of the positions whose next token is supervised; known from the batch alone."""
    chosen = batch.labels[:, 1:] != IGNORE
    # a target without a valid token before it has nothing to be predicted from, whatever stands there
    if batch.packed:
        return chosen & (batch.position_ids[:, 1:] > 0)
    return chosen & batch.attention_mask[:, :-1] if batch.position_ids is None else chosen


def _set_mode(module: nn.Module, mode: bool) -> None:
    for child in module.children():
        parameters = list(child.parameters())
        child.training = mode and (not parameters or any(parameter.requires_grad for parameter in parameters))
        _set_mode(child, child.training)
