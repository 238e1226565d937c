"""The dataset: prompts and audio of rows, lengths, filters, and controls that must not hear."""

import json
import logging
import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import soundfile
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from audiolm_lite.data.batching import LengthBucketSampler, collate
from audiolm_lite.data.dataset import AudioTextDataset, DatasetError
from audiolm_lite.data.manifest import write_manifest
from audiolm_lite.features.keys import feature_key
from audiolm_lite.features.store import FeatureStore
from audiolm_lite.features.writer import FeatureWriter
from audiolm_lite.language.prompt import PromptError, PromptTemplate
from audiolm_lite.modeling.batch import AUDIO_SLOT

LAYERS, DIM, STRIDE = 2, 4, 2
TEMPLATE = "{bos}{audio}{instruction}{answer}{eos}"


def num_tokens(frames):
    return frames // STRIDE


def row(name, clip, task="asr", split="train", **further):
    text = {"instruction": "say" * (1 + len(name) % 3), "target": name, "dataset": "made"}
    return {"id": name, "audio": f"audio/{clip}.wav", "task": task, "split": split, **text, **further}


@pytest.fixture(scope="module")
def tokenizer():
    alphabet = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(alphabet, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|eos|>", bos_token="<|bos|>")


@pytest.fixture
def made(tmp_path):
    """A manifest of six clips, two of them with two rows, and their features: clip c is filled with c + 1."""
    rows = [row(f"row{clip}", clip, task="class" if clip % 2 else "asr") for clip in range(6)]
    rows += [row("again0", 0), row("again1", 1, split="test")]
    write_manifest(tmp_path / "train.jsonl", rows)
    with FeatureWriter(tmp_path / "store", {"encoder": "made", "frame_seconds": 0.04}) as writer:
        for clip in range(6):
            writer.add(feature_key(rows[clip]), torch.full((LAYERS, 4 + 3 * clip, DIM), clip + 1.0))
    return tmp_path


@pytest.fixture
def dataset(made, tokenizer):
    def build(**options):
        options = {"store": FeatureStore(made / "store")} | options
        return AudioTextDataset([made / "train.jsonl"], PromptTemplate(TEMPLATE), tokenizer, num_tokens, **options)

    return build


def test_items_have_their_audio_and_exact_lengths(dataset):
    data = dataset()
    assert len(data) == 8 and data.left_out == []
    for index, item in enumerate(data):
        clip = int(item.row["audio"][6])
        assert item.features.shape == (LAYERS, 4 + 3 * clip, DIM) and (item.features == clip + 1).all()
        assert item.input_ids.count(AUDIO_SLOT) == num_tokens(4 + 3 * clip)
        assert data.lengths[index] == len(item.input_ids)


def test_without_the_answer_items_are_prompts(dataset):
    data, prompts = dataset(), dataset(with_answer=False)
    for index in range(len(data)):
        prompt = prompts[index].input_ids
        assert data[index].input_ids[: len(prompt)] == prompt and prompts.lengths[index] == len(prompt)
        assert len(data[index].input_ids) == len(prompt) + len(data.rows[index]["target"]) + 1


def test_tasks_and_split_choose_rows(dataset):
    assert [r["id"] for r in dataset(tasks=["class"]).rows] == ["row1", "row3", "row5"]
    assert [r["id"] for r in dataset(split="test").rows] == ["again1"]
    with pytest.raises(DatasetError, match=r"tasks \['caption'\].*\('asr', 'test'\)"):
        dataset(tasks=["caption"])


@pytest.mark.parametrize("audio", ["shuffled", "zeros"])
def test_controls_hear_another_clip_or_nothing(dataset, audio):
    data, control = dataset(), dataset(audio=audio)
    frames = {}
    for own, other in zip(data, control):
        assert own.row == other.row
        assert own.features.shape != other.features.shape  # also the length says nothing
        if audio == "zeros":
            assert other.features.abs().sum() == 0
        else:
            assert other.features.unique().tolist() != own.features.unique().tolist()
        assert other.input_ids.count(AUDIO_SLOT) == num_tokens(other.features.shape[1])
        frames.setdefault(own.row["audio"], set()).add(other.features.shape[1])
    assert all(len(several) == 1 for several in frames.values())  # rows of one clip hear one clip
    assert len(frames) == len(set.union(*frames.values()))  # and every clip is heard
    again, otherwise = dataset(audio=audio), [dataset(audio=audio, seed=seed).lengths for seed in (1, 2, 3)]
    assert (again.lengths == control.lengths).all()
    assert any((lengths != control.lengths).any() for lengths in otherwise)


def test_rejected_audio_is_left_out_with_a_warning_and_lost_features_are_an_error(dataset, made, caplog):
    rows = [row("row0", 0), row("gone", 9), row("gone too", 9)]
    write_manifest(made / "train.jsonl", rows)
    with pytest.raises(DatasetError, match='2 of 3 rows have no features.*"gone".*run the feature extraction'):
        dataset()
    rejected = json.dumps({"key": feature_key(rows[1]), "reason": "cannot be decoded"})
    (made / "store" / "rejected-00.jsonl").write_text(rejected + "\n")
    with caplog.at_level(logging.WARNING):
        data = dataset()
    assert [r["id"] for r in data.rows] == ["row0"] and data.left_out == ["gone", "gone too"]
    assert "2 of 3 rows are left out" in caplog.text


def test_two_files_of_one_key_are_an_error(made, tokenizer):
    (made / "other").mkdir()
    write_manifest(made / "other" / "train.jsonl", [row("x", 0)])
    manifests = [made / "train.jsonl", made / "other" / "train.jsonl"]
    with pytest.raises(DatasetError, match="share one key"):
        AudioTextDataset(manifests, PromptTemplate(TEMPLATE), tokenizer, num_tokens, store=FeatureStore(made / "store"))


def test_faults_of_rows_show_before_training(dataset, made, tokenizer):
    with pytest.raises(DatasetError, match='row "row0".*too short for one audio token'):
        AudioTextDataset(
            [made / "train.jsonl"],
            PromptTemplate(TEMPLATE),
            tokenizer,
            lambda frames: frames // 5,
            store=FeatureStore(made / "store"),
        )
    with pytest.raises(PromptError, match='row "row0".*transcript'):
        AudioTextDataset(
            [made / "train.jsonl"],
            PromptTemplate("{audio}{transcript}{answer}{eos}"),
            tokenizer,
            num_tokens,
            store=FeatureStore(made / "store"),
        )
    with pytest.raises(DatasetError, match="one of them"):
        dataset(store=None)
    with pytest.raises(DatasetError, match='"normal", "zeros" or "shuffled"'):
        dataset(audio="none")
    write_manifest(made / "train.jsonl", [row("a", 0), row("b", 0)])
    with pytest.raises(DatasetError, match="two clips"):
        dataset(audio="shuffled")


def test_batches_from_workers(dataset):
    data = dataset()
    sampler = LengthBucketSampler(data.lengths, 80)
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=collate, num_workers=1)
    seen = []
    for batch in loader:
        assert batch.attention_mask.numel() <= 80
        assert (batch.input_ids == AUDIO_SLOT).sum(dim=1).equal(batch.frames // STRIDE)
        seen += batch.ids
    assert sorted(seen) == sorted(r["id"] for r in data.rows)
    assert pickle.loads(pickle.dumps(data))[3].features.equal(data[3].features)


@pytest.mark.parametrize("audio", ["normal", "shuffled", "zeros"])
def test_waveforms_where_there_is_no_store(tmp_path, tokenizer, audio):
    rng = np.random.default_rng(0)
    (tmp_path / "audio").mkdir()
    for clip, seconds in enumerate((0.5, 1.0, 1.5)):
        soundfile.write(tmp_path / f"audio/{clip}.wav", 0.1 * rng.standard_normal(int(16000 * seconds)), 16000)
    rows = [row("a", 0), row("b", 1), row("c", 2, start=0.5, duration=0.25), row("d", 2, start=0.5)]
    write_manifest(tmp_path / "m.jsonl", rows)
    data = AudioTextDataset(
        [tmp_path / "m.jsonl"],
        PromptTemplate(TEMPLATE),
        tokenizer,
        num_tokens,
        encoder_frames=lambda samples: samples // 320,
        audio=audio,
    )
    own = [8000, 16000, 4000, 16000]
    for index, item in enumerate(data):
        samples = len(item.waveform)
        assert item.features is None and data.lengths[index] == len(item.input_ids)
        assert item.input_ids.count(AUDIO_SLOT) == samples // 320 // STRIDE
        assert samples == own[index] or audio != "normal"
        assert bool(item.waveform.any()) == (audio != "zeros")
    assert collate(list(data)).samples.tolist() == [len(item.waveform) for item in data]


def test_a_start_past_the_end_and_a_length_the_encoder_refuses_name_their_row(tmp_path, tokenizer):
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio/0.wav", np.full(16000, 0.1), 16000)

    def encoder_frames(samples):
        if samples > 8000:
            raise ValueError("longer than 0.5 s")
        return samples // 320

    for bad, message in (
        (row("late", 0, start=1.5), 'row "late": its start 1.5 s is past the end of .*0.wav'),
        (row("long", 0), 'row "long", audio/0.wav: longer than 0.5 s'),
    ):
        write_manifest(tmp_path / "m.jsonl", [row("fine", 0, duration=0.5), bad])
        with pytest.raises(DatasetError, match=message):
            AudioTextDataset(
                [tmp_path / "m.jsonl"],
                PromptTemplate(TEMPLATE),
                tokenizer,
                num_tokens,
                encoder_frames=encoder_frames,
            )


@pytest.fixture
def questioned(made):
    """The manifest without its instructions on rows of the task "asr", and two files of questions."""
    rows = [row(f"row{clip}", clip, task="class" if clip % 2 else "asr") for clip in range(6)]
    rows = [r | {"instruction": None} if r["task"] == "asr" else r for r in rows]
    write_manifest(made / "train.jsonl", rows, instruction_required=False)
    (made / "short.txt").write_text("why?\nwho?\n")
    (made / "long.txt").write_text("what is heard here?\n")
    return made


def test_rows_without_instruction_need_question_files(dataset, questioned):
    with pytest.raises(
        DatasetError, match='3 rows of .*train.jsonl have no instruction, the first is "row0".*or \\[\\]'
    ):
        dataset()
    assert len(dataset(tasks=["class"])) == 3
    data = dataset(question_files=[])
    assert {r["instruction"] for r in data.rows if r["task"] == "asr"} == {"what does the audio mean?"}
    for index, item in enumerate(data):
        assert len(item.input_ids) == data.lengths[index]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_drawn_questions_do_not_depend_on_workers_and_fit_the_lengths(dataset, questioned, num_workers):
    data = dataset(question_files=[questioned / "short.txt", questioned / "long.txt"])
    sampler = LengthBucketSampler(data.lengths, 90)
    drawn = []
    for epoch in range(4):
        data.set_epoch(epoch)
        sampler.set_epoch(epoch)
        loader = DataLoader(data, batch_sampler=sampler, collate_fn=list, num_workers=num_workers)
        items = {item.row["id"]: item for batch in loader for item in batch}
        drawn.append({name: item.row["instruction"] for name, item in items.items()})
        assert drawn[-1] == {r["id"]: r["instruction"] for r in data.rows}
        for index, r in enumerate(data.rows):
            item = items[r["id"]]
            missing = len("what is heard here?") - len(r["instruction"]) if r["task"] == "asr" else 0
            assert len(item.input_ids) + missing == data.lengths[index]
    assert len({tuple(sorted(epoch.items())) for epoch in drawn}) > 1
    assert {epoch["row1"] for epoch in drawn} == {row("row1", 1)["instruction"]}
    again = dataset(question_files=[questioned / "short.txt", questioned / "long.txt"])
    again.set_epoch(3)
    assert {r["id"]: r["instruction"] for r in again.rows} == drawn[3]


def test_manifests_are_mixed_by_weight_or_temperature(made, tokenizer, caplog):
    rows = [row(f"row{clip}", clip) for clip in range(6)]
    write_manifest(made / "a.jsonl", rows[:5])
    write_manifest(made / "b.jsonl", rows[5:])

    def build(**options):
        store = FeatureStore(made / "store")
        files = [made / "a.jsonl", made / "b.jsonl"]
        return AudioTextDataset(files, PromptTemplate(TEMPLATE), tokenizer, num_tokens, store=store, **options)

    assert build().mixture is None
    with caplog.at_level(logging.INFO):
        data = build(weights=[1, 2])
    assert data.mixture.counts == [2, 4] and [r["id"] for r in data.rows] == [r["id"] for r in rows]
    tokens = [int(data.lengths[data.mixture.epoch(1)[part]].sum()) for part in (slice(0, 2), slice(2, 6))]
    assert f"a.jsonl: 2 of 5 rows (33.3 %), {tokens[0]} tokens" in caplog.text
    assert f"b.jsonl: 4 of 1 rows (66.7 %), {tokens[1]} tokens" in caplog.text
    assert build(temperature=1).mixture.counts == [5, 1]


def held(data):
    """How many bytes of a dataset's own arrays a spawned worker gets as a copy, not as shared memory."""
    return len(ForkingPickler.dumps((data.rows, data._lengths)))


def test_workers_get_no_copy_of_the_rows(made, tokenizer):
    sizes = []
    for count in (200, 2000):
        write_manifest(made / "many.jsonl", (row(f"row{i}", i % 6) for i in range(count)))
        data = AudioTextDataset(
            [made / "many.jsonl"], PromptTemplate(TEMPLATE), tokenizer, num_tokens, store=FeatureStore(made / "store")
        )
        sizes.append(held(data))
    assert abs(sizes[1] - sizes[0]) < 100
