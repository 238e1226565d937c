"""Speech from the espeak-ng library, with the time of every word and phoneme.

The library keeps state between utterances, so the bytes of an utterance depend on those before it. For reproducible
bytes, start a new process and synthesise in a fixed order (see `corpus.render_shard`).
"""

import ctypes
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from audiolm_lite.config.errors import UserError
from audiolm_lite.storage.atomic import link_or_copy
from data_prep.miniasqa.voices import Speaker

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples go to the callback before the call returns
_PHONEME_EVENTS_IPA = 0x0001 | 0x0002
_DONT_EXIT = 0x8000
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_WORD, _END, _PHONEME = 1, 5, 7


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Style:
    """Prosody of an utterance: espeak-ng's pitch, range and volume, and a factor on the speaker's rate."""

    pitch: int
    range: int
    volume: int
    rate: float


@dataclass
class Utterance:
    """Speech and its alignment.

    Attributes
    ----------
    samples : ndarray of int16, [S]
        Samples at `rate` Hz.
    rate : int
        Sample rate in Hz.
    words, phonemes : list of (str, float, float)
        Label, start and end in seconds; pauses have no entry.
    """

    samples: np.ndarray
    rate: int
    words: list[tuple[str, float, float]]
    phonemes: list[tuple[str, float, float]]


class Espeak:
    """The espeak-ng library, with the voices of `speakers` in a temporary data folder.

    Raises
    ------
    UserError
        The library cannot be initialised.
    """

    def __init__(self, speakers: list[Speaker]):
        import espeakng_loader

        self._folder = tempfile.TemporaryDirectory(prefix="miniasqa-voices-")
        data = Path(self._folder.name) / "espeak-ng-data"
        source = Path(espeakng_loader.get_data_path())
        variants = data / "voices" / "!v"
        variants.mkdir(parents=True)
        for entry in source.iterdir():
            if entry.name != "voices":
                link_or_copy(entry, data / entry.name)

        self._library = ctypes.cdll.LoadLibrary(espeakng_loader.get_library_path())
        options = _PHONEME_EVENTS_IPA | _DONT_EXIT
        self.rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, str(data).encode(), options)
        if self.rate <= 0:
            raise UserError(f"espeak-ng cannot be initialised with its data in {source}; reinstall espeakng-loader")
        # The library lists at most 349 languages and variants, and does not find a language that is not listed, but any
        # variant by its file. So the list is made before there are variants, whose number is then not limited.
        self._library.espeak_ListVoices(None)
        for speaker in speakers:
            (variants / speaker.name).write_bytes(speaker.variant().encode())
        self._pieces: list[np.ndarray] = []
        self._events: list[tuple[int, int, int, int, str]] = []
        self._callback = _Callback(self._receive)  # the library keeps only a pointer to it
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        if samples and count:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        i = 0
        while events[i].type != 0:
            event = events[i]
            label = bytes(event.id).decode("utf-8", "ignore") if event.type == _PHONEME else ""
            self._events.append((event.type, event.sample, event.text_position, event.length, label))
            i += 1
        return 0

    def say(self, speaker: Speaker, text: str, style: Style) -> Utterance:
        """Synthesise `text`, which must be ASCII with words separated by spaces.

        Raises
        ------
        UserError
            The library has no such accent.
        """
        self._pieces.clear()
        self._events.clear()
        voice = f"{speaker.accent}+{speaker.name}"
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise UserError(f"espeak-ng has no voice {voice}; reinstall espeakng-loader")
        settings = {_RATE: int(speaker.rate * style.rate), _VOLUME: style.volume}
        settings |= {_PITCH: style.pitch, _RANGE: style.range}
        for parameter, value in settings.items():
            self._library.espeak_SetParameter(parameter, value, 0)
        encoded = text.encode("ascii")
        self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, 1, None, None)
        self._library.espeak_Synchronize()
        samples = np.concatenate(self._pieces) if self._pieces else np.zeros(0, np.int16)
        return Utterance(samples, self.rate, *self._alignment(text, len(samples)))

    def _alignment(self, text: str, total: int) -> tuple[list[tuple], list[tuple]]:
        phonemes, starts = [], []
        for kind, sample, position, _, label in self._events:
            if kind == _PHONEME:
                if phonemes:
                    phonemes[-1][2] = sample
                phonemes.append([label.strip("ˈˌ"), sample, total])
            elif kind == _WORD:
                starts.append((position - 1, sample))
        spoken = [p for p in phonemes if p[0] and not p[0].startswith("_")]
        offsets, position = [], 0
        for word in text.split(" "):
            offsets.append((position, word))
            position += len(word) + 1
        # espeak may report one event for several written words ("to the"): its interval is divided evenly.
        marks = dict(starts)
        groups: list[tuple[int, list[str]]] = []
        for offset, word in offsets:
            if offset in marks or not groups:
                groups.append((marks.get(offset, 0), [word]))
            else:
                groups[-1][1].append(word)
        words = []
        for i, (start, group) in enumerate(groups):
            limit = groups[i + 1][0] if i + 1 < len(groups) else total
            inside = [p for p in spoken if start <= p[1] < limit]
            end = inside[-1][2] if inside else limit
            step = (end - start) / len(group)
            words += [(word, start + k * step, start + (k + 1) * step) for k, word in enumerate(group)]
        seconds = 1.0 / self.rate
        return (
            [(w, round(a * seconds, 3), round(b * seconds, 3)) for w, a, b in words],
            [(p, round(a * seconds, 3), round(b * seconds, 3)) for p, a, b in spoken],
        )
