"""Select the small corpus of the quick start from AN4, ESC-50 and SpeechOcean762, as mono Ogg Opus at 16 kHz.

python select_corpus.py corpus --an4 /corpora/an4 --esc50 /corpora/ESC-50 --speechocean762 /corpora/speechocean762

Each part keeps its publisher's layout, so prepare.py reads it like the complete corpus. No recording that the complete
recipe holds out for test is in training here: AN4 and ESC-10 keep their splits, and the test speakers of SpeechOcean762
are those that `prepare.py --speechocean762_test_share 0.1` holds out. The same folders and seed give the same clips.
"""

import argparse
import csv
import random
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import soundfile

from audiolm_lite.audio.reading import SAMPLE_RATE, read_audio
from audiolm_lite.config.errors import UserError, run_command
from audiolm_lite.storage.atomic import atomic_folder
from data_prep.clips import Clip, CorpusError, read_lines
from data_prep.corpora.an4 import read_an4
from data_prep.corpora.esc50 import read_esc50
from data_prep.corpora.speechocean762 import read_speechocean762

SEED = 1986
# hparams/prepare.yaml and README.md: what the complete recipe holds out.
VALID_SHARE, TEST_SHARE, TEST_FOLD = 0.05, 0.1, 3
AN4_TRAIN = 4  # utterances per training speaker of AN4; all test utterances are kept
FOLDS = (1, 2, 3)  # of ESC-10
OCEAN_TRAIN = 28  # training speakers of SpeechOcean762, half of them children; all test speakers are kept
OCEAN_UTTERANCES = 10  # per speaker of SpeechOcean762
ADULT = 18
FREE = ("CC0", "CC-BY")  # licences of ESC-10's recordings that allow to share the clips like the rest
COMPRESSION = 0.928  # of libsndfile's Opus encoder: about 24 kbit/s

