"""Distillation from text (as in Ultravox): the model learns to answer a clip as its LLM answers the clip's text.

The teacher is the pretrained LLM itself, without its LoRA. Its prompt is the same, with text (a transcript, a caption)
in place of the audio. No other model is loaded, and nothing is computed in advance.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.language.prompt import PromptTemplate
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.modeling.batch import AUDIO_SLOT, IGNORE, Batch
from audiolm_lite.modeling.losses import cross_entropy


class Distillation:
    """Objective of a batch, for `AudioLanguageModel.loss`.

    `(1 - weight) * cross-entropy + weight * temperature ** 2 * KL(teacher || student)`, both at the temperature (Hinton
    et al. 2015, arXiv 1503.02531), summed over the answers' tokens.

    Parameters
    ----------
    template : PromptTemplate
    tokenizer : PreTrainedTokenizerBase
    text : str
        Field of a manifest row with the text that replaces its audio.
    weight : float
        Weight of the divergence, 0 to 1.
    temperature : float
        Above 0; larger values give more weight to the teacher's less likely tokens.

    Raises
    ------
    ConfigError
        A value is out of its range.
    """

    def __init__(
        self,
        template: PromptTemplate,
        tokenizer: PreTrainedTokenizerBase,
        text: str,
        weight: float = 1.0,
        temperature: float = 2.0,
    ):
        if not 0 <= weight <= 1 or temperature <= 0:
            raise ConfigError(
                f"distillation: weight is {weight}, temperature {temperature}; "
                "weight must be from 0 to 1, temperature above 0"
            )
        self.template, self.tokenizer, self.text = template, tokenizer, text
        self.weight, self.temperature = weight, temperature

    def __call__(self, model: AudioLanguageModel, batch: Batch) -> tuple[Callable, list[Tensor]]:
        """Compute the teacher's hidden states for a batch.

        Returns
        -------
        function : callable
            Loss of a chunk of positions, from logits, targets and teacher states.
        states : list of Tensor
            The teacher's states [K, H] at the K supervised positions.
        """
        with torch.no_grad(), without_lora(model.llm):
            states, _ = model.supervised(self.text_batch(batch))
        if not batch.ids:  # it only fills up this process's part of a window
            states = states[:0]

        def loss(logits: Tensor, targets: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad(), without_lora(model.llm):
                teacher = (model.logits(states).float() / self.temperature).log_softmax(dim=-1)
            student = (logits.float() / self.temperature).log_softmax(dim=-1)
            divergence = F.kl_div(student, teacher, reduction="sum", log_target=True)
            total, correct = cross_entropy(logits, targets)
            return (1 - self.weight) * total + self.weight * self.temperature**2 * divergence, correct

        return loss, [states]

    def text_batch(self, batch: Batch) -> Batch:
        """Build the prompts of a batch with text in place of audio.

        Raises
        ------
        ConfigError
            A row has no such text.
        """
        ids, labels = [], []
        for row in batch.rows:
            if not isinstance(row.get(self.text), str) or not row[self.text].strip():
                raise ConfigError(
                    f'distillation: row "{row["id"]}" has no text in its field "{self.text}": add it to the manifest, '
                    "or set distillation.text to the field that contains it"
                )
            # as plain text, even where it spells a special token
            words = self.tokenizer.encode(row[self.text], add_special_tokens=False, split_special_tokens=True)
            row_ids, row_labels = self.template.encode(row, self.tokenizer, len(words))
            words = iter(words)
            ids.append(torch.tensor([next(words) if token == AUDIO_SLOT else token for token in row_ids]))
            labels.append(torch.tensor(row_labels))
        mask = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in ids], batch_first=True)
        padded = pad_sequence(ids, batch_first=True), mask, pad_sequence(labels, batch_first=True, padding_value=IGNORE)
        return Batch(batch.ids, batch.rows, None, None, None, None, *padded).to(batch.input_ids.device)


@contextmanager
def without_lora(llm: nn.Module) -> Iterator[None]:
    """Run an LLM with its pretrained weights only.

    PEFT's own `disable_adapter` also changes which parameters are trainable, and leaves all LoRAs trainable.

    Examples
    --------
    >>> from peft import LoraConfig, get_peft_model
    >>> base = nn.Sequential(nn.Linear(2, 2))
    >>> before = base(torch.ones(2))
    >>> llm = get_peft_model(base, LoraConfig(target_modules=["0"], init_lora_weights=False))
    >>> with without_lora(llm):
    ...     same = torch.equal(llm(torch.ones(2)), before)
    >>> same, torch.equal(llm(torch.ones(2)), before)
    (True, False)
    """
    layers = [module for module in llm.modules() if hasattr(module, "_disable_adapters")]
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, value in zip(layers, before):
            layer._disable_adapters = value


def require_frozen_llm(model: AudioLanguageModel) -> None:
    """Check that no weight of the LLM trains except its LoRA: the teacher must not change.

    Raises
    ------
    ConfigError
        Such a weight trains.

    Examples
    --------
    >>> require_frozen_llm(nn.ModuleDict({"llm": nn.Linear(2, 2)}))
    Traceback (most recent call last):
    audiolm_lite.config.errors.ConfigError: distillation: llm.weight is trainable, and the teacher must not change; ...
    """
    for name, parameter in model.llm.named_parameters():
        if parameter.requires_grad and "lora_" not in name:
            raise ConfigError(f"distillation: llm.{name} is trainable, and the teacher must not change; use LoRA")
