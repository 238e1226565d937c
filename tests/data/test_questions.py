"""Question files: which rows draw from which file, and that draws depend on seed, epoch and id only."""

from collections import Counter

import pytest

from audiolm_lite.data.manifest import ManifestError
from audiolm_lite.data.questions import DEFAULT_QUESTION, Questions


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfWhat is said?\r\n\r\n  Transcribe.  \r\n")
    (tmp_path / "b.txt").write_text("무엇이 들리나요?\nWhat is heard?\n", encoding="utf-8")
    return [tmp_path / "a.txt", tmp_path / "b.txt"]


A, B = ["What is said?", "Transcribe."], ["무엇이 들리나요?", "What is heard?"]


def test_each_manifest_has_its_file_or_all_use_all_files(files):
    assert Questions(files, 2).pools == [A, B]
    assert Questions(files, 3).pools == [A + B] * 3
    assert Questions(files[:1], 2).pools == [A, A]
    assert Questions([], 2).draw(1, "x") == DEFAULT_QUESTION == "what does the audio mean?"


def test_draws_depend_on_seed_epoch_and_id_only(files):
    def draws(seed, epoch, ids=range(400)):
        questions = Questions(files, 1, seed)
        questions.epoch = epoch
        return {i: questions.draw(0, f"row-{i}") for i in ids}

    first = draws(1, 1)
    assert draws(1, 1, reversed(range(400))) == first
    assert draws(1, 2) != first != draws(2, 1)
    assert min(Counter(first.values()).values()) > 60 and len(set(first.values())) == 4


def test_files_without_questions_are_named(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    for name, message in {"empty": "has no question", "latin": "is not UTF-8", "none": "cannot be read"}.items():
        with pytest.raises(ManifestError, match=f"question_files: .*{name}.txt {message}"):
            Questions([tmp_path / f"{name}.txt"], 1)
