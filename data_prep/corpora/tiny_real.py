"""TinyReal: small corpora of real speech and sounds, and read text, as one set of questions and answers.

Training clips are also joined to longer ones, perturbed and mixed; questions about the words are made from the
transcripts; clips without speech teach that nothing is said.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.keys import Key
from data_prep.clips import Clip, Label, is_held_out, keep_apart
from data_prep.corpora.an4 import read_an4
from data_prep.corpora.barista import read_barista
from data_prep.corpora.esc50 import read_esc50
from data_prep.corpora.librispeech import read_transcribed_folders
from data_prep.corpora.read_text import SYNTHETIC, read_read_text
from data_prep.corpora.speechocean762 import read_speechocean762
from data_prep.derived import NO_SPEECH, join_clips, make_silence, mix_sounds, perturb_clips, speaker_phrase
from data_prep.text import normaliser
from data_prep.transcript_questions import transcript_questions

KEYS = {
    "esc50_folder": Key("ESC-50, or a selection of its classes ESC-10, with audio/ and meta/.", str, result=False),
    "an4_folder": Key("CMU AN4, with etc/ and wav/; null leaves it out.", str, None, result=False),
    "speechocean762_folder": Key("SpeechOcean762, with train/ and WAVE/; null: without.", str, None, result=False),
    "barista_folder": Key("Barista, with train.jsonl and audio/; null: without.", str, None, result=False),
    "read_text_folder": Key("Read text, with speech.tsv; null: without.", str, None, result=False),
    "librispeech_folders": Key(
        "Split -> folders in LibriSpeech's layout (<speaker>/<chapter>/*.flac), under train, valid and test.",
        dict,
        None,
        result=False,
    ),
    "test_fold": Key("Fold of ESC-50 to test on.", int, 3),
    "speechocean762_test_share": Key(
        "Share of SpeechOcean762's training speakers to test on; null: its test part.", float, None
    ),
    "barista_test_share": Key("Share of Barista's recordings to test on.", float, 0.1),
    "read_text_share": Key("Share of the read sentences to use.", float, 1.0),
    "joined_share": Key(
        "Share of the training clips with a transcript that are also joined to longer ones.", float, 0.9
    ),
    "single_share": Key("Share of the read sentences for training that are also clips of their own.", float, 0.15),
    "perturbed_share": Key("Perturbed copies per training clip of speech, joined ones included.", float, 0.25),
    "label_copies": Key("Perturbed copies per training clip of a sound or of an order.", float, 3.0),
    "mixtures": Key("Training clips of two sounds.", int, 400),
    "silent_clips": Key("Training clips of silence or steady noise; a fifth as many are for test.", int, 300),
    "question_share": Key("Share of the training clips of speech with a question about the words.", float, 0.3),
}
_plain = normaliser(["lower", "punctuation"])
# Share of the read sentences for validation.
_READ_TEXT_VALID_SHARE = 0.01
# Share of the training clips of speech that are asked for a caption ("a man speaks").
_CAPTION_SHARE = 0.05
# Share of the joined clips that keep gender and age.
_LABELLED_SHARE = 0.2
_ADULT = 18


def read_tiny_real(
    output_folder: str,
    esc50_folder: str,
    an4_folder: str | None,
    speechocean762_folder: str | None,
    barista_folder: str | None,
    read_text_folder: str | None,
    librispeech_folders: Mapping[str, Sequence[str]] | None,
    test_fold: int,
    speechocean762_test_share: float | None,
    barista_test_share: float,
    read_text_share: float,
    joined_share: float,
    single_share: float,
    perturbed_share: float,
    label_copies: float,
    mixtures: int,
    silent_clips: int,
    question_share: float,
    valid_share: float,
    seed: int,
) -> Iterator[Clip]:
    """Yield the clips of the corpora that are given, and those derived from their training clips.

    Parameters
    ----------
    output_folder : str
        Audio of derived clips goes to its folder `derived`.
    valid_share : float
        Share of the training speakers and recordings held out for validation.
    seed : int
        Seed of every choice.
    esc50_folder, an4_folder, speechocean762_folder, barista_folder, read_text_folder, librispeech_folders
        Folders of the corpora, see `KEYS`, as for all other parameters.

    Yields
    ------
    Clip
        SpeechOcean762's adults and children are two datasets, so that they are scored apart.

    Raises
    ------
    ConfigError
        `librispeech_folders` has a split that is none.
    CorpusError
        A corpus is incomplete or not in its format.
    """
    corpora: list[Callable[[], Iterable[Clip]]] = [
        lambda: map(_without_speech, read_esc50(esc50_folder, True, test_fold, valid_share, seed))
    ]
    if an4_folder is not None:
        corpora.append(lambda: read_an4(an4_folder, valid_share, seed))
    if speechocean762_folder is not None:
        corpora.append(
            lambda: map(
                _by_age,
                read_speechocean762(speechocean762_folder, valid_share, speechocean762_test_share, seed),
            )
        )
    if barista_folder is not None:
        corpora.append(lambda: read_barista(barista_folder, valid_share, barista_test_share, seed))
    if read_text_folder is not None:
        corpora.append(lambda: read_read_text(read_text_folder, _READ_TEXT_VALID_SHARE, seed, read_text_share))
    if unknown := set(librispeech_folders or {}) - {"train", "valid", "test"}:
        raise ConfigError(f"librispeech_folders: unknown split {sorted(unknown)[0]!r}; use train, valid and test")
    corpora.append(lambda: _read_librispeech(librispeech_folders or {}))

    clips = [replace(clip, text=_plain(clip.text)) if clip.text else clip for clip in keep_apart(corpora)]
    derived = Path(output_folder) / "derived"
    training = [clip for clip in clips if clip.split == "train"]
    sounds = [clip for clip in training if _has_label(clip, "sound_class")]
    orders = [clip for clip in training if _has_label(clip, "order")]
    speech = [clip for clip in training if clip.text]
    joined = [_few_labels(clip, seed) for clip in join_clips(speech, joined_share, derived, seed)]
    words = [word for clip in speech for word in (clip.text or "").split()]
    # Whisper's encoder always takes 30 s: a sentence alone costs as much as a joined clip and teaches less.
    left_out = {
        clip.id for clip in speech if clip.speaker == SYNTHETIC and not is_held_out(clip.id, single_share, seed)
    }
    clips, speech = ([clip for clip in part if clip.id not in left_out] for part in (clips, speech))
    perturbed = perturb_clips([*speech, *joined], sounds, perturbed_share, derived, seed)
    for clip in chain(clips, joined, perturbed):
        yield _with_questions(clip, words, seed, question_share)
    yield from perturb_clips(orders, sounds, label_copies, derived, seed)
    yield from perturb_clips(sounds, [], label_copies, derived, seed)
    yield from mix_sounds(sounds, mixtures, derived, seed)
    for split, divisor in {"train": 1, "valid": 15, "test": 5}.items():
        yield from make_silence(split, silent_clips // divisor, derived, seed)


def _has_label(clip: Clip, task: str) -> bool:
    return any(label.task == task for label in clip.labels)


def _without_speech(clip: Clip) -> Clip:
    return replace(clip, labels=(*clip.labels, Label("no_speech", NO_SPEECH, (NO_SPEECH,))))


def _by_age(clip: Clip) -> Clip:
    adult = clip.age is None or clip.age >= _ADULT
    return replace(clip, dataset=f"{clip.dataset} {'adults' if adult else 'children'}")


def _few_labels(clip: Clip, seed: int) -> Clip:
    """A joined clip, most of them without gender and age: these questions are cheaper to learn from short clips."""
    return clip if is_held_out(clip.id, _LABELLED_SHARE, seed) else replace(clip, gender=None, age=None)


def _read_librispeech(folders: Mapping[str, Sequence[str]]) -> Iterator[Clip]:
    for split, names in folders.items():
        for name in names:
            for file, speaker, text in read_transcribed_folders(Path(name)):
                group = f"librivox reader {speaker}"
                yield Clip("LibriSpeech", file.stem, file, split, group, speaker=speaker, text=text)


def _with_questions(clip: Clip, words: Sequence[str], seed: int, share: float) -> Clip:
    """Add a question about the words to a share of the training clips and to held-out clips, and captions to some."""
    if not clip.text:
        return clip
    rng = random.Random(f"{seed} {clip.dataset} {clip.id} questions")
    training = clip.split == "train"
    if rng.random() < (share if training else clip.dataset != "LibriSpeech"):
        clip = replace(clip, questions=transcript_questions(clip, words, seed, count=1))
    if training and not clip.captions and rng.random() < _CAPTION_SHARE:
        clip = replace(clip, captions=(speaker_phrase(clip),))
    return clip
