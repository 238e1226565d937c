"""The cache of LLMs with recurrent layers: transformers' own, which grows by a token per step.

The state of linear attention or of a convolution depends on every token before it, so a row cannot have padding after
its text, and its padding before the text must not change the state. Transformers masks the latter exactly in the types
of `_EXACT`, which were compared with rows alone; rows of one batch are then padded on the left. For other types, only
rows of equal length are one batch.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from audiolm_lite.modeling.lora import unwrap_peft

_EXACT = {
    "bailing_hybrid",
    "falcon_h1",
    "granitemoehybrid",
    "kimi_linear",
    "lara_mini",
    "lfm2",
    "lfm2_moe",
    "lfm3",
    "minimax",
    "nemotron_h",
    "olmo_hybrid",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_next",
    "zaya",
}


@dataclass
class _Group:
    """Rows that are one batch: their indices [G], their mask [G, n] of the tokens so far, the cache."""

    rows: Tensor
    mask: Tensor
    cache: Any = None


@dataclass
class GrowingCache:
    """Cache of a batch of prompts; empty before `prefill`.

    Attributes
    ----------
    max_length : int
        Most tokens of a row, prompt and answer together.
    """

    max_length: int
    groups: list[_Group] = field(default_factory=list)

    def prefill(self, llm: nn.Module, embeds: Tensor, mask: Tensor) -> Tensor:
        """Process prompts [B, S, H] with mask [B, S] bool; returns the last hidden state [B, H] of each row."""
        lengths = mask.sum(1)
        order = torch.argsort(mask.long(), dim=1, stable=True)  # padding first
        embeds = embeds.gather(1, order[:, :, None].expand_as(embeds))
        mask = mask.gather(1, order)
        embeds = embeds.masked_fill(~mask[:, :, None], 0.0)
        if unwrap_peft(llm).config.get_text_config().model_type in _EXACT:
            groups = [torch.arange(len(lengths), device=mask.device)]
        else:
            groups = [(lengths == length).nonzero()[:, 0] for length in lengths.unique()]
        self.groups = []
        last = embeds.new_empty(embeds.shape[0], embeds.shape[2])
        for rows in groups:
            longest = int(lengths[rows].max())
            group = _Group(rows, mask[rows, -longest:])
            positions = (group.mask.long().cumsum(1) - 1).clamp(min=0)
            last[rows] = _advance(llm, group, embeds[rows, -longest:], positions)
            self.groups.append(group)
        return last

    def step(self, llm: nn.Module, embeds: Tensor, position: Tensor) -> Tensor:
        """Advance by one token: embeddings [B, 1, H] at positions [B] -> hidden states [B, H]."""
        last = torch.empty_like(embeds[:, 0])
        for group in self.groups:
            group.mask = nn.functional.pad(group.mask, (0, 1), value=True)
            last[group.rows] = _advance(llm, group, embeds[group.rows], position[group.rows, None])
        return last

    def copy_rows(self, other: "GrowingCache", source: Tensor) -> None:
        """Fill row r with row `source[r]` of another cache, or of this one."""
        groups = []
        for group in other.groups:
            rows = torch.isin(source, group.rows).nonzero()[:, 0]
            if len(rows) == 0:
                continue
            index = torch.searchsorted(group.rows, source[rows])
            cache = group.cache if other is self else copy.deepcopy(group.cache)
            cache.reorder_cache(index)
            groups.append(_Group(rows, group.mask[index], cache))
        self.groups = groups


def _advance(llm: nn.Module, group: _Group, embeds: Tensor, positions: Tensor) -> Tensor:
    """Process embeddings [G, S, H] of new tokens; returns the last hidden states [G, H] and changes the cache."""
    output = unwrap_peft(llm).base_model(
        inputs_embeds=embeds,
        attention_mask=group.mask.long(),
        position_ids=positions,
        past_key_values=group.cache,
        use_cache=True,
    )
    group.cache = output.get("cache") or output.get("past_key_values")  # the name in new and in older versions
    if group.cache is None:
        raise ValueError(
            f"{type(unwrap_peft(llm)).__name__}: transformers {transformers.__version__} has no cache for it"
        )
    return output.last_hidden_state[:, -1]
