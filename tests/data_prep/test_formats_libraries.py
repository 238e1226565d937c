"""Manifests and folders that Lhotse and Hugging Face datasets write are read, and they read what is written here."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from audiolm_lite.audio.reading import read_audio
from data_prep.formats import Report, load_format
from tests.data_prep.conftest import RATE
from tests.data_prep.test_formats import ROW, read, write


def test_lhotse_itself_reads_what_is_written(folder, tmp_path):
    lhotse = pytest.importorskip("lhotse")
    rows = [
        {**ROW, "audio": str(folder / "wav/a.wav"), "start": 0.5, "duration": 1.25, "gender": "female", "mood": "x"}
    ]
    path = tmp_path / "cuts.jsonl.gz"
    write("lhotse", rows, path)
    (cut,) = lhotse.CutSet.from_file(path)
    assert (
        cut.supervisions[0].text == "one, two" and cut.custom["mood"] == "x" and cut.supervisions[0].gender == "female"
    )
    lhotse.validate(cut)
    expected = read_audio(rows[0]["audio"], 0.5, 1.25, sample_rate=RATE)
    np.testing.assert_allclose(cut.load_audio()[0], expected, atol=1e-4)


def test_lhotse_cuts_of_lhotse_are_read(folder, tmp_path):
    lhotse = pytest.importorskip("lhotse")
    recording = lhotse.Recording.from_file(folder / "wav/a.wav")
    supervisions = [
        lhotse.SupervisionSegment(id=f"s{n}", recording_id="a", start=n * 0.5, duration=0.5, text=f"t{n}")
        for n in (0, 1)
    ]
    cut = lhotse.MonoCut("c", start=1.0, duration=2.0, channel=0, supervisions=supervisions, recording=recording)
    path = tmp_path / "cuts.jsonl"
    lhotse.CutSet.from_cuts([cut, cut.pad(5), cut.perturb_speed(0.9)]).to_file(path)
    rows, report = read("lhotse", path)
    assert [(row["id"], row["start"], row["duration"], row["target"]) for row in rows] == [
        ("s0", 1.0, 0.5, "t0"), ("s1", 1.5, 0.5, "t1")]  # fmt: skip
    reasons = " ".join(entry["reason"] for entry in report.rejected)
    assert "supervisions" in reasons and "changed when it is read (Speed)" in reasons


def test_lhotse_recordings_that_are_not_plain_files_are_refused(tmp_path):
    def cut(kind: str, channels: list[int]) -> str:
        source = {"type": kind, "channels": channels, "source": "x"}
        part = {"id": "c", "start": 0.0, "duration": 1.0, "channel": 0}
        return json.dumps(
            {**part, "supervisions": [{**part, "text": "t"}], "recording": {"id": "r", "sources": [source]}}
        )

    path = tmp_path / "cuts.jsonl"
    path.write_text("\n".join([cut("command", [0]), "{}"]))
    rows, report = read("lhotse", path)
    reasons = [entry["reason"] for entry in report.rejected]
    assert rows == [] and 'type "command"' in reasons[0] and len(reasons) == 2


def test_lhotse_reads_the_channel_that_a_converted_row_names(tmp_path):
    """Both ways: rows to cuts, which the library reads, and its cuts of one channel or of all to rows."""
    lhotse = pytest.importorskip("lhotse")
    samples = np.stack([np.sin(np.arange(RATE) / 9), np.sin(np.arange(RATE) / 7)], axis=1).astype(np.float32) / 2
    soundfile.write(tmp_path / "call.wav", samples, RATE)
    common = {"audio": "call.wav", "start": 0.0, "duration": 0.5, "target": "t", "task": "asr"}
    rows = [{"id": f"c{channel}", **common, "channel": channel} for channel in (0, 1, None, 2)]
    report = Report()
    load_format("lhotse").write(rows, tmp_path / "cuts.jsonl", report)
    assert [entry["id"] for entry in report.rejected] == ["c2"] and "none is channel 2" in report.rejected[0]["reason"]
    converted, report = read("lhotse", tmp_path / "cuts.jsonl")
    assert [row.get("channel") for row in converted] == [0, 1, None] and report.rejected == []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        cuts = list(lhotse.CutSet.from_file("cuts.jsonl"))
        for number in (0, 1):
            np.testing.assert_allclose(cuts[number].load_audio(), samples[: RATE // 2, number][None], atol=1e-4)
        recording = lhotse.Recording.from_file("call.wav")
        parts = [
            lhotse.SupervisionSegment(id=f"s{n}", recording_id="call", start=0, duration=0.5, channel=channel, text="t")
            for n, channel in enumerate((0, 1, [0, 1]))
        ]
        cut = lhotse.MultiCut("m", start=0, duration=1, channel=[0, 1], supervisions=parts, recording=recording)
        lhotse.CutSet.from_cuts([cut]).to_file("two.jsonl")
    converted, report = read("lhotse", tmp_path / "two.jsonl")
    assert [row.get("channel") for row in converted] == [0, 1, None] and report.rejected == []


def test_nemo_keeps_the_channel(tmp_path):
    path, entry = tmp_path / "train.json", {"audio_filepath": "1.wav", "text": "a"}
    selectors = [0, 1, "average", None, [1], [0, 1], "left", -1]
    entries = [*({**entry, "channel_selector": value} for value in selectors), entry]
    path.write_text("\n".join(map(json.dumps, entries)))
    rows, report = read("nemo", path)
    assert [row.get("channel") for row in rows] == [0, 1, None, None, 1, None]
    assert [entry["line"] for entry in report.rejected] == [6, 7, 8]
    assert "channel_selector [0, 1] is not one channel" in report.rejected[0]["reason"]
    load_format("nemo").write(rows, tmp_path / "again.json", Report())
    written = [json.loads(line) for line in (tmp_path / "again.json").read_text().splitlines()]
    assert [entry.get("channel_selector") for entry in written] == [0, 1, None, None, 1, None]


def test_a_field_channel_of_another_meaning_is_kept(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps({"audio_filepath": "1.wav", "text": "a", "channel": "BBC One"}))
    rows, report = read("nemo", tmp_path / "train.json")
    assert rows[0]["channel_name"] == "BBC One" and "channel" not in rows[0] and report.rejected == []


def test_hugging_face_folders_of_the_library_are_read(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    file = folder / "wav/a.wav"
    audio = [{"bytes": file.read_bytes(), "path": "../../x.wav"}, {"bytes": file.read_bytes(), "path": None}]
    columns = {"audio": audio, "sentence": ["eins", "zwei"], "n": [1, None]}
    one = datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio(decode=False))
    datasets.DatasetDict({"valid": one}).save_to_disk(tmp_path / "disk")
    (tmp_path / "hub/data").mkdir(parents=True)
    one.to_parquet(tmp_path / "hub/data/valid-00000-of-00001.parquet")
    for name in ("disk", "hub"):
        rows, report = read("huggingface", tmp_path / name, audio_folder=tmp_path / "audio")
        assert report.rejected == [] and [row["target"] for row in rows] == ["eins", "zwei"]
        assert [row["split"] for row in rows] == ["valid"] * 2 and rows[0]["n"] == 1 and "n" not in rows[1]
        written = tmp_path / name / rows[0]["audio"]
        assert written.resolve().parent == tmp_path / "audio" and written.read_bytes() == file.read_bytes()
        assert rows[1]["audio"] == rows[0]["audio"]
    assert len(list((tmp_path / "audio").iterdir())) == 1


def test_hugging_face_columns_of_paths_and_of_nothing(tmp_path):
    for name, audio in (("path", ["a.wav"]), ("struct", [{"bytes": None, "path": "a.wav"}]), ("none", [3])):
        (tmp_path / name).mkdir()
        pq.write_table(pa.table({"audio": audio, "text": ["t"]}), tmp_path / name / "part.parquet")
        rows, report = read("huggingface", tmp_path / name)
        if name == "none":
            assert rows == [] and "--field audio=COLUMN" in report.rejected[0]["reason"]
        else:
            assert rows[0]["audio"] == "a.wav" and rows[0]["split"] == "train"


def test_hugging_face_library_reads_what_is_written(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{**ROW, "audio": str(folder / "wav/a.wav"), "labels": ["a", "b"], "mixed": 1},
            {**ROW, "id": "b", "audio": str(folder / "wav/a.wav"), "mixed": {"x": None}}]  # fmt: skip
    write("huggingface", rows, tmp_path / "out")
    files = [str(file) for file in (tmp_path / "out").rglob("*.parquet")]
    loaded = datasets.Dataset.from_parquet(files, cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded.features["audio"], datasets.Audio) and loaded["labels"][0] == ["a", "b"]
    clip = loaded.cast_column("audio", datasets.Audio(decode=False))[0]["audio"]
    assert clip["bytes"] == (folder / "wav/a.wav").read_bytes() and clip["path"] == "a.wav"
