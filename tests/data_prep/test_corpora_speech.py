"""Readers of speech corpora on miniatures of their layouts, and on real corpora if they are available."""

import pytest

from audiolm_lite.audio.reading import AudioError, read_audio
from audiolm_lite.data.manifest import read_manifest
from data_prep.clips import CorpusError
from data_prep.corpora.cmu_mosei import read_cmu_mosei
from data_prep.corpora.iemocap import read_iemocap
from data_prep.corpora.kaldi import read_kaldi
from data_prep.corpora.korean_tedx import read_korean_tedx
from data_prep.corpora.ksponspeech import read_ksponspeech
from data_prep.corpora.librispeech import read_librispeech
from data_prep.corpora.libritts import read_libritts
from data_prep.corpora.voxceleb2 import read_voxceleb2
from tests.data_prep import miniatures
from tests.data_prep.miniatures import by_split, run_recipe

LIBRISPEECH = {"train": ["train-clean-100"], "valid": ["dev-clean"], "test": ["test-clean", "test-other"]}
LIBRITTS = {"train": ["train-clean-100"], "valid": ["dev-clean"], "test": ["test-clean"]}
KALDI = {"train": "train", "valid": "dev", "test": "test"}


def test_librispeech(tmp_path):
    clips = list(read_librispeech(miniatures.librispeech(tmp_path), LIBRISPEECH))
    splits = by_split(clips)
    assert [len(members) for members in splits.values()] == [2, 2, 4]
    first = clips[0]
    assert (first.id, first.speaker, first.gender) == ("19-198-0000", "19", "female")
    assert first.text == "IT'S NORTHANGER ABBEY" and clips[2].gender == "male"
    assert {clip.dataset for clip in splits["test"]} == {"LibriSpeech-test-clean", "LibriSpeech-test-other"}


def test_librispeech_files_without_text_and_texts_without_file_are_read_and_rejected_later(tmp_path):
    folder = miniatures.librispeech(tmp_path) / "dev-clean/20/198"
    (folder / "20-198-0000.flac").unlink()
    (folder / "20-198-0009.flac").write_bytes(b"")
    clips = list(read_librispeech(tmp_path, {"valid": ["dev-clean"]}))
    assert {clip.id: (clip.audio.exists(), bool(clip.text)) for clip in clips} == {
        "20-198-0000": (False, True),
        "20-198-0001": (True, True),
        "20-198-0009": (True, False),
    }


def test_libritts(tmp_path):
    clips = list(read_libritts(miniatures.libritts(tmp_path), LIBRITTS))
    assert [len(members) for members in by_split(clips).values()] == [2, 2, 2]
    assert {clip.text for clip in clips} == {"Go, do you hear?"}
    assert [clip.gender for clip in clips[::2]] == ["female", "male", "female"]
    (tmp_path / "dev-clean/85/121123/85_121123_000000_000000.wav").unlink()
    assert len(list(read_libritts(tmp_path, LIBRITTS))) == 6  # a missing file is yielded, and rejected later


def test_korean_tedx(tmp_path):
    clips = read_korean_tedx(miniatures.korean_tedx(tmp_path), 0.25, 0.25, seed=1)
    assert [len(members) for members in by_split(clips).values()] == [4, 2, 2]
    assert {(clip.text, clip.language) for clip in clips} == {("반갑습니다", "ko")}


def test_a_folder_without_transcripts_is_named(tmp_path):
    with pytest.raises(CorpusError, match=f"no [*].trans.txt below {tmp_path}/nowhere .there is no such folder"):
        read_korean_tedx(tmp_path / "nowhere", 0.1, 0.1, 1)


def test_real_korean_tedx(real_data):
    clips = read_korean_tedx(real_data / "korean_tedx", 0.25, 0.25, seed=1)
    splits = by_split(clips)
    assert len(clips) == 95 and len({clip.speaker for clip in clips}) == 4
    assert len({clip.speaker for clip in splits["train"]}) == 2 and all(clip.text for clip in clips)


def test_ksponspeech(tmp_path):
    clips = list(read_ksponspeech(miniatures.ksponspeech(tmp_path)))
    assert [len(members) for members in by_split(clips).values()] == [2, 2, 4]
    assert {clip.text for clip in clips} == {
        "아/ 몬 소리야, (70%)/(칠십 퍼센트) 확률이라니 b/"
    }  # the dev list is CP949
    assert len(read_audio(clips[0].audio)) == round(miniatures.SECONDS * 16000)
    only = read_ksponspeech(tmp_path, ("eval_other",))
    assert {clip.dataset for clip in only} == {"KsponSpeech-eval_other"}


