"""Readers of sound and music corpora on miniatures of their layouts, and common parts of corpora of YouTube clips."""

import pytest

from data_prep.audio_index import AudioIndex
from data_prep.clips import Clip, CorpusError, Event, Label, Question, is_held_out, keep_apart, read_lines, read_rows
from data_prep.corpora.audiocaps import read_audiocaps
from data_prep.corpora.audioset import read_audioset
from data_prep.corpora.clotho import read_clotho, read_clotho_aqa
from data_prep.corpora.fma import read_fma
from data_prep.corpora.fsd50k import read_fsd50k
from data_prep.corpora.vggsound import read_vggsound
from tests.data_prep import miniatures
from tests.data_prep.miniatures import by_split


def test_audiocaps(tmp_path):
    clips = list(read_audiocaps(miniatures.audiocaps(tmp_path)))
    missing = clips.pop(1)
    assert missing.id == "tr1-ytid_ab_30" and not missing.audio.exists()  # preparation rejects it
    splits = by_split(clips)
    assert [[len(clip.captions) for clip in members] for members in splits.values()] == [[1], [5, 5], [5, 5]]
    assert clips[0].captions == ("A dog barks, 0 times",) and clips[0].group == "youtube tr0-ytid_ab"


def test_clotho(tmp_path):
    clips = list(read_clotho(miniatures.clotho(tmp_path)))
    assert [len(members) for members in by_split(clips).values()] == [2, 2, 2]
    assert clips[0].id == "Waterfall, development 0.wav" and clips[0].group == "freesound 0"
    assert clips[0].captions == tuple(f"Water falls, {n}." for n in range(5))


def test_clotho_aqa(tmp_path):
    clips = list(read_clotho_aqa(miniatures.clotho_aqa(tmp_path)))
    assert [len(members) for members in by_split(clips).values()] == [1, 1, 1]
    closed, free = clips[0].questions
    assert closed == Question("Is there water?", ("yes", "no", "yes"), ("yes", "no"))
    assert free == Question("What falls, and where?", ("water", "rain", "rain"))


def test_test_recordings_of_clotho_aqa_are_not_in_the_training_part_of_clotho(tmp_path, caplog):
    clotho, aqa = miniatures.clotho(tmp_path / "clotho"), miniatures.clotho_aqa(tmp_path / "aqa")
    clips = list(keep_apart([lambda: read_clotho(clotho), lambda: read_clotho_aqa(aqa, clotho)]))
    by_split(clips)
    assert [clip.id for clip in clips if clip.dataset == "Clotho" and clip.split == "train"] == [
        "Waterfall, development 1.wav"
    ]
    assert "Clotho: 1 clips of split train are left out" in caplog.text


def test_real_clotho(real_data):
    clips = list(read_clotho(real_data / "clotho", ["validation"]))
    assert len(clips) == 11 and all(clip.audio.is_file() and len(set(clip.captions)) == 5 for clip in clips)


def test_fsd50k(tmp_path):
    clips = list(read_fsd50k(miniatures.fsd50k(tmp_path)))
    assert [len(members) for members in by_split(clips).values()] == [2, 1, 1]
    assert [event.sound for event in clips[0].events] == ["electric guitar", "guitar", "music"]


def test_audioset_weak(tmp_path):
    clips = list(read_audioset(miniatures.audioset(tmp_path), ["balanced", "unbalanced"], 0.3, seed=1))
    splits = by_split(clips)
    assert len(clips) == 24 and {clip.id[2] for clip in splits["test"]} == {"e"} and len(splits["test"]) == 8
    assert clips[0].events == (Event("speech"), Event("gush"))
    (tmp_path / "unbalanced_train_segments.csv").unlink()
    assert len(list(read_audioset(tmp_path, ["balanced"], 0.3, seed=1))) == 16
    with pytest.raises(CorpusError, match="expected unbalanced_train_segments.csv"):
        list(read_audioset(tmp_path, ["unbalanced"], 0.3, seed=1))
    with pytest.raises(CorpusError, match="choose among balanced, unbalanced and strong"):
        list(read_audioset(tmp_path, ["2M"], 0.3, seed=1))


def test_audioset_strong(tmp_path):
    clips = list(read_audioset(miniatures.audioset(tmp_path), ["strong"], 0.3, seed=1))
    assert {clip.dataset for clip in clips} == {"AudioSet-strong"} and len(by_split(clips)["test"]) == 8
    assert clips[0].events == (Event("dog", 2.627, 7.237), Event("speech", 0.0, 0.5), Event("dog", 8.0, 10.0))
    weak = {clip.id: clip.split for clip in read_audioset(tmp_path, ["unbalanced"], 0.3, seed=1)}
    assert all(weak[clip.id.removesuffix("_30000")] == clip.split for clip in clips)
    miniatures.write_lines(tmp_path / "mid_to_display_name.tsv", "/m/09x0r\tSpeech")
    with pytest.raises(CorpusError, match=r"audioset_train_strong.tsv: class /m/0bt9lr is in no list"):
        list(read_audioset(tmp_path, ["strong"], 0.3, seed=1))


def test_vggsound(tmp_path):
    clips = list(read_vggsound(miniatures.vggsound(tmp_path), 0.3, seed=1))
    splits = by_split(clips)
    assert len(clips) == 9 and [clip.labels[0].label for clip in splits["test"]] == ["people marching"]
    assert splits["train"][0].labels == (Label("sound_class", "raining, hard"),)


