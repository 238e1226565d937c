"""VoxCeleb2 (Chung et al. 2018, arXiv 1806.05622): a million utterances of 6,112 celebrities, from YouTube interviews.

Ages are those of Hechmi et al. 2021 (arXiv 2109.13510), who compared a speaker's year of birth with a video's date.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from data_prep.audio_index import AUDIO_ENDINGS, walk
from data_prep.clips import Clip, CorpusError, drawn, number_in, read_rows, require

SOURCE = (
    "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox2.html (vox2_meta.csv) and "
    "https://mm.kaist.ac.kr/datasets/voxceleb/ (audio, on request)"
)
AGE_SOURCE = "https://github.com/hechmik/voxceleb_enrichment_age_gender (dataset/final_dataframe_extended.csv)"
AGES = "final_dataframe_extended.csv"
# Where the archives are unpacked differs, so all usual places are looked at; converted files come before the originals.
_ROOMS = ("dev/wav", "test/wav", "wav", "dev/aac", "test/aac", "aac", "dev", "test")
_GENDER = {"m": "male", "f": "female"}


def read_voxceleb2(folder: str | Path, ages: bool, valid_share: float, seed: int) -> Iterator[Clip]:
    """Walk through the speakers, one video's folder at a time.

    Parameters
    ----------
    folder : str or Path
        Holds vox2_meta.csv and the audio as {dev,test}/{aac,wav}/<speaker>/<video>/<number>.m4a, or without one of the
        first two levels. vox2_meta.csv is published with commas and with tabs, and blanks around values: both are read.
        libsndfile reads no .m4a and ffmpeg is slow at it: convert to WAV or FLAC first.
    ages : bool
        Read the speakers' ages, by video, from final_dataframe_extended.csv in the same folder.
    valid_share : float
        Share of the dev speakers held out for validation.
    seed : int
        Seed of that choice.

    Yields
    ------
    Clip
        With gender, and age where it is known. The publisher keeps speakers apart between dev and test.

    Raises
    ------
    CorpusError
        A list is missing or not in its format, there is no audio folder, or it has a speaker that vox2_meta.csv lacks.
    """
    folder = Path(folder)
    require(folder, ["vox2_meta.csv"], "VoxCeleb2", SOURCE)
    if ages:
        require(folder, [AGES], "VoxCeleb2's ages", f"{AGE_SOURCE}, or set ages to False,")
    speakers = _speakers(folder / "vox2_meta.csv")
    known_ages = _ages(folder / AGES) if ages else {}
    places: dict[str, Path] = {}
    for room in _ROOMS:
        if (folder / room).is_dir():
            for entry in os.scandir(folder / room):
                if entry.name.startswith("id"):
                    places.setdefault(entry.name, Path(entry.path))
    if not places:
        raise CorpusError(f"VoxCeleb2: expected speakers' folders in one of {', '.join(_ROOMS)} of {folder.resolve()}")
    for speaker, place in sorted(places.items()):
        if speaker not in speakers:
            raise CorpusError(f"{folder / 'vox2_meta.csv'}: no {speaker}, whose audio is in {place}; fetch it again")
        gender, part = speakers[speaker]
        held_out = part == "dev" and drawn(speaker, valid_share, seed)
        for video_place, names in walk(place):
            for name in names:
                stem, ending = os.path.splitext(name)
                if ending.lower() in AUDIO_ENDINGS:
                    video = video_place.name
                    yield Clip(
                        dataset="VoxCeleb2",
                        id=f"{speaker}/{video}/{stem}",
                        audio=video_place / name,
                        split="test" if part == "test" else "valid" if held_out else "train",
                        group=f"voxceleb {speaker}",
                        speaker=speaker,
                        gender=gender,
                        age=known_ages.get((speaker, video)),
                    )


def _speakers(file: Path) -> dict[str, tuple[str, str]]:
    """Speaker -> gender and part (dev or test)."""
    with file.open(encoding="utf-8-sig") as lines:
        delimiter = "\t" if "\t" in lines.readline() else ","
    speakers = {}
    for row in read_rows(file, ("VoxCeleb2 ID", "Gender", "Set"), SOURCE, delimiter=delimiter):
        if row["Gender"] not in _GENDER or row["Set"] not in ("dev", "test"):
            raise CorpusError(
                f"{file}: {row['VoxCeleb2 ID']} has gender {row['Gender']!r} and set {row['Set']!r}; "
                f"expected m or f, and dev or test. Fetch it again from {SOURCE}"
            )
        speakers[row["VoxCeleb2 ID"]] = _GENDER[row["Gender"]], row["Set"]
    return speakers


def _ages(file: Path) -> dict[tuple[str, str], int]:
    """Speaker and video -> age in years, where the list knows one that a person can have."""
    ages = {}
    for row in read_rows(file, ("VoxCeleb_ID", "video_id", "speaker_age"), AGE_SOURCE):
        if row["speaker_age"]:
            age = round(number_in(file, row["speaker_age"]))
            if 0 < age < 110:
                ages[row["VoxCeleb_ID"], row["video_id"]] = age
    return ages
