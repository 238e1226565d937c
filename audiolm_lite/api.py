"""The interface for users: `AudioLM.from_pretrained(...)`, then `.transcribe`, `.caption` and `.ask`."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiolm_lite.audio.level import level_dbfs
from audiolm_lite.audio.reading import SAMPLE_RATE, read_audio
from audiolm_lite.data.batching import Item
from audiolm_lite.decoding.backend import Backend
from audiolm_lite.decoding.bundle import Answer, ModelBundle
from audiolm_lite.deploy.backends import make_backend
from audiolm_lite.hub.load import load_model
from audiolm_lite.language.prompt import AUDIO_MARK, PromptError

Clip = str | Path | Tensor
Audio = Clip | tuple[Clip, ...]


class AudioLM:
    """An audio language model that transcribes speech, describes sounds and answers questions about audio.

    Parameters
    ----------
    bundle : ModelBundle
        From `hub.load.load_model`; `from_pretrained` loads it.
    backend : str
        How the LLM runs: "eager", "inductor", "aoti" or "best", the fastest (see `deploy.backends`). Compiling takes
        minutes, with "aoti" only the first time.
    batch_size : int
        Clips that are answered together; more clips are answered in several batches.
    max_length : int
        Capacity of a compiled backend in tokens: prompt, audio and answer together.
    dtype : str
        Dtype of the LLM: "float32", "bfloat16", "float16", or "auto": that of the model folder, but bfloat16 in place
        of float32 if the device multiplies it, which is faster and needs half the memory.

    Attributes
    ----------
    bundle : ModelBundle
        The model; a LoRA of its LLM has been merged into the weights.
    stopped : list of (str or None)
        For each answer of the last call, what stopped it: "loop", "limit" (of tokens), "silence" (the clip is below
        `silence_level`, and the model was not asked), or None if it ended by itself.
    transcripts : list of (str or None)
        For each answer of the last call, the transcript that was part of its prompt.

    Examples
    --------
    >>> from audiolm_lite import AudioLM
    >>> model = AudioLM.from_pretrained("results/stage_3")  # doctest: +SKIP
    >>> model.transcribe("speech.wav")  # doctest: +SKIP
    'the birch canoe slid on the smooth planks'
    >>> model.ask(["a.wav", "b.wav"], "Is anyone speaking?", max_new_tokens=5)  # doctest: +SKIP
    ['yes', 'no']
    """

    def __init__(
        self,
        bundle: ModelBundle,
        *,
        backend: str = "eager",
        batch_size: int = 8,
        max_length: int = 512,
        dtype: str = "auto",
    ):
        self.bundle = bundle
        self.batch_size = batch_size
        self.stopped: list[str | None] = []
        self.transcripts: list[str | None] = []
        bundle.prepare(dtype)
        self._backend: Backend | None = None
        if backend != "eager":
            self._backend = make_backend(backend, bundle.model.llm, batch_size, max_length)

    @classmethod
    def from_pretrained(cls, path_or_repo: str | Path, device: str | None = None, **options: Any) -> "AudioLM":
        """Load a model folder, a released model, or a repository of the Hugging Face hub.

        Parameters
        ----------
        path_or_repo : str or Path
            Folder with an `audiolm_lite.json`, such as the output folder of a training stage; name of a model that
            this package contains, such as "tiny"; or "owner/name" on the hub.
        device : str, optional
            For example "cpu" or "cuda:0"; by default a GPU if there is one.
        **options
            `backend`, `batch_size`, `max_length` and `dtype` of this class.

        Raises
        ------
        ModelFolderError
            Not a model folder, or an incomplete or damaged one.

        Examples
        --------
        >>> model = AudioLM.from_pretrained("owner/name", device="cpu", batch_size=2)  # doctest: +SKIP
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(load_model(path_or_repo, device, merge=True), **options)

    def transcribe(self, audio: Audio | Sequence[Audio], **generation: Any) -> str | list[str]:
        """Transcribe speech; parameters and result are those of `ask`.

        Examples
        --------
        >>> model.transcribe(["a.wav", "b.flac"], beams=4)  # doctest: +SKIP
        ['good morning', 'thank you']
        """
        return self.ask(audio, self.bundle.instructions["transcribe"], **generation)

    def caption(self, audio: Audio | Sequence[Audio], **generation: Any) -> str | list[str]:
        """Describe sounds; parameters and result are those of `ask`.

        Examples
        --------
        >>> model.caption("clip.wav")  # doctest: +SKIP
        'a dog barks while rain falls'
        """
        return self.ask(audio, self.bundle.instructions["caption"], **generation)

    @torch.no_grad()
    def ask(
        self,
        audio: Audio | Sequence[Audio],
        question: str | Sequence[str],
        *,
        fields: dict[str, str] | None = None,
        history: Sequence[tuple[str, str]] = (),
        transcript: bool = True,
        **generation: Any,
    ) -> str | list[str]:
        """Answer a question about audio.

        Parameters
        ----------
        audio : path, Tensor or sequence of them
            Audio files in any format that libsndfile reads, or waveforms [S] float, mono at 16 kHz. A tuple is several
            clips in one question, which marks their positions: "is <audio> louder than <audio>?".
        question : str or sequence of str
            One for all clips, or one per clip.
        fields : dict, optional
            Further fields of the model's prompt template, for example {"transcript": ...}.
        history : sequence of (str, str), optional
            Earlier questions and answers of the conversation, for all clips.
        transcript : bool
            Fill the slot `{transcript}` of the model's prompt template with the transcript of Whisper's own decoder,
            from the same pass of the encoder, where the model has both. `fields` may give another transcript. False
            leaves the slot empty: the model answers from the audio alone.
        **generation
            `max_new_tokens`; for sampling `temperature`, `top_k`, `top_p` and `seed`; for beam search `beams` and
            `length_penalty`; without these, decoding is greedy. `ctc_weight` decodes answers to the question of
            `transcribe` jointly with the CTC of the model's adapter. `silence_level` (dB, -60) is the level below which
            a clip is answered without the model: its transcript is empty, another answer is `silence_answer`; None
            turns this off. `tokens_per_second` limits answers by the duration. `decoding.options` lists all, with the
            guards against runaway answers. Defaults are in the model folder.

        Returns
        -------
        str or list of str
            A string for one clip, a list for a sequence.

        Raises
        ------
        AudioError
            A file cannot be read.
        PromptError
            The model's prompt has no question, or needs a field that is missing.
        ValueError
            Unknown options, a waveform of another shape, differing numbers of questions and clips, a clip that is too
            short, or longer than the encoder accepts.

        Warns
        -----
        UserWarning
            The model's tokenizer drops characters of the question, or an answer repeated itself and was cut.

        Examples
        --------
        >>> model.ask("clip.wav", "What can be heard?")  # doctest: +SKIP
        'a dog'
        >>> model.ask(("a.wav", "b.wav"), "Is <audio> louder than <audio>?")  # doctest: +SKIP
        'yes'
        """
        single = isinstance(audio, (str, Path, Tensor, tuple))
        clips: list[Audio] = [audio] if single else list(audio)  # type: ignore[list-item,arg-type]
        questions = [question] * len(clips) if isinstance(question, str) else list(question)
        if len(questions) != len(clips):
            raise ValueError(f"ask: {len(questions)} questions for {len(clips)} clips; give one, or one per clip")
        template = self.bundle.template
        if not template.asks and (unknown := set(questions) - set(self.bundle.instructions.values())):
            raise PromptError(
                f"ask: the model cannot answer {min(unknown)!r}, since its prompt {template.template!r} has no "
                "{instruction} and so no question; use transcribe or caption, whichever the model was trained for"
            )
        for text in dict.fromkeys(questions):
            self._warn_of_dropped_characters(text.replace(AUDIO_MARK, ""))
        turns = [{"instruction": earlier, "target": answer} for earlier, answer in history]
        row = {**({"history": turns} if turns else {}), **(fields or {})}
        recognize = transcript and "transcript" not in row and self._recognizes
        answers: list[Answer] = []
        self.transcripts = []
        for start in range(0, len(clips), self.batch_size):
            batch = slice(start, start + self.batch_size)
            rows = [{"instruction": text, **self._task(text), **row} for text in questions[batch]]
            items = self._items(clips[batch], rows, recognize)
            answers += self.bundle.answers(items, generation, self._backend)
            heard = [item.row.get("transcript") for item in items]
            silent = [answer.stopped == "silence" for answer in answers[start:]]
            self.transcripts += ["" if quiet and text else text for quiet, text in zip(silent, heard)]
        self.stopped = [answer.stopped for answer in answers]
        for clip, answer in zip(clips, answers):
            if answer.stopped == "loop":
                name = "a waveform" if isinstance(clip, Tensor) else clip
                warnings.warn(f"the answer about {name} repeated itself; the repeats are cut", stacklevel=2)
        texts = [answer.text for answer in answers]
        return texts[0] if single else texts

    def _task(self, question: str) -> dict[str, str]:
        """Field `task` of a row with this question, where it is known: answers with that of `transcribe` are "asr"."""
        return {"task": "asr"} if question == self.bundle.instructions["transcribe"] else {}

    def _warn_of_dropped_characters(self, text: str) -> None:
        """Warn if the vocabulary lacks characters, such as capitals, which the tokenizer then drops silently."""
        tokenizer = self.bundle.tokenizer
        decoded = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=True)
        if "".join(decoded.split()) != "".join(text.split()):
            warnings.warn(
                f"the model's tokenizer reads the question {text!r} as {decoded!r}, because its vocabulary lacks some "
                "characters; try lower case or other words",
                stacklevel=3,
            )

    @property
    def _recognizes(self) -> bool:
        """Whether prompts can have transcripts of the encoder's own decoder."""
        decoder = getattr(self.bundle.model.encoder, "decoder", None)
        return decoder is not None and "transcript" in self.bundle.template.slots

    def _items(self, audios: Sequence[Audio], rows: Sequence[dict[str, Any]], recognize: bool = False) -> list[Item]:
        """Prompts with waveforms or, with `recognize`, with transcripts and the features of the same pass."""
        groups = [audio if isinstance(audio, tuple) else (audio,) for audio in audios]
        names = [" ".join("waveform" if isinstance(clip, Tensor) else str(clip) for clip in group) for group in groups]
        rows = [{"id": name, **row} for name, row in zip(names, rows)]
        waveforms = clips = [[self._waveform(clip) for clip in group] for group in groups]
        if recognize:
            clips, texts = self._recognize(waveforms)
            rows = [{**row, "transcript": text} for row, text in zip(rows, texts)]
        return [self._item(*parts) for parts in zip(rows, waveforms, clips)]

    def _recognize(self, waveforms: Sequence[Sequence[Tensor]]) -> tuple[list[list[Tensor]], list[str]]:
        """Features [L, T, D] of the clips of each question, and their transcripts, joined by spaces."""
        encoder: Any = self.bundle.model.encoder
        samples = [waveform for group in waveforms for waveform in group]
        lengths = torch.tensor([len(waveform) for waveform in samples])
        device = self.bundle.model.embedding.weight.device
        padded = torch.nn.utils.rnn.pad_sequence(samples, batch_first=True).to(device)
        features, frames, texts = encoder.recognize(padded, lengths.to(device))
        each = iter([(clip[:, :count], text) for clip, count, text in zip(features, frames.tolist(), texts)])
        groups = [[next(each) for _ in group] for group in waveforms]
        clips = [[clip for clip, _ in group] for group in groups]
        return clips, [" ".join(text for _, text in group if text) for group in groups]

    def _item(self, row: dict[str, Any], waveforms: Sequence[Tensor], clips: Sequence[Tensor]) -> Item:
        """Prompt of a row about `clips`, which are the waveforms [S] or their features [L, T, D]."""
        model = self.bundle.model
        num_frames = model.encoder.num_frames  # type: ignore[union-attr]  # a model that is loaded here has its encoder
        tokens = [model.adapter.num_tokens(num_frames(len(waveform))) for waveform in waveforms]
        if min(tokens) < 1:
            seconds = min(map(len, waveforms)) / SAMPLE_RATE
            raise ValueError(f"{row['id']}: {seconds:.3f} s is too short for one audio token; give more audio")
        ids, labels = self.bundle.template.encode(row, self.bundle.tokenizer, tokens, with_answer=False)
        own: dict[str, Any] = {"waveform": clips[0]} if clips is waveforms else {"features": clips[0]}
        seconds, level = sum(map(len, waveforms)) / SAMPLE_RATE, max(map(level_dbfs, waveforms))
        return Item(row, ids, labels, further=tuple(clips[1:]), seconds=seconds, level=level, **own)

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
            raise ValueError("the waveform has NaN or infinite samples; check how it was made")
        return clip.float().cpu()
