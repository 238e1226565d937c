"""Whisper's own decoder on the hidden states of its encoder: transcripts for prompts, from the same encoder pass."""

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from audiolm_lite.config.errors import ConfigError

# A transcript of 30 s of speech has about 100 tokens. One that is longer than this repeats itself.
_MOST_TOKENS = 200


class WhisperDecoder(nn.Module):
    """Greedy transcripts of Whisper (Radford et al. 2022, arXiv 2212.04356).

    Parameters
    ----------
    source : str
        Folder or name of a `WhisperForConditionalGeneration` in transformers' format, with its tokenizer.
    language : str
        ISO 639-1 code of the speech; "en" for the models that only know English.

    Raises
    ------
    ConfigError
        The model does not know the language.
    """

    def __init__(self, source: str, language: str):
        super().__init__()
        model = transformers.WhisperForConditionalGeneration.from_pretrained(source, use_safetensors=True)
        model.model.encoder = None  # its caller has it
        settings = model.generation_config
        languages = getattr(settings, "lang_to_id", None) or {}
        if (f"<|{language}|>" not in languages) if languages else language != "en":
            known = ", ".join(sorted(code.strip("<|>") for code in languages)) or "en"
            raise ConfigError(f"whisper: decoder_language {language!r} is not a language of {source}: {known}")
        spoken = {"language": language, "task": "transcribe"} if languages else {}
        self.tokenizer = transformers.WhisperTokenizerFast.from_pretrained(source, **spoken)
        self.prefix = list(self.tokenizer.prefix_tokens)
        self.model = model.float().eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, hidden: Tensor) -> list[str]:
        """Transcribe clips.

        Parameters
        ----------
        hidden : Tensor
            Output of Whisper's encoder [B, T, D] for clips that are padded with silence to the full 30 s. For shorter
            ones the decoder, which never met them, repeats its words.

        Returns
        -------
        list of str
            Transcripts, without surrounding spaces.
        """
        hidden = hidden.to(self.model.device, torch.float32)
        # The generate of transformers' Whisper class needs spectrograms; that of its base class does not.
        tokens = transformers.GenerationMixin.generate(
            self.model,
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=torch.ones(hidden.shape[:2], dtype=torch.int64, device=hidden.device),
            decoder_input_ids=torch.tensor([self.prefix] * len(hidden), device=hidden.device),
            max_new_tokens=min(_MOST_TOKENS, self.model.config.max_target_positions - len(self.prefix)),
            num_beams=1,
            do_sample=False,
        )
        return [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
