"""Text tokens: counted once per row and stored, separately for each manifest, prompt and tokenizer."""

import numpy as np
import pytest

from audiolm_lite.data.lengths import text_tokens, tokenizer_identity
from audiolm_lite.data.manifest import write_manifest
from audiolm_lite.data.manifest_table import ManifestTable
from tests.tiny import word_tokenizer


def tokenizer(words="a b c"):
    return word_tokenizer(["<unk>", *words.split()])


class Counting:
    """Counts the words of a target and records the ids of the rows that it has counted."""

    def __init__(self, fails_at=None, more=0):
        self.counted, self.fails_at, self.more = [], fails_at, more

    def __call__(self, row):
        if row["id"] == self.fails_at:
            raise KeyboardInterrupt
        self.counted.append(row["id"])
        return len(row["target"].split()) + self.more


def manifest(folder, count, longer=0):
    fixed = {"audio": "a.wav", "task": "asr", "instruction": "?", "dataset": "toy", "split": "train"}
    targets = ["a " * (1 + i % 7 + longer) for i in range(count)]
    write_manifest(folder / "m.jsonl", ({"id": str(i), "target": t, **fixed} for i, t in enumerate(targets)))
    return ManifestTable(folder / "m.jsonl")


def counts(table, count, numbers=None, words="a b c", **settings):
    numbers = np.arange(len(table), dtype=np.int32) if numbers is None else numbers
    return text_tokens(table, numbers, count, tokenizer(words), settings).tolist()


def test_rows_are_counted_once_whichever_are_requested(tmp_path):
    table, expected = manifest(tmp_path, 50), [1 + i % 7 for i in range(50)]
    odd, second = Counting(), Counting()
    assert counts(table, odd, np.arange(1, 50, 2)) == expected[1::2] and len(odd.counted) == 25
    assert counts(table, second) == expected
    assert set(second.counted) >= {str(i) for i in range(0, 50, 2)}
    third = Counting()
    assert counts(ManifestTable(table.path), third) == expected and len(third.counted) < 34  # a few are checked


def test_counts_are_kept_after_an_interruption(tmp_path):
    table, first, second = manifest(tmp_path, 3000), Counting(fails_at="2500"), Counting()
    with pytest.raises(KeyboardInterrupt):
        counts(table, first)
    assert counts(table, second) == [1 + i % 7 for i in range(3000)]
    assert len(second.counted) < 600


def test_ranks_begin_at_different_rows(tmp_path, monkeypatch):
    table = manifest(tmp_path, 4000)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    one = Counting(fails_at="3999")
    with pytest.raises(KeyboardInterrupt):
        counts(table, one)
    assert one.counted[0] == "2000"


def test_other_settings_tokenizers_and_manifests_are_counted_separately(tmp_path):
    table = manifest(tmp_path, 10)
    counts(table, Counting())
    for change in ({"template": "x"}, {"words": "a b d"}):
        again = Counting()
        counts(table, again, **change)
        assert len(again.counted) == 10
    assert len(list(tmp_path.glob(".*.npy"))) == 3
    assert counts(manifest(tmp_path, 10, longer=1), Counting()) == [2 + i % 7 for i in range(10)]
    assert len(list(tmp_path.glob(".*.npy"))) == 1  # those of the earlier content are deleted


def test_outdated_counts_are_detected(tmp_path):
    table = manifest(tmp_path, 100)
    counts(table, Counting())
    assert counts(table, Counting(more=2)) == [3 + i % 7 for i in range(100)]


def test_a_damaged_file_is_written_again(tmp_path):
    table = manifest(tmp_path, 10)
    expected = counts(table, Counting())
    (file,) = tmp_path.glob(".*.npy")
    file.write_bytes(file.read_bytes()[:50])
    assert counts(table, Counting()) == expected


def test_the_identity_depends_on_the_content(tmp_path):
    assert tokenizer_identity(tokenizer()) == tokenizer_identity(tokenizer()) != tokenizer_identity(tokenizer("a b"))
    changed = tokenizer()
    changed.chat_template = "{{ messages }}"
    assert tokenizer_identity(changed) != tokenizer_identity(tokenizer())
    assert tokenizer_identity(object()) is None
