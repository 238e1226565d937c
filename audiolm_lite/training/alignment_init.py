"""Closed-form start of an adapter's projection, for corpora with timed words (our own addition to LTU-AS).

Ridge regression maps what the untrained projection reads onto soft text (see `soft_text`): within seconds the audio
tokens lie where the LLM's word embeddings are, which gradient descent on a classification stage takes minutes to find.
"""

import torch
from torch import Tensor
from torch.utils.data import Dataset

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.data.batching import collate
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.training.soft_text import soft_text


@torch.inference_mode()
def initialise_projection(
    model: AudioLanguageModel, dataset: Dataset, tokenizer, token_seconds: float, ridge: float, clips: int
) -> float:
    """Solve `model.adapter.projection` on up to `clips` clips whose rows have the field `words`.

    Parameters
    ----------
    model : AudioLanguageModel
        Its adapter has `hidden` and a linear `projection`.
    dataset : Dataset
        Items whose manifest rows carry `words` ([[word, start, end], ...], seconds) and `clip_labels` (list of str).
    tokenizer : PreTrainedTokenizerBase
        The LLM's.
    token_seconds : float
        Duration of an audio token.
    ridge : float
        Weight of the penalty, in units of audio tokens.
    clips : int
        Clips to use at most.

    Returns
    -------
    float
        Share of the soft text's variance that the projection explains on these rows, 0 to 1.

    Raises
    ------
    ConfigError
        No row has timed words, or the adapter has no projection to solve.
    """
    adapter = model.adapter
    if not hasattr(adapter, "hidden"):
        raise ConfigError(f"alignment_init: {type(adapter).__name__} has no linear projection to solve; set it to null")
    if not isinstance(adapter.projection, torch.nn.Linear) or adapter.projection.bias is None:
        raise ConfigError(
            "alignment_init: the adapter's projection has no bias, or a LoRA in its place; set it to null"
        )
    # One row of each clip.
    timed = {row["audio"]: i for i, row in enumerate(dataset.rows) if "words" in row}
    chosen = list(timed.values())[:: max(1, len(timed) // clips)][:clips]
    if not chosen:
        raise ConfigError("alignment_init: no manifest row has the field 'words' (timed words); set it to null")
    device = next(adapter.parameters()).device
    table = model.embedding.weight.detach().double().cpu()
    inputs, targets = [], []
    for start in range(0, len(chosen), 32):
        items = [dataset[i] for i in chosen[start : start + 32]]
        batch = collate(items).to(device)
        features, frames = batch.features, batch.frames
        if features is None:
            features, frames = model.encoder(batch.waveforms, batch.samples)
        hidden = adapter.hidden(features.to(next(adapter.parameters()).dtype), frames)
        for i, count in enumerate(adapter.num_tokens(frames).tolist()):
            row = items[i].row
            soft = soft_text(row["words"], row.get("clip_labels", []), count, token_seconds, tokenizer)
            inputs.append(hidden[i, :count].double().cpu())
            targets.append(soft.embed(table))
    return _solve(adapter.projection, torch.cat(inputs), torch.cat(targets), ridge)


def _solve(projection: torch.nn.Linear, inputs: Tensor, targets: Tensor, ridge: float) -> float:
    """Least squares of targets [K, H] on inputs [K, D], written into `projection`."""
    mean_in, mean_out = inputs.mean(0), targets.mean(0)
    x, y = inputs - mean_in, targets - mean_out
    weight = torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)  # [D, H]
    projection.weight.copy_(weight.T)
    projection.bias.copy_(mean_out - mean_in @ weight)
    return float(1 - (y - x @ weight).square().sum() / y.square().sum())
