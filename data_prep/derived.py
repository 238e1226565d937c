"""Training clips made from others: joined, perturbed, mixed and silent ones.

Making them costs nothing until their audio is needed: a clip has the function that computes its samples, and
`write_derived` writes them to a FLAC file. The file's name depends on everything that decides the samples, so a file
that exists is used as it is, and an interrupted preparation continues.
"""

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from audiolm_lite.audio.errors import AudioError
from audiolm_lite.audio.reading import SAMPLE_RATE, audio_duration, read_audio
from audiolm_lite.storage.atomic import atomic_path
from data_prep.clips import Clip, Label
from data_prep.signals import add_noise, change_speed, coloured_noise, in_room, set_peak

# Part of the names of the files: change it whenever other samples are computed from the same clips.
VERSION = 1
# Answer to a request for the transcript of a clip without speech; Whisper's normaliser drops texts in brackets.
NO_SPEECH = "[no speech]"
_SLOPES = {"white": 0.0, "pink": 0.5, "brown": 1.0}


def samples_of(clip: Clip) -> np.ndarray:
    """Samples [S] of a clip at 16 kHz; raises AudioError if they cannot be read.

    Examples
    --------
    >>> clip = Clip("Tones", "a", Path("a.flac"), "train", "a", render=lambda: np.ones(4, np.float32))
    >>> samples_of(clip).shape
    (4,)
    """
    if clip.render is not None:
        return clip.render()
    return read_audio(clip.audio, clip.start, clip.duration, channel=clip.channel).numpy()


def write_derived(clip: Clip) -> None:
    """Write the audio of a clip with `render`, unless the file exists.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "a.flac"
    >>> write_derived(Clip("Tones", "a", file, "train", "a", render=lambda: np.zeros(16000, np.float32)))
    >>> soundfile.info(file).frames
    16000
    """
    if not clip.audio.exists():
        wave = samples_of(clip)
        with atomic_path(clip.audio) as unfinished:
            soundfile.write(unfinished, np.clip(wave, -1.0, 1.0), SAMPLE_RATE, format="FLAC")


def join_clips(
    clips: Sequence[Clip], share: float, folder: Path, seed: int, *, min_seconds: float = 4.0, max_seconds: float = 25.0
) -> Iterator[Clip]:
    """Join clips of one speaker to longer ones, with pauses between them; transcripts are joined in the same order.

    A model that was trained on short clips only fails on longer ones, and most corpora of read sentences are short.

    Parameters
    ----------
    clips : sequence of Clip
        Those without a transcript are left out; so are unreadable ones, which the preparation rejects themselves.
    share : float
        Share of the clips to join, each once.
    folder : Path
        Folder of the audio.
    seed : int
        Seed of order, number and pauses.
    min_seconds, max_seconds : float
        Range of the joined clips' durations; each aims at a length drawn evenly from it.

    Yields
    ------
    Clip
        Joined from at least two clips; dataset, split, speaker, gender and age are those of the parts.

    Examples
    --------
    >>> def tone(name):
    ...     return Clip("d", name, Path(name), "train", "s", text=name, render=lambda: np.ones(48000, np.float32))
    >>> joined = list(join_clips([tone("one"), tone("two")], 1.0, Path("derived"), seed=1))
    >>> [(clip.text, samples_of(clip).shape[0] > 96000) for clip in joined]
    [('two one', True)]
    """
    rng = random.Random(f"{seed} join")
    speakers: dict[tuple[str, str, str], list[Clip]] = defaultdict(list)
    for clip in clips:
        if clip.text:
            speakers[clip.dataset, clip.split, clip.speaker or clip.group].append(clip)
    for members in speakers.values():
        remaining = rng.sample(members, round(share * len(members)))
        while len(remaining) > 1:
            aim, parts, total = rng.uniform(min_seconds, max_seconds), [], 0.0
            while remaining and (total < aim or len(parts) < 2):
                seconds = _seconds(remaining[-1])
                pause = rng.uniform(0.1, 0.7) if parts else 0.0
                if parts and seconds is not None and total + pause + seconds > max_seconds:
                    break  # it starts the next one
                clip = remaining.pop()
                if seconds is not None and seconds <= max_seconds:
                    parts.append(_Part(clip, pause))
                    total += pause + seconds
            if len(parts) < 2 or total < min_seconds:
                continue
            text = " ".join(str(part.clip.text) for part in parts)
            render = partial(_join, tuple(parts))
            yield _derived(parts[0].clip, "joined", folder, [seed, *map(_Part.key, parts)], render, text=text)


