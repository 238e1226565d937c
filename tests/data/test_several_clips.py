"""Rows with several clips: their order, their lengths, and which rows are refused."""

import numpy as np
import pytest
import soundfile
import torch

from audiolm_lite.data.batching import collate
from audiolm_lite.data.clip_sources import FeatureSource, WaveformSource
from audiolm_lite.data.dataset import AudioTextDataset
from audiolm_lite.data.manifest import ManifestError, write_manifest
from audiolm_lite.data.prompt_builder import PromptBuilder
from audiolm_lite.data.selected_rows import select_rows
from audiolm_lite.features.keys import clips_of, feature_key
from audiolm_lite.features.store import FeatureStore
from audiolm_lite.features.writer import FeatureWriter
from audiolm_lite.language.prompt import PromptTemplate
from audiolm_lite.modeling.batch import AUDIO_SLOT

TEMPLATE = PromptTemplate("{bos}{turn}{audio}{instruction}{answer}{eos}")
FRAMES = {"a": 4, "b": 6, "c": 9}
COMMON = {"task": "which", "target": "first", "dataset": "made", "split": "train"}
ROWS = [
    {"id": "one", "audio": "a.wav", "instruction": "what?", **COMMON},
    {
        "id": "two",
        "audio": "a.wav",
        "instruction": "<audio> or <audio>?",
        "further_audio": [{"audio": "b.wav", "start": 0.5}],
        **COMMON,
    },
    {
        "id": "chat",
        "audio": "c.wav",
        "instruction": "and this?",
        "further_audio": [{"audio": "a.wav"}],
        "history": [{"instruction": "hi", "target": "yes"}],
        **COMMON,
    },
]


def num_tokens(frames):
    return frames // 2


@pytest.fixture
def dataset(tmp_path, tokenizer):
    """Build the dataset of some rows over stored features: clip a is filled with 1, b with 2, c with 3."""
    with FeatureWriter(tmp_path / "store", {"encoder": "made", "frame_seconds": 0.04}) as writer:
        for row in ROWS:
            for clip in clips_of(row):
                name = clip["audio"][0]
                if feature_key(clip) not in writer:
                    writer.add(feature_key(clip), torch.full((1, FRAMES[name], 2), "abc".index(name) + 1.0))

    def build(rows=ROWS, **options):
        write_manifest(tmp_path / "m.jsonl", rows)
        source = FeatureSource(FeatureStore(tmp_path / "store"))
        prompt = PromptBuilder(TEMPLATE, tokenizer, num_tokens)
        return AudioTextDataset(select_rows([tmp_path / "m.jsonl"]), source, prompt, **options)

    return build


def test_clips_are_in_reading_order(dataset):
    data = dataset()
    one, two, chat = data
    assert [int(clip[0, 0, 0]) for clip in two.clips] == [1, 2] and [int(c[0, 0, 0]) for c in chat.clips] == [3, 1]
    assert data.lengths.tolist() == [len(item.input_ids) for item in (one, two, chat)]
    assert [item.seconds for item in data] == pytest.approx([0.16, 0.4, 0.52])
    runs = "".join("#" if token == AUDIO_SLOT else "." for token in two.input_ids).split(".")
    assert [len(run) for run in runs if run] == [2, 3]
    batch = collate([one, two, chat])
    assert batch.frames.tolist() == [4, 4, 6, 9, 4] and batch.audio_rows.tolist() == [0, 1, 1, 2, 2]


@pytest.mark.parametrize("control", ["zeros", "shuffled"])
def test_controls_give_as_many_other_clips(dataset, control):
    rows = [*ROWS, {"id": "b", "audio": "b.wav", "start": 0.5, "instruction": "what?", **COMMON}]
    plain, other = dataset(rows), dataset(rows, control=control, seed=3)
    for index in range(4):
        item = other[index]
        assert other.lengths[index] == len(item.input_ids) and len(item.clips) == len(plain[index].clips)
        assert not torch.equal(item.clips[0], plain[index].clips[0])
        assert control == "shuffled" or not any(clip.any() for clip in item.clips)


def test_live_audio_of_several_clips(tmp_path, tokenizer):
    for name, seconds in (("a", 0.4), ("b", 1.1), ("c", 0.7)):
        soundfile.write(tmp_path / f"{name}.wav", np.full(round(16000 * seconds), 0.1), 16000)
    write_manifest(tmp_path / "m.jsonl", ROWS)
    source = WaveformSource(lambda samples: samples // 400)
    prompt = PromptBuilder(TEMPLATE, tokenizer, num_tokens)
    data = AudioTextDataset(select_rows([tmp_path / "m.jsonl"]), source, prompt)
    assert [len(clip) for clip in data[1].clips] == [6400, 9600]
    assert data.lengths.tolist() == [len(item.input_ids) for item in data]
    assert collate(list(data)).samples.tolist() == [6400, 6400, 9600, 11200, 6400]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("further_audio", {"audio": "b.wav"}, "list of objects with audio"),
        ("further_audio", [{"start": 1}], "list of objects with audio"),
        ("further_audio", [{"audio": "b.wav", "duration": 0}], "list of objects with audio"),
        ("history", [{"instruction": "hi"}], "instruction and target"),
    ],
)
def test_invalid_clips_and_turns_are_refused(tmp_path, field, value, message):
    with pytest.raises(ManifestError, match=f'row 1, field "{field}".*{message}'):
        write_manifest(tmp_path / "m.jsonl", [ROWS[0] | {field: value}])
