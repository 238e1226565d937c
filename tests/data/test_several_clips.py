"""Rows with several clips, and rows that are too long: what is heard, counted, cut or refused."""

import logging

import numpy as np
import pytest
import soundfile
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from audiolm_lite.data.batching import collate
from audiolm_lite.data.dataset import AudioTextDataset, DatasetError
from audiolm_lite.data.lengths import largest
from audiolm_lite.data.manifest import ManifestError, write_manifest
from audiolm_lite.features.keys import clips_of, feature_key
from audiolm_lite.features.store import FeatureStore
from audiolm_lite.features.writer import FeatureWriter
from audiolm_lite.language.prompt import PromptError, PromptTemplate
from audiolm_lite.modeling.batch import AUDIO_SLOT

TEMPLATE = "{bos}{turn}{audio}{instruction}{answer}{eos}"
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


@pytest.fixture(scope="module")
def tokenizer():
    alphabet = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(alphabet, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|eos|>", bos_token="<|bos|>")


@pytest.fixture
def dataset(tmp_path, tokenizer):
    """Build the dataset of some rows over stored features: clip a is filled with 1, b with 2, c with 3."""
    with FeatureWriter(tmp_path / "store", {"encoder": "made", "frame_seconds": 0.04}) as writer:
        for row in ROWS:
            for clip in clips_of(row):
                name = clip["audio"][0]
                if feature_key(clip) not in writer:
                    writer.add(feature_key(clip), torch.full((1, FRAMES[name], 2), "abc".index(name) + 1.0))

    def build(rows=ROWS, template=TEMPLATE, **options):
        write_manifest(tmp_path / "m.jsonl", rows)
        store = FeatureStore(tmp_path / "store")
        return AudioTextDataset(
            [tmp_path / "m.jsonl"], PromptTemplate(template), tokenizer, num_tokens, store=store, **options
        )

    return build


def test_all_clips_are_heard_in_reading_order(dataset, tokenizer):
    data = dataset()
    one, two, chat = data
    assert [int(clip[0, 0, 0]) for clip in two.clips] == [1, 2] and [int(c[0, 0, 0]) for c in chat.clips] == [3, 1]
    assert data.lengths.tolist() == [len(item.input_ids) for item in (one, two, chat)]
    runs = "".join("#" if token == AUDIO_SLOT else "." for token in two.input_ids).split(".")
    assert [len(run) for run in runs if run] == [2, 3]
    batch = collate([one, two, chat])
    assert batch.frames.tolist() == [4, 4, 6, 9, 4] and batch.audio_rows.tolist() == [0, 1, 1, 2, 2]


@pytest.mark.parametrize("audio", ["zeros", "shuffled"])
def test_controls_hear_as_many_other_clips(dataset, audio):
    rows = [*ROWS, {"id": "b", "audio": "b.wav", "start": 0.5, "instruction": "what?", **COMMON}]
    plain, other = dataset(rows), dataset(rows, audio=audio, seed=3)
    for index in range(4):
        item = other[index]
        assert other.lengths[index] == len(item.input_ids) and len(item.clips) == len(plain[index].clips)
        assert not torch.equal(item.clips[0], plain[index].clips[0])
        assert audio == "shuffled" or not any(clip.any() for clip in item.clips)


def test_live_audio_of_several_clips(tmp_path, tokenizer):
    for name, seconds in (("a", 0.4), ("b", 1.1), ("c", 0.7)):
        soundfile.write(tmp_path / f"{name}.wav", np.full(round(16000 * seconds), 0.1), 16000)
    write_manifest(tmp_path / "m.jsonl", ROWS)
    template = PromptTemplate(TEMPLATE)
    data = AudioTextDataset(
        [tmp_path / "m.jsonl"], template, tokenizer, num_tokens, encoder_frames=lambda samples: samples // 400
    )
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
def test_wrong_clips_and_turns_are_refused(tmp_path, field, value, message):
    with pytest.raises(ManifestError, match=f'row 1, field "{field}".*{message}'):
        write_manifest(tmp_path / "m.jsonl", [ROWS[0] | {field: value}])


LONG = [
    {"id": "short", "audio": "a.wav", "instruction": "what?", "heard": "ab", **COMMON},
    {"id": "long", "audio": "c.wav", "instruction": "what?", "heard": "abcdefgh", **COMMON},
]
WITH_FIELD = "{bos}{audio}{instruction}{heard}{answer}{eos}"


def test_long_rows_are_an_error_or_give_way_by_the_rule(dataset, tokenizer, caplog):
    plain = dataset(LONG, WITH_FIELD)
    short, long = plain.lengths.tolist()
    with pytest.raises(DatasetError, match=f'1 rows have more than max_tokens {long - 1}, the first is "long"'):
        dataset(LONG, WITH_FIELD, max_tokens=long - 1)
    assert dataset(LONG, WITH_FIELD, max_tokens=long).lengths.tolist() == [short, long]
    caplog.set_level(logging.WARNING)

    cut = dataset(LONG, WITH_FIELD, max_tokens=long - 3, shorten="heard")
    assert "1 of 2 rows have more than" in caplog.text and 'their field "heard" is cut' in caplog.text
    assert cut.lengths.tolist() == [short, long - 3] and cut[0].input_ids == plain[0].input_ids
    text = tokenizer.decode([token for token in cut[1].input_ids if token != AUDIO_SLOT]).replace(" ", "")
    assert text == "<|bos|>what?abcdefirst<|eos|>" and torch.equal(cut[1].features, plain[1].features)

    cut = dataset(LONG, WITH_FIELD, max_tokens=long - 2, shorten="audio")
    assert cut[1].input_ids.count(AUDIO_SLOT) == plain[1].input_ids.count(AUDIO_SLOT) - 2 == num_tokens(5)
    assert cut[1].features.shape[1] == 5 and len(cut[1].input_ids) <= cut.lengths[1]

    dropped = dataset(LONG, WITH_FIELD, max_tokens=long - 1, shorten="drop")
    assert [row["id"] for row in dropped.rows] == ["short"] and dropped.left_out == ["long"]


def test_what_cannot_be_cut_enough_is_refused(dataset):
    with pytest.raises(PromptError, match='field "heard" has only 8'):
        dataset(LONG, WITH_FIELD, max_tokens=16, shorten="heard")
    with pytest.raises(PromptError, match='no field "speaker" to cut'):
        dataset(LONG, WITH_FIELD, max_tokens=20, shorten="speaker")
    for options in ({}, {"max_tokens": 20, "audio": "zeros"}):
        with pytest.raises(DatasetError, match="shorten goes with max_tokens"):
            dataset(LONG, WITH_FIELD, shorten="heard", **options)
    with pytest.raises(DatasetError, match="too little audio"):
        dataset(LONG, WITH_FIELD, max_tokens=16, shorten="audio")[1]


def test_largest():
    assert [largest(lambda n, limit=limit: n <= limit, 7) for limit in (0, 1, 6, 7, 9)] == [0, 1, 6, 7, 7]