def perturb_clips(
    clips: Sequence[Clip],
    sounds: Sequence[Clip],
    share: float,
    folder: Path,
    seed: int,
) -> Iterator[Clip]:
    """Change speed, room, background and level of clips.

    Half of the results have another speed (0.9 to 1.1), four in ten a room (reverberation of 0.1 to 0.5 s), three in
    four a background at 5 to 25 dB (a sound, or white, pink or brown noise), and all a peak level of -30 to -1 dB.

    Parameters
    ----------
    clips : sequence of Clip
        Clips; what is known about them stays, except the age at another speed.
    sounds : sequence of Clip
        Sounds for the background, whose first captions say what they do; empty: coloured noise only.
    share : float
        Results per clip: 0.5 takes half of the clips, 2 makes two of each.
    folder : Path
        Folder of the audio.
    seed : int
        Seed of the choice and of all changes.
    Yields
    ------
    Clip
        Without questions. Captions stay, except those of speech, which are made from the sound behind it.

    Examples
    --------
    >>> clip = Clip("d", "a", Path("a"), "train", "s", text="yes", render=lambda: np.ones(16000, np.float32))
    >>> results = list(perturb_clips([clip], [], 3, Path("derived"), seed=1))
    >>> [(result.text, 14000 < len(samples_of(result)) < 18000) for result in results]
    [('yes', True), ('yes', True), ('yes', True)]
    """
    for clip in clips:
        rng = random.Random(f"{seed} perturb {clip.dataset} {clip.id}")
        for copy in range(int(share) + (rng.random() < share % 1)):
            changes = _Changes(
                speed=round(rng.uniform(0.9, 1.1), 3) if rng.random() < 0.5 else 1.0,
                reverberation=round(rng.uniform(0.1, 0.5), 3) if rng.random() < 0.4 else None,
                direct=round(rng.uniform(-3.0, 12.0), 2),
                noise=None if rng.random() < 0.25 else rng.choice(tuple(_SLOPES)),
                sound=rng.choice(sounds) if sounds and rng.random() < 0.5 else None,
                ratio=round(rng.uniform(5.0, 25.0), 2),
                peak=round(rng.uniform(-30.0, -1.0), 2),
                seed=rng.getrandbits(32),
            )
            captions = clip.captions
            if clip.text:
                captions = _over(speaker_phrase(clip), changes.audible_sound) if changes.audible_sound else ()
            age = clip.age if changes.speed == 1.0 else None
            key = [seed, copy, _identity(clip), changes.key()]
            yield _derived(clip, "perturbed", folder, key, partial(_perturb, clip, changes), captions=captions, age=age)


def mix_sounds(sounds: Sequence[Clip], count: int, folder: Path, seed: int) -> Iterator[Clip]:
    """Mix two sounds of different classes, at once or one after the other, with captions such as "a dog barks and ...".

    Parameters
    ----------
    sounds : sequence of Clip
        Sounds with a label "sound_class", of two classes at least; their first captions say what they do.
    count : int
        Number of mixtures.
    folder : Path
        Folder of the audio.
    seed : int
        Seed of all choices.

    Examples
    --------
    >>> def sound(name, caption):
    ...     return Clip("d", name, Path(name), "train", name, labels=(Label("sound_class", name),), captions=(caption,))
    >>> sounds = [sound("dog", "a dog barks"), sound("rain", "rain falls")]
    >>> [clip.captions[0] for clip in mix_sounds(sounds, 2, Path("derived"), seed=2)]
    ['rain falls, then a dog barks', 'rain falls and a dog barks']
    """
    rng = random.Random(f"{seed} mix")
    for number in range(count):
        first = rng.choice(sounds)
        second = rng.choice([sound for sound in sounds if sound.label("sound_class") != first.label("sound_class")])
        at_once, ratio, peak = rng.random() < 0.5, round(rng.uniform(-5.0, 5.0), 2), round(rng.uniform(-20.0, -1.0), 2)
        one, two = first.captions[0], second.captions[0]
        captions = (f"{one} and {two}", f"{two} and {one}", f"{one} while {two}")
        if not at_once:
            captions = (f"{one}, then {two}", f"{one} before {two}", f"first {one} and then {two}")
        key = [seed, number, _identity(first), _identity(second), at_once, ratio, peak]
        render = partial(_mix, first, second, at_once, ratio, peak)
        yield _derived(first, "mixed", folder, key, render, labels=(), captions=captions, group=f"mixture {number}")


def make_silence(split: str, count: int, folder: Path, seed: int) -> Iterator[Clip]:
    """Clips without any sound or with coloured noise only, 1 to 15 s long, one in four digital silence.

    Yields
    ------
    Clip
        With a label for the task "no_speech", and a caption.

    Examples
    --------
    >>> clips = list(make_silence("train", 4, Path("derived"), seed=0))
    >>> [(clip.captions[0], bool(samples_of(clip).any())) for clip in clips][:2]
    [('there is silence', False), ('there is steady noise', True)]
    """
    for number in range(count):
        rng = random.Random(f"{seed} silence {split} {number}")
        seconds, level = round(rng.uniform(1.0, 15.0), 3), round(rng.uniform(-70.0, -6.0), 2)
        slope = rng.choice(list(_SLOPES.values()))
        peak = None if number % 4 == 0 else level
        name = f"{split}-{number}"
        clip = Clip(
            "Silence", name, folder, split, f"silence {name}", labels=(Label("no_speech", NO_SPEECH, (NO_SPEECH,)),)
        )
        render = partial(_silence, seconds, slope, peak, rng.getrandbits(32))
        captions = ("there is silence", "nothing can be heard") if peak is None else ("there is steady noise",)
        yield _derived(clip, "silence", folder, [seed, name, seconds, slope, peak], render, captions=captions)


