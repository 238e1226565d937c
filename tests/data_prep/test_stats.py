"""Statistics of manifests: counts computed by hand, and a report without external resources."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from audiolm_lite.data.manifest import ManifestError
from data_prep import stats
from data_prep.tables import format_table


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Two speakers, three clips of 1 s, 2 s and 3 s (the last without a duration in its row), and a bad line."""
    rows = []
    for number, (rate, speaker) in enumerate([(16000, "a"), (16000, "b"), (44100, "b")]):
        soundfile.write(tmp_path / f"{number}.wav", np.zeros((number + 1) * rate), rate)
        for task in ("asr", "gender"):
            row = {
                "id": f"{number}-{task}",
                "audio": f"{number}.wav",
                "task": task,
                "instruction": "?",
                "split": "train",
            }
            row |= {"target": "가 나" if task == "asr" else "<male>", "dataset": "Toy", "speaker": speaker}
            rows.append(row | ({"duration": number + 1.0} if number < 2 else {}))
    rows.append(rows[0] | {"id": "lost", "audio": "lost.wav", "duration": None, "target": "x"})
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "not JSON\n", encoding="utf-8")
    return file


def test_counts(manifest):
    found = stats.collect([manifest])
    assert (found.rows, found.clips) == (7, 4)
    assert found.seconds["dataset"] == {("Toy", "train"): 6.0}
    assert found.seconds["task"] == {"asr": 6.0, "gender": 6.0}
    assert found.seconds["speaker"] == {("Toy", "a"): 1.0, ("Toy", "b"): 5.0}
    assert found.durations == {0: 1, 100: 1, 200: 1, 300: 1} and found.lengths == {3: 3, 6: 3, 1: 1}
    assert found.characters["가"] == 3 and found.rates == {(16000, 1): 2, (44100, 1): 1}
    assert len(found.faults) == 2
    assert "lost.wav: no such file" in found.faults[0] and "line 8" in found.faults[1]


def test_headers_are_sampled_if_there_are_many(manifest, monkeypatch):
    monkeypatch.setattr(stats, "MAX_HEADERS", 2)
    found = stats.collect([manifest])
    titles = [table.title for table in stats.tables(found)]
    assert found.rates.total() <= 2 and f"Sample rates ({found.rates.total()} sampled of 4 clips)" in titles


def test_the_command_writes_a_picture_and_a_report(manifest, capsys):
    stats.main([str(manifest)])
    out = capsys.readouterr().out
    assert re.search(r"Toy +b +0.08", out) and "HANGUL SYLLABLE GA" in out
    assert (manifest.parent / "stats.png").read_bytes().startswith(b"\x89PNG")
    page = (manifest.parent / "stats.html").read_text(encoding="utf-8")
    assert "HANGUL SYLLABLE GA" in page and "lost.wav" in page and page.count("data:image/png;base64,") == 1
    assert not re.search(r"(?:src|href)=\"(?!data:)|https?://|@import|<script", page)
    assert "<male>" not in page
    stats.main([str(manifest), "--output", str(manifest.parent / "named.set")])
    assert (manifest.parent / "named.set.html").exists()
    manifest.write_text("", encoding="utf-8")
    with pytest.raises(ManifestError, match="has no row"):
        stats.main([str(manifest)])


@given(st.lists(st.integers(0, 30), min_size=1))
def test_spread_is_that_of_the_values(values):
    counted = stats._spread(stats.Counter(values), 0.5)
    least, _, median, _, most, mean = counted
    assert counted[:5] == sorted(counted[:5])
    assert (least, most) == (min(values) / 2, max(values) / 2) and mean == pytest.approx(np.mean(values) / 2)
    assert median == np.quantile(values, 0.5, method="inverted_cdf") / 2


def test_table_aligns():
    assert format_table(["a", "n"], [["x", 1000], ["long", None]]) == "a         n\nx     1,000\nlong"
    assert format_table(["a", "n"], []) == "a  n"
