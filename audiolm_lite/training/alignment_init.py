"""Closed-form initialisation of an adapter's projection, for corpora with timed words. It is not part of LTU-AS.

Ridge regression maps the input of the untrained projection to soft text (see `soft_text`). This takes seconds. Gradient
descent on a classification stage needs minutes until the audio tokens are close to the LLM's word embeddings.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.data.batching import Item, collate
from audiolm_lite.data.clip_sources import FeatureSource
from audiolm_lite.data.dataset import AudioTextDataset
from audiolm_lite.data.readable import ReadableItems, Unreadable
from audiolm_lite.modeling.llm_layers import word_embeddings
from audiolm_lite.training.brain import AudioLMBrain
from audiolm_lite.training.build import frame_seconds
from audiolm_lite.training.soft_text import soft_text

_MANY_FRAMES = 10_000  # of a long clip, whose audio tokens give their mean duration


@torch.inference_mode()
def align_projection(
    brain: AudioLMBrain,
    datasets: Mapping[str, AudioTextDataset],
    tokenizer: PreTrainedTokenizerBase,
    alive: Callable[[], None],
    ridge: float,
    clips: int,
) -> str:
    """Solve for `brain.model.adapter.projection` on clips whose rows have the field `words`.

    Parameters
    ----------
    brain : AudioLMBrain
        The adapter of its model has `hidden` and a linear `projection`.
    datasets : mapping
        "train": items whose manifest rows carry `words` ([[word, start, end], ...], seconds) and `clip_labels` (list of
        str).
    tokenizer : PreTrainedTokenizerBase
        The LLM's.
    alive : callable
        Called once per batch (see `processes.run_in_main`).
    ridge : float
        Weight of the penalty, in units of audio tokens.
    clips : int
        Maximum number of clips.

    Returns
    -------
    str
        A line for the log, with the fraction of the soft text's variance that the projection explains on these clips.

    Raises
    ------
    ConfigError
        No row has timed words, or the adapter has no linear projection with a bias.
    """
    model, dataset = brain.model, datasets["train"]
    adapter = model.adapter
    if not hasattr(adapter, "hidden"):
        raise ConfigError(
            f"alignment_init: {type(adapter).__name__} has no linear projection; set alignment_init to null"
        )
    if not isinstance(adapter.projection, torch.nn.Linear) or adapter.projection.bias is None:
        raise ConfigError(
            "alignment_init: the adapter's projection has no bias, or is adapted by a LoRA; set alignment_init to null"
        )
    # one row per clip
    timed = {row["audio"]: i for i, row in enumerate(dataset.rows) if "words" in row}
    chosen = list(timed.values())[:: max(1, len(timed) // clips)][:clips]
    if not chosen:
        raise ConfigError(
            "alignment_init: no manifest row has the field 'words' (timed words); add it, or set alignment_init to null"
        )
    source = dataset.source.store if isinstance(dataset.source, FeatureSource) else model.encoder
    token_seconds = frame_seconds(source) * _MANY_FRAMES / adapter.num_tokens(_MANY_FRAMES)
    device = next(adapter.parameters()).device
    words = torch.arange(model.embedding.num_embeddings, device=model.embedding.weight.device)
    table = word_embeddings(model.llm, words).detach().cpu().double()  # at the scale that audio tokens must have
    readable = ReadableItems(dataset)
    inputs, targets = [], []
    for start in range(0, len(chosen), 32):
        read = [readable[i] for i in chosen[start : start + 32]]
        brain.bad_audio.add("alignment_init", [item for item in read if isinstance(item, Unreadable)])
        items = [item for item in read if isinstance(item, Item)]
        if not items:
            continue
        batch = collate(items).to(device)
        features: Any = batch.features
        frames: Any = batch.frames
        if model.encoder is not None and features is None:
            features, frames = model.encoder(batch.waveforms, batch.samples)
        hidden = adapter.hidden(features.to(next(adapter.parameters()).dtype), frames)
        for i, count in enumerate(adapter.num_tokens(frames).tolist()):
            row = items[i].row
            soft = soft_text(row["words"], row.get("clip_labels", []), count, token_seconds, tokenizer)
            inputs.append(hidden[i, :count].cpu().double())
            targets.append(soft.embed(table))
        alive()
    explained = _solve(adapter.projection, torch.cat(inputs), torch.cat(targets), ridge)
    return f"Closed-form initialisation of adapter.projection explains {explained:.1%} of the soft text's variance"


def _solve(projection: torch.nn.Linear, inputs: Tensor, targets: Tensor, ridge: float) -> float:
    """Fit `projection` to map inputs [K, D] to targets [K, H]; returns the explained fraction of the variance."""
    mean_in, mean_out = inputs.mean(0), targets.mean(0)
    x, y = inputs - mean_in, targets - mean_out
    weight = torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)  # [D, H]
    projection.weight.copy_(weight.T)
    projection.bias.copy_(mean_out - mean_in @ weight)
    return float(1 - (y - x @ weight).square().sum() / y.square().sum())
