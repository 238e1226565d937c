"""The interface for users: `AudioLM.from_pretrained(...)`, then `.transcribe`, `.caption` and `.ask`."""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiolm_lite.audio.asked import AskedAudio, AskedClip, Channel
from audiolm_lite.audio.level import level_dbfs
from audiolm_lite.audio.long_audio import LongAudio, LongAudioWarning
from audiolm_lite.audio.reading import SAMPLE_RATE, audio_duration, read_audio
from audiolm_lite.audio.windows import Window, audio_windows, window_limits
from audiolm_lite.data.batching import Item
from audiolm_lite.decoding.backend import Backend
from audiolm_lite.decoding.bundle import ModelBundle
from audiolm_lite.decoding.recordings import Part, Recording, answer_recordings
from audiolm_lite.deploy.backends import make_backend
from audiolm_lite.hub.load import load_model
from audiolm_lite.language.prompt import AUDIO_MARK, PromptError


class AudioLM:
    """An audio language model that transcribes speech, describes sounds and answers questions about audio.

    Parameters
    ----------
    bundle : ModelBundle
        From `hub.load.load_model`; `from_pretrained` loads it.
    backend : str
        How the LLM runs: "eager", "inductor", "aoti", "cpu", "cpu-int8", "cpu-int4", or "best", the fastest with
        eager's answers (see `deploy.backends`). Compiling takes minutes, with "aoti" only the first time; the C++ code
        of "cpu" is compiled once, in seconds.
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
    parts : list of list of Part
        For each answer of the last call, the parts of the audio that it is about, each with `start`, `seconds` and
        `text`: the segments of a transcript, or what a question about a long clip looked at.

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
        self.parts: list[list[Part]] = []
        self._rule: LongAudio = bundle.model.long_audio or LongAudio("reject", bundle.model.encoder)
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

    def transcribe(
        self, audio: Any, *, sampling_rate: int | None = None, channel: Channel = None, **options: Any
    ) -> str | list[Any]:
        """Transcribe speech of any length.

        A recording that is longer than the encoder accepts is divided where it is quiet (see `audio.windows`). The
        transcripts of its segments are joined by spaces, and `parts` has them with their times. Files are read piece
        by piece, so memory does not grow with their length.

        Parameters
        ----------
        audio, sampling_rate, channel, **options
            As in `ask`, without a question.

        Returns
        -------
        str or list
            As in `ask`.

        Raises
        ------
        AudioError, GenerationError
            As in `ask`.

        Examples
        --------
        >>> model.transcribe(["a.wav", "b.flac"], beams=4)  # doctest: +SKIP
        ['good morning', 'thank you']
        >>> model.transcribe("call.wav", channel="each")  # doctest: +SKIP
        ['hello this is anna', 'hello anna']
        """
        asked = AskedAudio(audio, sampling_rate, channel)
        question = self.bundle.instructions["transcribe"]
        if any(len(group) > 1 for group in asked.groups):  # several clips in one question are not segments
            return self.ask(audio, question, sampling_rate=sampling_rate, channel=channel, **options)

        def ask(windows: list[tuple[str, Window]]) -> list[Part]:
            clips = [AskedClip(window.samples, label=_window_name(name, window)) for name, window in windows]
            parts = self._answer(clips, [question] * len(clips), **options)
            return [replace(part, start=window.start) for part, (_, window) in zip(parts, windows)]

        self._check_questions([question])
        found = []
        for recording in answer_recordings(self._recordings(asked), ask, self.batch_size):
            if recording.fault is not None:
                raise recording.fault
            found.append(recording)
        self._remember([recording.parts for recording in found], [recording.audio for recording in found])
        return asked.shape([recording.text for recording in found])

    def caption(self, audio: Any, **options: Any) -> str | list[Any]:
        """Describe sounds; parameters and result are those of `ask`, without a question.

        Examples
        --------
        >>> model.caption("clip.wav")  # doctest: +SKIP
        'a dog barks while rain falls'
        """
        return self.ask(audio, self.bundle.instructions["caption"], **options)

    def ask(
        self,
        audio: Any,
        question: str | Sequence[str],
        *,
        sampling_rate: int | None = None,
        channel: Channel = None,
        fields: dict[str, str] | None = None,
        history: Sequence[tuple[str, str]] = (),
        transcript: bool = True,
        **generation: Any,
    ) -> str | list[Any]:
        """Answer a question about audio.

        Parameters
        ----------
        audio : clip, or sequence of clips
            A clip is a path, a URL (http, https, file), the bytes of a file, an open binary file, an array or tensor
            of samples, (samples, rate), or a dict or decoder of the library datasets; `audio.inputs.as_source`
            describes each. A tuple of clips is several clips in one question, which marks their positions: "is <audio>
            louder than <audio>?".
        question : str or sequence of str
            One for all clips, or one per clip.
        sampling_rate : int, optional
            Rate in Hz of arrays that have none of their own; None: 16000.
        channel : int or "each", optional
            The channel to read, counted from 0. "each": every channel is a clip on its own. None: their mean.
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
        str or list
            A string for one clip, a list for a sequence; with channel="each", a list of its channels for each clip.

        Raises
        ------
        AudioError
            A file or URL cannot be read, a value is no form of audio (InputError), or there is no such channel.
        PromptError
            The model's prompt has no question, or needs a field that is missing.
        ValueError
            Unknown options, differing numbers of questions and clips, or a clip that is too short.

        Warns
        -----
        LongAudioWarning
            A clip is longer than the encoder accepts, and the answer is about its beginning; `parts` has the seconds.
        ChannelWarning
            The channels of a clip cancel or differ, so that their mean loses or mixes sounds.
        UserWarning
            The model's tokenizer drops characters of the question, or an answer repeated itself and was cut.

        Examples
        --------
        >>> model.ask("clip.wav", "What can be heard?")  # doctest: +SKIP
        'a dog'
        >>> model.ask(("a.wav", "b.wav"), "Is <audio> louder than <audio>?")  # doctest: +SKIP
        'yes'
        """
        asked = AskedAudio(audio, sampling_rate, channel)
        questions = [question] * asked.given if isinstance(question, str) else list(question)
        if len(questions) != asked.given:
            raise ValueError(f"ask: {len(questions)} questions for {asked.given} clips; give one, or one per clip")
        self._check_questions(questions)
        questions = asked.repeat(questions)
        options: dict[str, Any] = {"fields": fields, "history": history, "transcript": transcript, **generation}
        parts: list[Part] = []
        for start in range(0, len(asked.groups), self.batch_size):
            batch = slice(start, start + self.batch_size)
            parts += self._answer(asked.groups[batch], questions[batch], **options)
        names = [" ".join(clip.name for clip in group) for group in asked.groups]
        self._remember([[part] for part in parts], names)
        return asked.shape([part.text for part in parts])

    @torch.no_grad()
    def _answer(
        self,
        audios: Sequence[Any],
        questions: Sequence[str],
        *,
        fields: dict[str, str] | None = None,
        history: Sequence[tuple[str, str]] = (),
        transcript: bool = True,
        **generation: Any,
    ) -> list[Part]:
        """Answer a batch of questions, each about one clip or several; the parameters are those of `ask`."""
        turns = [{"instruction": earlier, "target": answer} for earlier, answer in history]
        row = {**({"history": turns} if turns else {}), **(fields or {})}
        recognize = transcript and "transcript" not in row and self._recognizes
        rows = [{"instruction": text, **self._task(text), **row} for text in questions]
        items = self._items(audios, rows, recognize)
        answers = self.bundle.answers(items, generation, self._backend)
        heard = [item.row.get("transcript") for item in items]
        return [
            Part(0.0, item.seconds, answer.text, text and ("" if answer.stopped == "silence" else text), answer.stopped)
            for item, answer, text in zip(items, answers, heard)
        ]

    def _remember(self, parts: list[list[Part]], names: Iterable[str]) -> None:
        """Set the attributes that describe the answers of a call, and warn of answers that were cut."""
        recordings = [Recording(name, answer) for name, answer in zip(names, parts, strict=True)]
        self.parts = parts
        self.stopped = [recording.stopped for recording in recordings]
        self.transcripts = [recording.transcript for recording in recordings]
        for recording in recordings:
            for part in recording.parts:
                if part.stopped == "loop":
                    where = f"{recording.audio}, {part.start:.1f} s" if part.start else recording.audio
                    warnings.warn(f"the answer about {where} repeated itself; the repeats are cut", stacklevel=3)

    def _recordings(self, asked: AskedAudio) -> Iterator[tuple[str, Iterator[Window]]]:
        """Name and windows of each clip."""
        limits = window_limits(self.bundle.model.encoder)

        def windows(clip: AskedClip) -> Iterator[Window]:
            yield from audio_windows(clip.source, *limits, channel=clip.channel)

        for (clip,) in asked.groups:
            yield clip.name, windows(clip)

    def _hear(self, clip: AskedClip) -> Tensor:
        """Read samples [S] of a clip or, if it is longer than the encoder accepts, of its beginning, with a warning."""
        source, longest = clip.source, getattr(self.bundle.model.encoder, "max_seconds", math.inf)
        if self._rule.rule == "chunk":  # it was trained with all chunks of such clips
            longest = math.inf
        seconds = 0.0 if math.isinf(longest) else audio_duration(source)
        if seconds <= longest:
            return read_audio(source, channel=clip.channel)
        warnings.warn(
            f"{clip.name}: the answer is about its first {longest:g} s of {seconds:.1f} s, which is what the encoder "
            "accepts; ask about parts of it, or use transcribe for speech",
            LongAudioWarning,
            stacklevel=6,
        )
        samples = read_audio(source, 0.0, longest, channel=clip.channel)
        return samples[: int(longest * SAMPLE_RATE)]  # resampling may have added a sample

    def _check_questions(self, questions: Sequence[str]) -> None:
        template = self.bundle.template
        if not template.asks and (unknown := set(questions) - set(self.bundle.instructions.values())):
            raise PromptError(
                f"ask: the model cannot answer {min(unknown)!r}, since its prompt {template.template!r} has no "
                "{instruction} and so no question; use transcribe or caption, whichever the model was trained for"
            )
        for text in dict.fromkeys(questions):
            self._warn_of_dropped_characters(text.replace(AUDIO_MARK, ""))

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
                stacklevel=4,
            )

    @property
    def _recognizes(self) -> bool:
        """Whether prompts can have transcripts of the encoder's own decoder."""
        decoder = getattr(self.bundle.model.encoder, "decoder", None)
        return decoder is not None and "transcript" in self.bundle.template.slots

    def _items(self, audios: Sequence[Any], rows: Sequence[dict[str, Any]], recognize: bool = False) -> list[Item]:
        """Prompts with waveforms or, with `recognize`, with transcripts and the features of the same pass."""
        groups = AskedAudio(list(audios)).groups
        rows = [{"id": " ".join(clip.name for clip in group), **row} for group, row in zip(groups, rows)]
        waveforms = clips = [[self._hear(clip) for clip in group] for group in groups]
        if recognize:
            clips, texts = self._recognize(waveforms)
            rows = [{**row, "transcript": text} for row, text in zip(rows, texts)]
        return [self._item(*parts) for parts in zip(rows, waveforms, clips)]

    def _recognize(self, waveforms: Sequence[Sequence[Tensor]]) -> tuple[list[list[Tensor]], list[str]]:
        """Features [L, T, D] of the clips of each question, and their transcripts, joined by spaces."""
        encoder: Any = self.bundle.model.encoder
        whole = [waveform for group in waveforms for waveform in group]
        parts = [self._rule.chunk_lengths(len(waveform)) for waveform in whole]
        samples = [part for waveform, lengths in zip(whole, parts) for part in waveform.split(lengths)]
        lengths = torch.tensor([len(waveform) for waveform in samples])
        device = self.bundle.model.embedding.weight.device
        padded = torch.nn.utils.rnn.pad_sequence(samples, batch_first=True).to(device)
        features, frames, texts = encoder.recognize(padded, lengths.to(device))
        encoded = iter([(clip[:, :count], text) for clip, count, text in zip(features, frames.tolist(), texts)])
        joined = [tuple(zip(*(next(encoded) for _ in lengths))) for lengths in parts]
        each = iter([(torch.cat(clip, dim=1), " ".join(filter(None, text))) for clip, text in joined])
        groups = [[next(each) for _ in group] for group in waveforms]
        clips = [[clip for clip, _ in group] for group in groups]
        return clips, [" ".join(text for _, text in group if text) for group in groups]

    def _item(self, row: dict[str, Any], waveforms: Sequence[Tensor], clips: Sequence[Tensor]) -> Item:
        """Prompt of a row about `clips`, which are the waveforms [S] or their features [L, T, D]."""
        model = self.bundle.model
        tokens = [model.adapter.num_tokens(self._rule.num_frames(len(waveform))) for waveform in waveforms]
        if min(tokens) < 1:
            seconds = min(map(len, waveforms)) / SAMPLE_RATE
            raise ValueError(f"{row['id']}: {seconds:.3f} s is too short for one audio token; give more audio")
        ids, labels = self.bundle.template.encode(row, self.bundle.tokenizer, tokens, with_answer=False)
        own: dict[str, Any] = {"waveform": clips[0]} if clips is waveforms else {"features": clips[0]}
        seconds, level = sum(map(len, waveforms)) / SAMPLE_RATE, max(map(level_dbfs, waveforms))
        return Item(row, ids, labels, further=tuple(clips[1:]), seconds=seconds, level=level, **own)


def _window_name(name: str, window: Window) -> str:
    return f"{name}, {window.start:.1f} s" if window.start else name