def test_fma(tmp_path, caplog):
    miniatures.fma(tmp_path)
    clips = list(read_fma(tmp_path, "medium"))
    assert [len(members) for members in by_split(clips).values()] == [2, 1, 1]
    assert clips[0].labels == (Label("genre", "Hip-Hop", ("Folk", "Hip-Hop", "Rock")),)
    assert len(list(read_fma(tmp_path, "small"))) == 3 and not caplog.text
    assert len(list(read_fma(tmp_path, "large"))) == 4
    assert "1 of 5 tracks have no top genre" in caplog.text
    miniatures.write_lines(tmp_path / "fma_metadata/tracks.csv", "track_id,title", "2,x")
    with pytest.raises(CorpusError, match="not the three header lines"):
        list(read_fma(tmp_path, "small"))


@pytest.mark.parametrize(
    ("read", "missing", "source"),
    [
        (read_audiocaps, "audio, train.csv", "cdjkim/audiocaps"),
        (read_clotho, "clotho_captions_development.csv", "records/4783391"),
        (read_clotho_aqa, "clotho_aqa_train.csv", "records/6473207"),
        (read_fsd50k, "FSD50K.ground_truth/dev.csv", "records/4060432"),
        (lambda folder: read_audioset(folder, ["balanced"], 0.1, 1), "class_labels_indices.csv", "download.html"),
        (lambda folder: read_audioset(folder, ["strong"], 0.1, 1), "mid_to_display_name.tsv", "download_strong.html"),
        (lambda folder: read_vggsound(folder, 0.1, 1), "vggsound.csv", "robots.ox.ac.uk"),
        (lambda folder: read_fma(folder, "small"), "fma_metadata/tracks.csv", "mdeff/fma"),
    ],
)
def test_a_missing_corpus_is_an_error_with_its_source(tmp_path, read, missing, source):
    with pytest.raises(CorpusError, match=f"{missing}.* in {tmp_path}/nowhere .*no such folder.*{source}"):
        list(read(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "name",
    [
        "abc-DEF_123.wav", "Yabc-DEF_123.flac", "abc-DEF_123_30.wav", "abc-DEF_123_30000.m4a", "abc-DEF_123_000030.mp3",
        "abc-DEF_123_30.000_40.000.wav", "Yabc-DEF_123_30_40.ogg", "abc-DEF_123_30000_40000.wav",
    ],
)  # fmt: skip
def test_audio_of_youtube_is_found_by_any_usual_name(tmp_path, name):
    (tmp_path / "part00/deeper").mkdir(parents=True)
    (tmp_path / "part00/deeper" / name).touch()
    for other in ("abc-DEF_123_40.wav", "abc-DEF_123.json", ".abc-DEF_123.wav", "zzz-DEF_123.wav"):
        (tmp_path / other).touch()
    assert AudioIndex(tmp_path).find_youtube("abc-DEF_123", 30.0) == tmp_path / "part00/deeper" / name


def test_readable_format_is_preferred(tmp_path):
    for name in ("a/x.m4a", "b/x.wav", "c/x.mp3"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert AudioIndex(tmp_path).find("x") == tmp_path / "b/x.wav"


def test_the_held_out_share_is_about_right_and_depends_on_the_names():
    names = [f"video {n}" for n in range(4000)]
    chosen = {name for name in names if is_held_out(name, 0.1, seed=1)}
    assert 320 < len(chosen) < 480
    assert chosen == {name for name in reversed(names) if is_held_out(name, 0.1, seed=1)}
    assert chosen < {name for name in names if is_held_out(name, 0.2, seed=1)}  # a larger share contains a smaller one
    assert chosen != {name for name in names if is_held_out(name, 0.1, seed=2)}
    assert not any(is_held_out(name, 0.0, 1) for name in names) and all(is_held_out(name, 1.0, 1) for name in names)


def test_keep_apart_keeps_a_group_in_its_last_split(tmp_path):
    def corpus(name: str, **splits: str):
        return lambda: (Clip(name, group, tmp_path, split, group) for group, split in splits.items())

    clips = keep_apart([corpus("A", x="train", y="valid", z="train"), corpus("B", x="test", y="test", w="train")])
    assert [(clip.dataset, clip.id) for clip in clips] == [("A", "z"), ("B", "x"), ("B", "y"), ("B", "w")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n3\n", "t.csv, line 3: 1 of 2 columns; download it again from there"),
        (b"a,c\n1,2\n", "t.csv: no column b; download it again from there"),
        (b"a,b\n1,\xff\n", "t.csv, after line .*: not readable"),
    ],
)
def test_errors_in_tables_are_named(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        list(read_rows(tmp_path / "t.csv", ("a", "b"), "there"))


def test_only_line_ends_split_lines(tmp_path):
    file = tmp_path / "list"
    file.write_bytes("\ufeffa\u2028b\r\n\n  \nc\x0bd".encode())
    assert list(read_lines(file)) == [(1, "a\u2028b"), (4, "c\x0bd")]
    file.write_bytes("가".encode("cp949"))
    assert list(read_lines(file, "utf-8-sig", "cp949")) == [(1, "가")]
    with pytest.raises(
        CorpusError, match=f"{file}: not readable as text .*; download it again, or convert it to UTF-8"
    ):
        list(read_lines(file))