def speaker_phrase(clip: Clip) -> str:
    """Who speaks, for captions.

    Examples
    --------
    >>> clip = Clip("d", "a", Path("a"), "train", "s", text="yes", gender="female")
    >>> speaker_phrase(clip), speaker_phrase(replace(clip, age=7)), speaker_phrase(replace(clip, gender=None))
    ('a woman speaks', 'a child speaks', 'someone speaks')
    """
    if clip.age is not None and clip.age < 16:
        return "a child speaks"
    return {"male": "a man speaks", "female": "a woman speaks", None: "someone speaks"}[clip.gender]


def _over(speech: str, sound: Clip) -> tuple[str, ...]:
    what = sound.captions[0]
    return f"{speech} while {what}", f"{speech} and {what}", f"{what} while {speech}"


@dataclass(frozen=True)
class _Part:
    """A clip of a joined one, and the pause before it in seconds."""

    clip: Clip
    pause: float

    def key(self) -> str:
        return f"{_identity(self.clip)} {self.pause}"


@dataclass(frozen=True)
class _Changes:
    """What `perturb_clips` changes; None leaves out the room or the background."""

    speed: float
    reverberation: float | None
    direct: float
    noise: str | None
    sound: Clip | None
    ratio: float
    peak: float
    seed: int

    @property
    def audible_sound(self) -> Clip | None:
        """The sound, where it is in the background and not below 15 dB."""
        return self.sound if self.noise is not None and self.ratio <= 15.0 else None

    def key(self) -> str:
        background = self.noise if self.sound is None else _identity(self.sound)
        return f"{self.speed} {self.reverberation} {self.direct} {self.noise and background} {self.ratio} {self.peak}"


def _join(parts: Sequence[_Part]) -> np.ndarray:
    pieces = []
    for part in parts:
        pieces += [np.zeros(round(part.pause * SAMPLE_RATE), np.float32), samples_of(part.clip)]
    return np.concatenate(pieces)


def _perturb(clip: Clip, changes: _Changes) -> np.ndarray:
    generator = np.random.default_rng(changes.seed)
    wave = change_speed(samples_of(clip), changes.speed)
    if changes.reverberation is not None:
        wave = in_room(wave, changes.reverberation, changes.direct, generator)
    if changes.noise is not None and changes.sound is not None:
        sound = samples_of(changes.sound)
        wave = add_noise(wave, np.roll(sound, generator.integers(len(sound))), changes.ratio)
    elif changes.noise is not None:
        wave = add_noise(wave, coloured_noise(len(wave), _SLOPES[changes.noise], generator), changes.ratio)
    return set_peak(wave, changes.peak)


def _mix(first: Clip, second: Clip, at_once: bool, ratio: float, peak: float) -> np.ndarray:
    one, two = samples_of(first), samples_of(second)
    if at_once:
        return set_peak(add_noise(one, two, ratio), peak)
    return np.concatenate([set_peak(one, peak), set_peak(two, min(-1.0, peak + ratio))])


def _silence(seconds: float, slope: float, peak: float | None, seed: int) -> np.ndarray:
    samples = round(seconds * SAMPLE_RATE)
    if peak is None:
        return np.zeros(samples, np.float32)
    return set_peak(coloured_noise(samples, slope, np.random.default_rng(seed)), peak)


def _seconds(clip: Clip) -> float | None:
    """Duration from the file's header; None if it cannot be read."""
    try:
        return (
            len(clip.render()) / SAMPLE_RATE if clip.render else audio_duration(clip.audio, clip.start, clip.duration)
        )
    except AudioError:
        return None


def _identity(clip: Clip) -> str:
    """What distinguishes the clip's samples from those of others, also after its file was replaced."""
    if clip.render is not None:
        return f"{clip.dataset} {clip.id}"
    try:
        size = clip.audio.stat().st_size
    except (OSError, ValueError):  # reading it reports the fault
        size = 0
    channel = "" if clip.channel is None else f" channel {clip.channel}"
    return f"{clip.dataset} {clip.id} {clip.start} {clip.duration} {size}{channel}"


def _derived(
    clip: Clip, kind: str, folder: Path, key: Sequence[object], render: Callable[[], np.ndarray], **fields: object
) -> Clip:
    digest = hashlib.blake2b(repr([VERSION, kind, *key]).encode(), digest_size=8).hexdigest()
    name = f"{kind}-{digest}"
    file = folder / digest[:2] / f"{name}.flac"
    changes = {"questions": (), "captions": (), "start": 0.0, "duration": None, "channel": None, **fields}
    return replace(clip, id=name, audio=file, render=render, **changes)