LICENSES = """# Licences and attribution

The audio in this folder is a selection of three public corpora, for the quick start. All files are mono Ogg Opus at
16 kHz, made by [`select_corpus.py`](../select_corpus.py). Get the complete corpora, in their original quality, from
their publishers.

## `an4/`

- Corpus: [CMU AN4](http://www.speech.cs.cmu.edu/databases/an4/). Copyright 1991-2005 Carnegie Mellon University.
- Licence: BSD-style, in `an4/LICENSE`.
- Selection: {an4}.
- Changes: encoded as Opus.

## `esc10/`

- Corpus: [ESC-10](https://github.com/karolpiczak/ESC-50), by K. J. Piczak: "ESC: Dataset for Environmental Sound
  Classification", ACM Multimedia 2015. Its recordings are from freesound.org; `esc10/LICENSE` has the author, title,
  address and licence of each.
- Licence: [CC BY 3.0](https://creativecommons.org/licenses/by/3.0/).
- Selection: {esc10}, without recordings under other licences than CC0 and CC BY.
- Changes: mixed to mono, resampled to 16 kHz, encoded as Opus.

## `speechocean762/`

- Corpus: [SpeechOcean762](https://www.openslr.org/101/), by Junbo Zhang, Zhiwen Zhang, Yongqing Wang, Zhiyong Yan,
  Qiong Song, Yukai Huang, Ke Li, Daniel Povey and Yujun Wang: "speechocean762: An Open-Source Non-native English Speech
  Corpus For Pronunciation Assessment", Interspeech 2021.
- Licence: [CC BY 4.0](https://creativecommons.org/licenses/by/4.0/).
- Selection: {speechocean762}, all of the published training part.
- Changes: encoded as Opus.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Write the selection to a folder that does not exist yet; it appears when it is complete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="folder to make")
    for name, text in {
        "an4": "CMU AN4, with etc/ and wav/",
        "esc50": "ESC-50 or its subset ESC-10, with audio/, meta/ and LICENSE",
        "speechocean762": "SpeechOcean762, with train/ and WAVE/",
    }.items():
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="FOLDER", help=text)
    parser.add_argument("--seed", type=int, default=SEED, help="of the choice; default: %(default)s")
    options = parser.parse_args(argv)
    if options.output.exists():
        raise UserError(f"{options.output} exists; remove it or choose another folder")
    with atomic_folder(options.output) as folder:
        texts = {
            "an4": select_an4(options.an4, folder / "an4", options.seed),
            "esc10": select_esc10(options.esc50, folder / "esc10"),
            "speechocean762": select_speechocean762(options.speechocean762, folder / "speechocean762", options.seed),
        }
        (folder / "LICENSES.md").write_text(LICENSES.format(**texts), encoding="utf-8")
    size = sum(file.stat().st_size for file in options.output.rglob("*") if file.is_file())
    for name, text in texts.items():
        print(f"{name}: {text}")
    print(f"{options.output}: {size / 1e6:.1f} MB")


def select_an4(source: Path, target: Path, seed: int) -> str:
    """All test utterances, and some of every training speaker."""
    clips = read_an4(source, VALID_SHARE, seed)
    chosen = [clip for clip in clips if clip.split == "test"]
    training = [clip for clip in clips if clip.split != "test"]
    chosen += some_of_each_speaker(training, AN4_TRAIN, seed)
    names = {clip.id for clip in chosen}
    for part in ("train", "test"):
        fileids = (source / f"etc/an4_{part}.fileids").read_text(encoding="utf-8").split()
        lines = [line for _, line in read_lines(source / f"etc/an4_{part}.transcription")]
        write_lines(target / f"etc/an4_{part}.fileids", (name for name in fileids if Path(name).name in names))
        kept = (line for line in lines if line.rpartition("(")[2].rstrip(") ") in names)
        write_lines(target / f"etc/an4_{part}.transcription", kept)
    for clip in chosen:
        write_opus(clip.audio, target / "wav" / clip.audio.relative_to(source / "wav").with_suffix(".ogg"))
    if not (source / "LICENSE").is_file():
        raise CorpusError(f"AN4: expected LICENSE in {source}, which every copy of the corpus must contain")
    shutil.copyfile(source / "LICENSE", target / "LICENSE")
    training = sum(clip.split != "test" for clip in chosen)
    return f"{training} training utterances and all {len(chosen) - training} of the test part"


def select_esc10(source: Path, target: Path) -> str:
    """Clips of three folds whose recordings are free; their authors are the lines of ESC-50's LICENSE."""
    licence, table = source / "LICENSE", source / "meta/esc50.csv"
    if not licence.is_file():
        raise CorpusError(f"ESC-50: expected LICENSE in {source}, which names the authors of the recordings")
    lines = re.findall(r"^(- \[(.+?)\.ogg\]: .*\[(.+?)\])$", licence.read_text(encoding="utf-8"), re.MULTILINE)
    authors = {recording: line for line, recording, terms in lines if terms in FREE}
    if absent := {recording for _, recording, _ in lines} - authors.keys():
        print(f"esc10: left out for their licences: {', '.join(sorted(absent))}")
    clips = {clip.id: clip for clip in read_esc50(source, True, TEST_FOLD, VALID_SHARE, SEED)}
    with table.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = [{**row, "filename": f"{Path(row['filename']).stem}.ogg"} for row in reader if int(row["fold"]) in FOLDS]
    chosen = {}
    for row in rows:
        name = Path(row["filename"]).stem
        recording = name.rpartition("-")[0]  # without the number of the class
        if name in clips and recording in authors:
            write_opus(clips[name].audio, target / "audio" / row["filename"])
            chosen[recording] = row
    (target / "meta").mkdir(parents=True)
    with (target / "meta/esc50.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(chosen.values())
    write_lines(target / "LICENSE", (authors[recording] for recording in chosen))
    return f"{len(chosen)} clips of folds {FOLDS[0]} to {FOLDS[-1]}"


def select_speechocean762(source: Path, target: Path, seed: int) -> str:
    """Some utterances of the speakers that the complete recipe tests on, and of children and adults for training.

    Speakers that the recipe holds out for validation are left out.
    """
    clips = read_speechocean762(source, VALID_SHARE, TEST_SHARE, seed)
    speakers: dict[str, list[str]] = {"test": [], "adults": [], "children": []}
    for clip in clips:
        group = "adults" if clip.age is None or clip.age >= ADULT else "children"
        if clip.split != "valid":
            speakers["test" if clip.split == "test" else group].append(clip.speaker)
    rng = random.Random(f"{seed} speakers")
    training = set()
    for group in ("adults", "children"):
        names = sorted(set(speakers[group]))
        training.update(rng.sample(names, min(OCEAN_TRAIN // 2, len(names))))
    texts = []
    for part, names in {"train": training, "test": set(speakers["test"])}.items():
        chosen = some_of_each_speaker([clip for clip in clips if clip.speaker in names], OCEAN_UTTERANCES, seed)
        places = {clip.id: clip.audio.relative_to(source).with_suffix(".ogg").as_posix() for clip in chosen}
        write_lines(target / part / "wav.scp", (f"{name} {place}" for name, place in places.items()))
        for table, keys in {"text": places, "utt2spk": places, "spk2age": names, "spk2gender": names}.items():
            lines = (line for _, line in read_lines(source / "train" / table))
            write_lines(target / part / table, (line for line in lines if line.split()[0] in keys))
        for clip in chosen:
            write_opus(clip.audio, target / places[clip.id])
        texts.append(f"{len(chosen)} clips of {len(names)} speakers for {part}")
    return ", ".join(texts)


def some_of_each_speaker(clips: Iterable[Clip], count: int, seed: int) -> list[Clip]:
    """Return at most `count` clips of each speaker, in the given order."""
    speakers: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        speakers[clip.speaker].append(clip)
    chosen = []
    for speaker, own in speakers.items():
        places = random.Random(f"{seed} {speaker}").sample(range(len(own)), min(count, len(own)))
        chosen += [own[place] for place in sorted(places)]
    return chosen


def write_opus(source: Path, target: Path) -> None:
    """Write the audio of a file as mono Ogg Opus at 16 kHz; a file that is just that is copied."""
    target.parent.mkdir(parents=True, exist_ok=True)
    info = soundfile.info(source)
    if (info.format, info.subtype, info.channels, info.samplerate) == ("OGG", "OPUS", 1, SAMPLE_RATE):
        shutil.copyfile(source, target)
        return
    samples = read_audio(source).numpy()
    soundfile.write(target, samples, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=COMPRESSION)


def write_lines(file: Path, lines: Iterable[str]) -> None:
    """Write lines to a text file, whose folder is made where it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