def test_ksponspeech_archives_unpacked_into_one_folder(tmp_path):
    """Two of the publisher's archives have no top folder."""
    miniatures.ksponspeech(tmp_path)
    for name in ("KsponSpeech_scripts", "KsponSpeech_eval"):
        for entry in (tmp_path / name).iterdir():
            entry.rename(tmp_path / entry.name)
        (tmp_path / name).rmdir()
    assert [len(members) for members in by_split(list(read_ksponspeech(tmp_path))).values()] == [2, 2, 4]
    (tmp_path / "dev.trn").unlink()
    with pytest.raises(CorpusError, match="expected dev.trn in"):
        list(read_ksponspeech(tmp_path))


def test_ksponspeech_command_keeps_the_spoken_form(tmp_path):
    folder = miniatures.ksponspeech(tmp_path / "corpus")
    run_recipe("KsponSpeech", "--data_folder", folder, "--output_folder", tmp_path / "out")
    rows = list(read_manifest(tmp_path / "out/test.jsonl"))
    assert {row["target"] for row in rows} == {"아 몬 소리야 칠십 퍼센트 확률이라니"} and len(rows) == 4
    assert all(row["duration"] == pytest.approx(miniatures.SECONDS) for row in rows)


def test_headerless_samples_are_read_exactly(tmp_path):
    file = tmp_path / "a.pcm"
    file.write_bytes(bytes([0, 128, 255, 127, 0, 0, 1, 0]))  # little endian -32768, 32767, 0, 1
    assert (read_audio(file) * 32768).tolist() == [-32768, 32767, 0, 1]
    file.write_bytes(bytes([0, 128, 255]))
    assert (read_audio(file) * 32768).tolist() == [-32768]  # half a sample is ignored
    miniatures.write_audio(tmp_path / "b.wav", rate=8000)
    (tmp_path / "b.wav").rename(tmp_path / "b.pcm")  # the header has priority over the extension
    assert len(read_audio(tmp_path / "b.pcm")) == round(miniatures.SECONDS * 16000)


def test_kaldi(tmp_path):
    clips = list(read_kaldi(miniatures.kaldi(tmp_path), KALDI, tmp_path, "Clinic", "ko"))
    assert [len(members) for members in by_split(clips).values()] == [2, 1, 1]
    assert [(clip.start, clip.duration) for clip in clips] == [(0.0, 0.5), (0.1, 0.5), (0.0, None), (0.0, None)]
    assert {(clip.text, clip.gender, clip.language) for clip in clips} == {("어디가 아프세요", "female", "ko")}


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("train/wav.scp", "S0-rec sph2pipe a.sph |", "wav.scp: S0-rec is a command, which is never executed"),
        ("train/segments", "S0-rec-0 S0-rec 0.1", "segments: S0-rec-0 is followed by 'S0-rec 0.1'"),
        ("train/segments", "S0-rec-0 other 0.1 0.2", "segments: other of S0-rec-0 is not in wav.scp"),
        ("train/utt2spk", "S0-rec-0 S1\nS0-rec-1 S1", "speaker S1 is in train as well"),
    ],
)
def test_kaldi_errors_are_named(tmp_path, file, line, message):
    miniatures.kaldi(tmp_path)
    miniatures.write_lines(tmp_path / file, line)
    if "S1" in line:
        (tmp_path / "train/spk2gender").unlink()
    with pytest.raises(CorpusError, match=message):
        list(read_kaldi(tmp_path, KALDI, tmp_path, "Clinic", "ko"))


def test_iemocap(tmp_path):
    clips = list(read_iemocap(miniatures.iemocap(tmp_path), valid_session=4, test_session=5))
    splits = by_split(clips)
    assert [len(members) for members in splits.values()] == [15, 5, 5]
    assert not {clip.speaker for clip in splits["train"]} & {clip.speaker for clip in splits["test"]}
    labels = {clip.id.rpartition("_")[2]: [label.label for label in clip.labels] for clip in splits["test"]}
    assert labels == {"F000": ["neutral"], "M000": ["happy"], "F001": [], "M001": [], "F002": ["angry"]}
    male = next(clip for clip in clips if clip.id.endswith("M000"))
    assert (male.gender, male.speaker, male.text) == ("male", "Ses01M", "Excuse me. [LAUGHTER]")
    with pytest.raises(CorpusError, match="sessions 5 and 5; choose two different ones"):
        list(read_iemocap(tmp_path, 5, 5))


