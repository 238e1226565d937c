"""Whisper's own decoder on the hidden states of its encoder: transcripts for prompts, from the same encoder pass."""

import unicodedata
from functools import cached_property

import torch
import transformers
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from audiolm_lite.backbones.untrusted import check_published
from audiolm_lite.config.errors import ConfigError

# A transcript of 30 s of speech has about 100 tokens. One that is longer than this repeats itself.
_MOST_TOKENS = 200


class WhisperDecoder:
    """Greedy transcripts of Whisper (Radford et al. 2022, arXiv 2212.04356).

    Not a module of the encoder, because its weights are never trained, saved or part of the features' identity. They
    are read at the first transcript, in float32, and follow the encoder's device.

    Parameters
    ----------
    source : str
        Folder or name of a `WhisperForConditionalGeneration` in transformers' format, with its tokenizer.
    language : str
        ISO 639-1 code of the speech; "en" for the models that only know English.
    text : {"written", "plain"}
        Transcripts as Whisper writes them, or passed through `plain_text`.

    Raises
    ------
    ConfigError
        There is no tokenizer, the model does not know the language, or `text` is another word.
    """

    def __init__(self, source: str, language: str, text: str = "written"):
        if text not in ("written", "plain"):
            raise ConfigError(f'whisper: decoder_text is {text!r}, it must be "written" or "plain"')
        self.source, self.plain = source, text == "plain"
        check_published("whisper", source)
        try:
            settings = transformers.GenerationConfig.from_pretrained(source)
            self.tokenizer = transformers.WhisperTokenizerFast.from_pretrained(source)
        except Exception as error:  # the tokenizers' own library raises plain exceptions
            raise ConfigError(
                f"whisper: decoder_language needs the tokenizer and generation_config.json of {source}: {error}"
            ) from error
        codes = getattr(settings, "lang_to_id", None) or {}  # the models that only know English have none
        languages = sorted(code.strip("<|>") for code in codes) or ["en"]
        if language not in languages:
            raise ConfigError(
                f"whisper: decoder_language {language!r} is not a language of {source}: {', '.join(languages)}"
            )
        spoken = [f"<|{language}|>", "<|transcribe|>"] if codes else []
        prefix = ["<|startoftranscript|>", *spoken, "<|notimestamps|>"]
        self.prefix: list[int] = self.tokenizer.convert_tokens_to_ids(prefix)

    @cached_property
    def model(self) -> transformers.PreTrainedModel:
        """The decoder's weights."""
        options = {"use_safetensors": True, "output_loading_info": True, "dtype": torch.float32}
        options["trust_remote_code"] = False
        model, info = transformers.WhisperForConditionalGeneration.from_pretrained(self.source, **options)
        if missing := sorted(info["missing_keys"]):
            raise ConfigError(
                f"whisper: {self.source} lacks {len(missing)} tensors that transcripts need, for example {missing[0]}; "
                "download it again, or remove decoder_language"
            )
        model.model.encoder = None  # its caller has it
        model.generation_config.max_length = None  # max_new_tokens counts, and two limits give a warning
        return model.eval().requires_grad_(False)

    @torch.no_grad()
    def transcribe(self, hidden: Tensor) -> list[str]:
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
        model = self.model.to(hidden.device)
        # The generate of transformers' Whisper class needs spectrograms; that of its base class does not.
        tokens = transformers.GenerationMixin.generate(
            model,
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden.float()),
            attention_mask=torch.ones(hidden.shape[:2], dtype=torch.int64, device=hidden.device),
            decoder_input_ids=torch.tensor([self.prefix] * len(hidden), device=hidden.device),
            max_new_tokens=min(_MOST_TOKENS, model.config.max_target_positions - len(self.prefix)),
            num_beams=1,
            do_sample=False,
        )
        texts = [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        return [plain_text(text) for text in texts] if self.plain else texts


def plain_text(text: str) -> str:
    """Return a text in lower case and without punctuation, as the transcripts of speech corpora are.

    An LLM copies words from such a text into an answer of the same form token by token. Apostrophes between letters and
    marks of any script stay; other characters that are no letters or digits become spaces.

    Examples
    --------
    >>> plain_text("Mr. O'Hara's shop-boy said: \u201cIt\u2019s 10 o'clock!\u201d")
    "mr o'hara's shop boy said it's 10 o'clock"
    """
    characters = []
    for before, character, after in zip(f" {text}", text, f"{text[1:]} "):
        if character in "'\u2019" and before.isalnum() and after.isalnum():
            characters.append("'")
        elif character.isalnum() or unicodedata.category(character).startswith("M"):
            characters.append(character.lower())
        else:
            characters.append(" ")
    return " ".join("".join(characters).split())
