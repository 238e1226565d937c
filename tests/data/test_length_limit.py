"""Rows that are too long: an error, a truncated field, truncated audio, or left out."""

import logging

import numpy as np
import pytest
import soundfile
import torch

from audiolm_lite.data.clip_sources import FeatureSource, WaveformSource
from audiolm_lite.data.dataset import AudioTextDataset
from audiolm_lite.data.length_limit import LengthLimit
from audiolm_lite.data.lengths import largest
from audiolm_lite.data.manifest import write_manifest
from audiolm_lite.data.prompt_builder import PromptBuilder
from audiolm_lite.data.questions import Questions
from audiolm_lite.data.selected_rows import DatasetError, select_rows
from audiolm_lite.features.store import FeatureStore
from audiolm_lite.features.writer import FeatureWriter
from audiolm_lite.language.prompt import PromptError, PromptTemplate
from audiolm_lite.modeling.batch import AUDIO_SLOT

COMMON = {"instruction": "what?", "task": "which", "target": "first", "dataset": "made", "split": "train"}
ROWS = [
    {"id": "short", "audio": "a.wav", "transcript": "ab", **COMMON},
    {"id": "long", "audio": "c.wav", "transcript": "abcdefgh", **COMMON},
]
TEMPLATE = PromptTemplate("{bos}{audio}{instruction}{transcript}{answer}{eos}")
FRAMES = {"a.wav": 4, "c.wav": 9}


def num_tokens(frames):
    return frames // 2