def test_voxceleb2(tmp_path):
    clips = list(read_voxceleb2(miniatures.voxceleb2(tmp_path), True, valid_share=0.3, seed=1))
    splits = by_split(clips)
    assert len(splits["test"]) == 4 and len(splits["train"]) + len(splits["valid"]) == 20
    first, second = clips[:2]
    assert (first.id, first.gender, first.age) == ("id00012/21Uxsk56VDQ/00001", "male", 39)
    assert second.age is None  # the list has no age for that video
    assert all(clip.age is None for clip in read_voxceleb2(tmp_path, False, 0.3, 1))


def test_voxceleb2_other_layouts(tmp_path):
    """Original .m4a files, and the list with names and tabs."""
    miniatures.voxceleb2(tmp_path, ".m4a")
    list_file = tmp_path / "vox2_meta.csv"
    rows = [line.replace(" ,", " \t") for line in list_file.read_text().splitlines()]
    miniatures.write_lines(list_file, "Name \t" + rows[0], *(f"Aaron \t{row}" for row in rows[1:]))
    clips = list(read_voxceleb2(tmp_path, True, 0.3, 1))
    assert len(clips) == 24 and {clip.audio.suffix for clip in clips} == {".m4a"}
    with pytest.raises(AudioError, match="cannot be decoded"):
        read_audio(clips[0].audio)
    miniatures.voxceleb2(tmp_path)  # WAV files next to the original ones
    assert {clip.audio.suffix for clip in read_voxceleb2(tmp_path, True, 0.3, 1)} == {".wav"}
    miniatures.write_lines(list_file, *rows[:-1])
    with pytest.raises(CorpusError, match="vox2_meta.csv: no id00023"):
        list(read_voxceleb2(tmp_path, True, 0.3, 1))


def test_cmu_mosei(tmp_path, caplog):
    pytest.importorskip("h5py")
    clips = list(read_cmu_mosei(miniatures.cmu_mosei(tmp_path)))
    splits = by_split(clips)
    assert [len(members) for members in splits.values()] == [2, 2, 2]  # and none of the video that is in no fold
    earlier, later = splits["train"]
    assert (earlier.id, earlier.start, earlier.text) == ("a-video1_0", 0.0, "I LOVE it")
    assert later.text == "so much___yes" and later.duration == pytest.approx(0.4)
    labels = {clip.id: [label.label for label in clip.labels] for clip in clips}
    assert labels["a-video1_0"] == ["positive", "angry"] and labels["a-video1_1"] == ["positive", "happy"]
    assert labels["20345_1"] == ["negative"]  # two emotions are equally strong
    assert labels["b_video_3_1"] == ["neutral", "fearful"]
    assert all(clip.text is None for clip in splits["valid"])
    damaged = tmp_path / "Raw/Transcript/Segmented/Combined/a-video1.txt"
    damaged.write_bytes(damaged.read_bytes().replace(b"a-video1___0___0.1___", b"12 \x81 "))
    again = {clip.id: clip.text for clip in read_cmu_mosei(tmp_path)}
    assert again["a-video1_0"] is None and again["a-video1_1"] == "so much___yes"
    assert "a-video1.txt: 1 lines are not" in caplog.text
    miniatures.write_lines(tmp_path / "cmu_mosei_std_folds.py", "import os", "standard_train_fold = []")
    with pytest.raises(CorpusError, match="no list standard_test_fold, standard_valid_fold"):
        list(read_cmu_mosei(tmp_path))


@pytest.mark.parametrize(
    ("read", "missing", "source"),
    [
        (lambda folder: read_librispeech(folder, LIBRISPEECH), "SPEAKERS.TXT, train-clean-100", "openslr.org/12"),
        (lambda folder: read_libritts(folder, LIBRITTS), "speakers.tsv", "openslr.org/60"),
        (read_ksponspeech, "KsponSpeech_scripts/train.trn", "aihub.or.kr"),
        (lambda folder: read_kaldi(folder, KALDI, folder, "Clinic", "ko"), "train/wav.scp", "Kaldi recipe"),
        (lambda folder: read_iemocap(folder, 4, 5), "Session1/dialog/EmoEvaluation", "sail.usc.edu"),
        (lambda folder: read_voxceleb2(folder, True, 0.1, 1), "vox2_meta.csv", "robots.ox.ac.uk"),
        (read_cmu_mosei, "CMU_MOSEI_Labels.csd", "multicomp.cs.cmu.edu"),
    ],
)
def test_a_missing_corpus_is_an_error_with_its_source(tmp_path, read, missing, source):
    with pytest.raises(CorpusError, match=f"{missing}.* in {tmp_path}/nowhere .*no such folder.*{source}"):
        list(read(tmp_path / "nowhere"))
