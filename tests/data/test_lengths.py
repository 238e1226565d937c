"""Text tokens: counted once a row, kept, and never those of another manifest, prompt or tokenizer."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from audiolm_lite.data.lengths import text_tokens, tokenizer_identity
from audiolm_lite.data.manifest import write_manifest
from audiolm_lite.data.manifest_table import ManifestTable


def tokenizer(words="a b c"):
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", *words.split()])}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


class Counting:
    """Counts a target's words and remembers which rows it was asked for."""

    def __init__(self, dies_at=None, more=0):
        self.asked, self.dies_at, self.more = [], dies_at, more

    def __call__(self, row):
        if row["id"] == self.dies_at:
            raise KeyboardInterrupt
        self.asked.append(row["id"])
        return len(row["target"].split()) + self.more


def manifest(folder, count, longer=0):
    fixed = {"audio": "a.wav", "task": "asr", "instruction": "?", "dataset": "toy", "split": "train"}
    targets = ["a " * (1 + i % 7 + longer) for i in range(count)]
    write_manifest(folder / "m.jsonl", ({"id": str(i), "target": t, **fixed} for i, t in enumerate(targets)))
    return ManifestTable(folder / "m.jsonl")


def counts(table, count, numbers=None, words="a b c", **settings):
    numbers = np.arange(len(table), dtype=np.int32) if numbers is None else numbers
    return text_tokens(table, numbers, count, tokenizer(words), settings).tolist()


def test_rows_are_counted_once_whichever_are_asked_for(tmp_path):
    table, expected = manifest(tmp_path, 50), [1 + i % 7 for i in range(50)]
    odd, second = Counting(), Counting()
    assert counts(table, odd, np.arange(1, 50, 2)) == expected[1::2] and len(odd.asked) == 25
    assert counts(table, second) == expected
    assert set(second.asked) >= {str(i) for i in range(0, 50, 2)}
    third = Counting()
    assert counts(ManifestTable(table.path), third) == expected and len(third.asked) < 34  # a look at some


def test_an_interruption_loses_nothing(tmp_path):
    table, first, second = manifest(tmp_path, 3000), Counting(dies_at="2500"), Counting()
    with pytest.raises(KeyboardInterrupt):
        counts(table, first)
    assert counts(table, second) == [1 + i % 7 for i in range(3000)]
    assert len(second.asked) < 600


def test_ranks_share_the_work(tmp_path, monkeypatch):
    table = manifest(tmp_path, 4000)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    one = Counting(dies_at="3999")
    with pytest.raises(KeyboardInterrupt):
        counts(table, one)
    assert one.asked[0] == "2000"


def test_other_settings_tokenizers_and_manifests_count_anew(tmp_path):
    table = manifest(tmp_path, 10)
    counts(table, Counting())
    for change in ({"template": "x"}, {"words": "a b d"}):
        anew = Counting()
        counts(table, anew, **change)
        assert len(anew.asked) == 10
    assert len(list(tmp_path.glob(".*.npy"))) == 3
    anew = Counting()
    assert counts(manifest(tmp_path, 10, longer=1), anew) == [2 + i % 7 for i in range(10)]
    assert len(list(tmp_path.glob(".*.npy"))) == 1  # those of the manifest that was there before are gone


def test_counts_that_no_longer_hold_are_noticed(tmp_path):
    table = manifest(tmp_path, 100)
    counts(table, Counting())
    assert counts(table, Counting(more=2)) == [3 + i % 7 for i in range(100)]


def test_a_damaged_file_is_made_anew(tmp_path):
    table = manifest(tmp_path, 10)
    expected = counts(table, Counting())
    (file,) = tmp_path.glob(".*.npy")
    file.write_bytes(file.read_bytes()[:50])
    assert counts(table, Counting()) == expected


def test_the_identity_is_of_content(tmp_path):
    assert tokenizer_identity(tokenizer()) == tokenizer_identity(tokenizer()) != tokenizer_identity(tokenizer("a b"))
    changed = tokenizer()
    changed.chat_template = "{{ messages }}"
    assert tokenizer_identity(changed) != tokenizer_identity(tokenizer())
    assert tokenizer_identity(object()) is None