@pytest.fixture
def dataset(tmp_path, tokenizer):
    """Build the dataset of ROWS under a limit, over stored features or, with `live`, over audio of as many frames."""
    write_manifest(tmp_path / "m.jsonl", ROWS)
    with FeatureWriter(tmp_path / "store", {"encoder": "made", "frame_seconds": 0.04}) as writer:
        for name, frames in FRAMES.items():
            writer.add(name, torch.rand(1, frames, 2))
            soundfile.write(tmp_path / name, np.random.uniform(-0.5, 0.5, 640 * frames), 16000)

    def build(max_tokens=None, shorten=None, live=False, **options):
        stored = FeatureSource(FeatureStore(tmp_path / "store"))
        source = WaveformSource(lambda samples: samples // 640) if live else stored
        prompt = PromptBuilder(TEMPLATE, tokenizer, num_tokens)
        limit = LengthLimit(max_tokens, shorten)
        return AudioTextDataset(select_rows([tmp_path / "m.jsonl"]), source, prompt, limit=limit, **options)

    return build


def test_a_long_row_is_an_error_without_a_rule(dataset):
    short, long = dataset().lengths.tolist()
    with pytest.raises(DatasetError, match=f'1 rows have more than max_tokens {long - 1}, the first is "long"'):
        dataset(long - 1)
    assert dataset(long).lengths.tolist() == [short, long]


def test_a_field_is_truncated(dataset, tokenizer, caplog):
    plain = dataset()
    short, long = plain.lengths.tolist()
    with caplog.at_level(logging.WARNING):
        cut = dataset(long - 3, "transcript")
    assert "1 of 2 rows have more than" in caplog.text and 'their field "transcript" is truncated' in caplog.text
    assert cut.lengths.tolist() == [short, long - 3] and cut[0].input_ids == plain[0].input_ids
    text = tokenizer.decode([token for token in cut[1].input_ids if token != AUDIO_SLOT]).replace(" ", "")
    assert text == "<|bos|>what?abcdefirst<|eos|>" and torch.equal(cut[1].features, plain[1].features)


def test_an_optional_field_is_counted_only_where_a_row_has_it(dataset, tmp_path, tokenizer):
    dataset()  # writes the features
    rows = [ROWS[0] | {"transcript": None}, ROWS[1]]
    write_manifest(tmp_path / "optional.jsonl", rows)
    template = PromptTemplate('{bos}{audio}{instruction}{transcript: ("*")}{answer}{eos}')
    source = FeatureSource(FeatureStore(tmp_path / "store"))
    prompt = PromptBuilder(template, tokenizer, num_tokens)

    def lengths(**options):
        data = AudioTextDataset(select_rows([tmp_path / "optional.jsonl"]), source, prompt, **options)
        assert data.lengths.tolist() == [len(item.input_ids) for item in data]
        return data.lengths.tolist()

    without, present = lengths()
    assert present - without == len(' ("abcdefgh")') + num_tokens(9) - num_tokens(4)
    assert lengths(limit=LengthLimit(present - 3, "transcript")) == [without, present - 3]


@pytest.mark.parametrize("live", [False, True])
def test_audio_is_truncated(dataset, live):
    plain = dataset(live=live)
    cut = dataset(int(plain.lengths[1]) - 2, "audio", live=live)
    assert cut[1].input_ids.count(AUDIO_SLOT) == plain[1].input_ids.count(AUDIO_SLOT) - 2 == num_tokens(5)
    assert len(cut[1].input_ids) <= cut.lengths[1]
    (own,), (shorter,) = plain[1].clips, cut[1].clips
    # the longest beginning of two tokens: 5 frames, or all samples before the sixth frame
    assert torch.equal(shorter, own[: 6 * 640 - 1] if live else own[:, :5])


def test_a_long_row_is_dropped(dataset):
    long = int(dataset().lengths[1])
    dropped = dataset(long - 1, "drop")
    assert [row["id"] for row in dropped.rows] == ["short"] and dropped.left_out == ["long"]
    assert len(dropped) == len(dropped.lengths) == 1 and len(dataset(long, "drop")) == 2


def test_what_cannot_be_truncated_enough_is_refused(dataset):
    with pytest.raises(PromptError, match='field "transcript" has only 8'):
        dataset(16, "transcript")
    with pytest.raises(PromptError, match='no field "speaker" to cut'):
        dataset(20, "speaker")
    with pytest.raises(DatasetError, match='row "long" is too long by .* and has too little audio to truncate'):
        dataset(16, "audio")


@pytest.mark.parametrize("name", ["speaker", "answer", "bos", "transcripts"])
def test_a_name_that_is_no_field_of_the_prompt_is_refused_even_without_long_rows(dataset, name):
    with pytest.raises(
        PromptError, match=f'no field "{name}" to cut; it can be instruction, transcript, target, audio'
    ):
        dataset(1000, name)


def test_audio_is_not_truncated_where_that_changes_nothing(dataset, monkeypatch):
    """As with a Q-Former, which has as many tokens for any clip, and an encoder that pads each clip to a window."""
    long = int(dataset().lengths[1])
    monkeypatch.setattr(f"{__name__}.num_tokens", lambda frames: 4)
    with pytest.raises(DatasetError, match="last clip has 4 audio tokens, and no shorter one has 3 or fewer"):
        dataset(long - 1, "audio")
    assert len(dataset(long, "audio")) == 2


def test_instructions_with_marks_are_not_cut(dataset, tmp_path, tokenizer):
    dataset()  # writes the features
    write_manifest(tmp_path / "marked.jsonl", [ROWS[1] | {"instruction": "<audio>what is it?"}])
    prompt = PromptBuilder(TEMPLATE, tokenizer, num_tokens)
    source, rows = FeatureSource(FeatureStore(tmp_path / "store")), select_rows([tmp_path / "marked.jsonl"])
    with pytest.raises(PromptError, match='row "long" is too long by 3 tokens.*<audio> marks'):
        AudioTextDataset(
            rows,
            source,
            prompt,
            limit=LengthLimit(len(AudioTextDataset(rows, source, prompt)[0].input_ids) - 3, "instruction"),
        )


def test_drawn_questions_are_not_cut(dataset, tmp_path, tokenizer):
    dataset()
    row = ROWS[1] | {"instruction": None}
    write_manifest(tmp_path / "drawn.jsonl", [row], instruction_required=False)
    rows = select_rows([tmp_path / "drawn.jsonl"], questions=Questions([], 1))
    source, prompt = FeatureSource(FeatureStore(tmp_path / "store")), PromptBuilder(TEMPLATE, tokenizer, num_tokens)
    with pytest.raises(DatasetError, match='row "long" is too long by .* and draws its question'):
        AudioTextDataset(rows, source, prompt, limit=LengthLimit(30, "instruction"))


def test_an_answer_is_cut_in_training_and_does_not_matter_in_prompts(dataset):
    long = int(dataset().lengths[1])
    cut = dataset(long - 2, "target")
    assert len(cut[1].input_ids) == long - 2
    assert cut.without_answers()[1].input_ids == dataset().without_answers()[1].input_ids


def test_settings_that_exclude_each_other_are_refused(dataset):
    with pytest.raises(DatasetError, match="shorten needs max_tokens"):
        dataset(None, "transcript")
    with pytest.raises(DatasetError, match="shorten cannot be combined with the control 'zeros'"):
        dataset(20, "transcript", control="zeros")


def test_largest():
    assert [largest(lambda n, limit=limit: n <= limit, 7) for limit in (0, 1, 6, 7, 9)] == [0, 1, 6, 7, 7]
