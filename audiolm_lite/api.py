"""What a user calls: `AudioLM.from_pretrained(...)`, then `.transcribe`, `.caption` and `.ask`."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiolm_lite.audio.reading import SAMPLE_RATE, read_audio
from audiolm_lite.data.batching import Item
from audiolm_lite.decoding.backend import Backend
from audiolm_lite.decoding.bundle import ModelBundle
from audiolm_lite.deploy.backends import make_backend
from audiolm_lite.hub.load import load_model
from audiolm_lite.language.prompt import AUDIO_MARK
from audiolm_lite.modeling.lora import merge_lora

Clip = str | Path | Tensor
Audio = Clip | tuple[Clip, ...]


class AudioLM:
    """An audio language model ready to answer.

    Parameters
    ----------
    bundle : ModelBundle
        From `hub.load_model`.
    backend : str
        How the LLM runs: "eager", "inductor" or "aoti" (see `deploy.backends`). The others take minutes to compile once
        and answer faster.
    batch_size : int
        Clips answered at once; further ones are answered in turn.
    max_length : int
        Capacity in tokens that a compiled back end is made for: prompt, audio and answer.
    """

    def __init__(self, bundle: ModelBundle, *, backend: str = "eager", batch_size: int = 8, max_length: int = 512):
        self.bundle = bundle
        self.batch_size = batch_size
        self._backend: Backend | None = None
        if backend != "eager":
            bundle.model.llm = merge_lora(bundle.model.llm)
            self._backend = make_backend(backend, bundle.model.llm, batch_size, max_length)

    @classmethod
    def from_pretrained(cls, path_or_repo: str | Path, device: str | None = None, **options: Any) -> "AudioLM":
        """Load a model's folder or a repository of the Hugging Face hub.

        Parameters
        ----------
        path_or_repo : str or Path
            Folder with an `audiolm_lite.json`, or "owner/name" on the hub.
        device : str, optional
            E.g. "cpu", "cuda:0"; by default a GPU where there is one.
        **options
            Of this class.

        Raises
        ------
        ModelFolderError
            Nothing complete is there.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(load_model(path_or_repo, device), **options)

    def transcribe(self, audio: Audio | Sequence[Audio], **generation: Any) -> str | list[str]:
        """Write down what is said; arguments and result as in `ask`."""
        return self.ask(audio, self.bundle.instructions["transcribe"], **generation)

    def caption(self, audio: Audio | Sequence[Audio], **generation: Any) -> str | list[str]:
        """Describe what is heard; arguments and result as in `ask`."""
        return self.ask(audio, self.bundle.instructions["caption"], **generation)

    @torch.no_grad()
    def ask(
        self,
        audio: Audio | Sequence[Audio],
        question: str | Sequence[str],
        *,
        fields: dict[str, str] | None = None,
        history: Sequence[tuple[str, str]] = (),
        **generation: Any,
    ) -> str | list[str]:
        """Answer a question about audio.

        Parameters
        ----------
        audio : path, Tensor or sequence of them
            Audio files of any format libsndfile reads, or waveforms [S] float, mono at 16 kHz. A tuple is several clips
            in one question, which may place them: "is <audio> louder than <audio>?".
        question : str or sequence of str
            One for all clips, or one each.
        fields : dict, optional
            Further fields of the model's prompt template, e.g. {"transcript": ...}.
        history : sequence of (str, str), optional
            Questions and answers before this one, for all clips.
        **generation
            `max_new_tokens`, and for sampling `temperature`, `top_k`, `top_p`, `repetition_penalty`, `seed`
            (see `decoding.Sampling`); what is not given is as the model's folder says, greedy unless it says otherwise.

        Returns
        -------
        str or list of str
            A string for one clip, a list for a sequence.

        Raises
        ------
        AudioError
            A file cannot be read.
        ValueError
            A waveform of another shape, another number of questions than clips, a clip longer than the encoder takes.

        Warns
        -----
        UserWarning
            The model's tokenizer drops characters of the question.
        """
        single = isinstance(audio, (str, Path, Tensor, tuple))
        clips = [audio] if single else list(audio)
        questions = [question] * len(clips) if isinstance(question, str) else list(question)
        if len(questions) != len(clips):
            raise ValueError(f"ask: {len(questions)} questions for {len(clips)} clips; give one, or one a clip")
        for text in dict.fromkeys(questions):
            self._warn_of_lost_characters(text.replace(AUDIO_MARK, ""))
        turns = [{"instruction": asked, "target": answered} for asked, answered in history]
        before = {"history": turns} if turns else {}
        answers: list[str] = []
        for start in range(0, len(clips), self.batch_size):
            batch = slice(start, start + self.batch_size)
            pairs = zip(clips[batch], questions[batch])
            items = [self._item(clip, {"instruction": text, **before, **(fields or {})}) for clip, text in pairs]
            answers += self.bundle.answer(items, generation, self._backend)
        return answers[0] if single else answers

    def _warn_of_lost_characters(self, text: str) -> None:
        """A small vocabulary may lack characters, capitals for example, and drops them without a word."""
        tokenizer = self.bundle.tokenizer
        read = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=True)
        if "".join(read.split()) != "".join(text.split()):
            warnings.warn(
                f"the model's tokenizer reads the question {text!r} as {read!r}: it lacks some of its characters; "
                "try lower case, or plainer words",
                stacklevel=3,
            )

    def _item(self, audio: Audio, row: dict[str, Any]) -> Item:
        clips = list(audio) if isinstance(audio, tuple) else [audio]
        row = {"id": " ".join("waveform" if isinstance(clip, Tensor) else str(clip) for clip in clips), **row}
        waveforms = [self._waveform(clip) for clip in clips]
        model = self.bundle.model
        tokens = [model.adapter.num_tokens(model.encoder.num_frames(len(waveform))) for waveform in waveforms]
        if min(tokens) < 1:
            seconds = min(map(len, waveforms)) / SAMPLE_RATE
            raise ValueError(f"{row['id']}: {seconds:.3f} s is too short for one audio token; give more audio")
        ids, labels = self.bundle.template.encode(row, self.bundle.tokenizer, tokens, with_answer=False)
        return Item(row, ids, labels, waveform=waveforms[0], further=tuple(waveforms[1:]))

    @staticmethod
    def _waveform(clip: Clip) -> Tensor:
        if not isinstance(clip, Tensor):
            return read_audio(clip)
        if clip.dim() != 1 or not clip.is_floating_point():
            raise ValueError(
                f"a waveform must be one-dimensional float at 16 kHz, not {clip.dtype} {list(clip.shape)}; "
                "average its channels and resample it"
            )
        if not clip.isfinite().all():
            raise ValueError("the waveform holds NaN or infinite samples; make it again")
        return clip.float().cpu()
