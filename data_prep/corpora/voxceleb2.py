"""VoxCeleb2 (Chung et al. 2018, arXiv 1806.05622): a million utterances of 6,112 celebrities, from YouTube interviews.

Ages are those of Hechmi et al. 2021 (arXiv 2109.13510), who compared a speaker's year of birth with a video's date.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from audiolm_lite.config.keys import Key
from data_prep.audio_index import AUDIO_ENDINGS, walk
from data_prep.clips import Clip, CorpusError, is_held_out, parse_number, read_rows, require

SOURCE = (
    "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox2.html (vox2_meta.csv) and "
    "https://mm.kaist.ac.kr/datasets/voxceleb/ (audio, on request)"
)
AGE_SOURCE = "https://github.com/hechmik/voxceleb_enrichment_age_gender (dataset/final_dataframe_extended.csv)"
AGES = "final_dataframe_extended.csv"
KEYS = {
    "data_folder": Key("Folder with vox2_meta.csv and the audio.", str, result=False),
    "ages": Key("Read final_dataframe_extended.csv and ask for ages.", bool),
    "valid_share": Key("Share of the speakers of dev held out for validation.", float),
}
# Folders in which copies keep the audio; converted files come before the original ones.
_AUDIO_FOLDERS = ("dev/wav", "test/wav", "wav", "dev/aac", "test/aac", "aac", "dev", "test")
_GENDER = {"m": "male", "f": "female"}


def read_voxceleb2(data_folder: str | Path, ages: bool, valid_share: float, seed: int) -> Iterator[Clip]:
    """Read the folders of the speakers, one video at a time.

    Parameters
    ----------
    data_folder : str or Path
        Contains vox2_meta.csv and the audio as {dev,test}/{aac,wav}/<speaker>/<video>/<number>.m4a, or without one of
        the first two levels. vox2_meta.csv is published with commas and with tabs, and spaces around values; both are
        read. .m4a is read slowly: convert to WAV or FLAC first.
    ages : bool
        Read the speakers' ages, per video, from final_dataframe_extended.csv in the same folder.
    valid_share : float
        Share of the speakers of dev held out for validation.
    seed : int
        Seed of the choice of speakers.

    Yields
    ------
    Clip
        With gender, and age if it is known. No speaker is in both dev and test.

    Raises
    ------
    CorpusError
        A list is missing or not in its format, there is no audio folder, or a speaker is not in vox2_meta.csv.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "test/wav/id00017/abc").mkdir(parents=True)
    >>> (folder / "test/wav/id00017/abc/00001.wav").touch()
    >>> _ = (folder / "vox2_meta.csv").write_text("VoxCeleb2 ID,Gender,Set\\nid00017,f,test\\n")
    >>> clips = read_voxceleb2(folder, ages=False, valid_share=0.1, seed=0)
    >>> [(clip.id, clip.split, clip.gender) for clip in clips]
    [('id00017/abc/00001', 'test', 'female')]
    """
    folder = Path(data_folder)
    require(folder, ["vox2_meta.csv"], "VoxCeleb2", SOURCE)
    if ages:
        require(folder, [AGES], "VoxCeleb2's ages", f"{AGE_SOURCE}, or set ages to False,")
    speakers = _speakers(folder / "vox2_meta.csv")
    known_ages = _ages(folder / AGES) if ages else {}
    speaker_folders: dict[str, Path] = {}
    for name in _AUDIO_FOLDERS:
        if (folder / name).is_dir():
            for entry in os.scandir(folder / name):
                if entry.name.startswith("id"):
                    speaker_folders.setdefault(entry.name, Path(entry.path))
    if not speaker_folders:
        raise CorpusError(
            f"VoxCeleb2: expected folders of speakers in one of {', '.join(_AUDIO_FOLDERS)} of {folder.resolve()}. "
            f"Get the corpus from {SOURCE}"
        )
    for speaker, speaker_folder in sorted(speaker_folders.items()):
        if speaker not in speakers:
            raise CorpusError(
                f"{folder / 'vox2_meta.csv'}: no {speaker}, whose audio is in {speaker_folder}; download the list again"
            )
        gender, part = speakers[speaker]
        held_out = part == "dev" and is_held_out(speaker, valid_share, seed)
        for video_folder, names in walk(speaker_folder):
            for name in names:
                stem, ending = os.path.splitext(name)
                if ending.lower() in AUDIO_ENDINGS:
                    video = video_folder.name
                    yield Clip(
                        dataset="VoxCeleb2",
                        id=f"{speaker}/{video}/{stem}",
                        audio=video_folder / name,
                        split="test" if part == "test" else "valid" if held_out else "train",
                        group=f"voxceleb {speaker}",
                        speaker=speaker,
                        gender=gender,
                        age=known_ages.get((speaker, video)),
                    )


def _speakers(file: Path) -> dict[str, tuple[str, str]]:
    """Map speakers to gender and part (dev or test)."""
    with file.open(encoding="utf-8-sig") as lines:
        delimiter = "\t" if "\t" in lines.readline() else ","
    speakers = {}
    for row in read_rows(file, ("VoxCeleb2 ID", "Gender", "Set"), SOURCE, delimiter=delimiter):
        if row["Gender"] not in _GENDER or row["Set"] not in ("dev", "test"):
            raise CorpusError(
                f"{file}: {row['VoxCeleb2 ID']} has gender {row['Gender']!r} and set {row['Set']!r}; "
                f"expected m or f, and dev or test. Download it again from {SOURCE}"
            )
        speakers[row["VoxCeleb2 ID"]] = _GENDER[row["Gender"]], row["Set"]
    return speakers


def _ages(file: Path) -> dict[tuple[str, str], int]:
    """Map speaker and video to the age in years, where the list has a plausible one."""
    ages = {}
    for row in read_rows(file, ("VoxCeleb_ID", "video_id", "speaker_age"), AGE_SOURCE):
        if row["speaker_age"]:
            age = round(parse_number(file, row["speaker_age"]))
            if 0 < age < 110:
                ages[row["VoxCeleb_ID"], row["video_id"]] = age
    return ages
