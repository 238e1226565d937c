"""The dataset: prompts and audio of rows, lengths, selection, controls and mixing."""

import json
import logging
import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from audiolm_lite.audio.errors import AudioError
from audiolm_lite.data.batching import LengthBucketSampler, collate
from audiolm_lite.data.clip_sources import FeatureSource, WaveformSource
from audiolm_lite.data.dataset import AudioTextDataset
from audiolm_lite.data.manifest import write_manifest
from audiolm_lite.data.mixing import temperature_weights
from audiolm_lite.data.prompt_builder import PromptBuilder
from audiolm_lite.data.questions import Questions
from audiolm_lite.data.selected_rows import DatasetError, select_rows
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
    """Build the dataset of some manifests over the stored features."""

    def build(*manifests, selection=None, template=TEMPLATE, stride=STRIDE, with_answer=True, **options):
        rows = select_rows([made / name for name in manifests or ["train.jsonl"]], **(selection or {}))
        prompt = PromptBuilder(PromptTemplate(template), tokenizer, lambda frames: frames // stride, with_answer)
        return AudioTextDataset(rows, FeatureSource(FeatureStore(made / "store")), prompt, **options)

    return build


@pytest.fixture
def live_dataset(tmp_path, tokenizer):
    """Build the dataset of m.jsonl over audio files."""

    def build(num_frames, **options):
        prompt = PromptBuilder(PromptTemplate(TEMPLATE), tokenizer, num_tokens)
        return AudioTextDataset(select_rows([tmp_path / "m.jsonl"]), WaveformSource(num_frames), prompt, **options)

    return build


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([{"instruction": "say"}, {"instruction": "write"}], None),  # wordings of one question
        ([{"task": "class"}, {"task": "class"}], None),
        ([{"task": "class"}, {"task": "class", "instruction": None}], None),  # drawn from a file
        ([{"task": "class"}, {"task": "class", "instruction": "who?"}], 'sound?" .task class.* and "who?" .task class'),
        ([{}, {"task": "class", "instruction": "who?"}], 'sound?" .task asr, row "0".* and "who?"'),
    ],
)
def test_different_questions_need_an_instruction_slot(made, tokenizer, changes, message):
    rows = [row(str(i), i, instruction="which sound?") | change for i, change in enumerate(changes)]
    write_manifest(made / "asked.jsonl", rows, instruction_required=False)
    selected = select_rows([made / "asked.jsonl"], questions=Questions([], 1))

    def build(template):
        prompt = PromptBuilder(PromptTemplate(template), tokenizer, num_tokens)
        return AudioTextDataset(selected, FeatureSource(FeatureStore(made / "store")), prompt)

    build(TEMPLATE)
    if message is None:
        assert len(build("{audio}{answer}{eos}")) == 2
        return
    with pytest.raises(PromptError, match=message.replace("?", "[?]") + ".*add {instruction} to the template"):
        build("{audio}{answer}{eos}")


def test_items_have_their_audio_and_exact_lengths(dataset):
    data = dataset()
    assert len(data) == 8 and data.left_out == []
    for index, item in enumerate(data):
        clip = int(item.row["audio"][6])
        assert item.features.shape == (LAYERS, 4 + 3 * clip, DIM) and (item.features == clip + 1).all()
        assert item.input_ids.count(AUDIO_SLOT) == num_tokens(4 + 3 * clip)
        assert data.lengths[index] == len(item.input_ids)
        assert item.seconds == pytest.approx(0.04 * (4 + 3 * clip))


def test_without_the_answer_items_are_prompts(dataset):
    data, prompts = dataset(), dataset(with_answer=False)
    without = data.without_answers()
    assert (without.lengths == data.lengths).all()
    for index in range(len(data)):
        prompt = prompts[index].input_ids
        assert data[index].input_ids[: len(prompt)] == prompt and prompts.lengths[index] == len(prompt)
        assert len(data[index].input_ids) == len(prompt) + len(data.rows[index]["target"]) + 1
        assert without[index].input_ids == prompt


def test_tasks_and_split_select_rows(dataset):
    assert [r["id"] for r in dataset(selection={"tasks": ["class"]}).rows] == ["row1", "row3", "row5"]
    assert [r["id"] for r in dataset(selection={"split": "test"}).rows] == ["again1"]
    with pytest.raises(DatasetError, match=r"tasks \['caption'\].*\('asr', 'test'\)"):
        dataset(selection={"tasks": ["caption"]})


@pytest.mark.parametrize("control", ["shuffled", "zeros"])
def test_controls_replace_the_audio(dataset, control):
    data, other_data = dataset(), dataset(control=control)
    frames = {}
    for own, other in zip(data, other_data):
        assert own.row == other.row
        assert own.features.shape != other.features.shape  # the length must not reveal the clip either
        if control == "zeros":
            assert other.features.abs().sum() == 0
        else:
            assert other.features.unique().tolist() != own.features.unique().tolist()
        assert other.input_ids.count(AUDIO_SLOT) == num_tokens(other.features.shape[1])
        frames.setdefault(own.row["audio"], set()).add(other.features.shape[1])
    assert all(len(several) == 1 for several in frames.values())  # rows of one clip get the same other clip
    assert len(frames) == len(set.union(*frames.values()))  # and every clip is used
    again, otherwise = dataset(control=control), [dataset(control=control, seed=seed).lengths for seed in (1, 2, 3)]
    assert (again.lengths == other_data.lengths).all()
    assert any((lengths != other_data.lengths).any() for lengths in otherwise)


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
    write_manifest(made / "train.jsonl", rows[1:])
    with pytest.raises(DatasetError, match="rejected the audio of all 2 rows"):
        dataset()


def test_two_files_of_one_key_are_an_error(dataset, made):
    (made / "other").mkdir()
    write_manifest(made / "other" / "train.jsonl", [row("x", 0)])
    with pytest.raises(DatasetError, match="have the same key"):
        dataset("train.jsonl", "other/train.jsonl")


def test_faults_of_rows_are_found_before_training(dataset, made):
    with pytest.raises(DatasetError, match='row "row0".*too short for one audio token'):
        dataset(stride=5)
    with pytest.raises(PromptError, match='row "row0".*transcript'):
        dataset(template="{audio}{transcript}{answer}{eos}")
    with pytest.raises(DatasetError, match='"normal", "zeros" or "shuffled"'):
        dataset(control="none")
    write_manifest(made / "train.jsonl", [row("a", 0), row("b", 0)])
    with pytest.raises(DatasetError, match="two clips"):
        dataset(control="shuffled")


def test_batches_from_workers(made, tokenizer):
    prompt = PromptBuilder(PromptTemplate(TEMPLATE), tokenizer, num_tokens)
    data = AudioTextDataset(select_rows([made / "train.jsonl"]), FeatureSource(FeatureStore(made / "store")), prompt)
    batches = LengthBucketSampler(data.lengths, 80).batches(0)
    loader = DataLoader(data, batch_sampler=batches, collate_fn=collate, num_workers=1)
    ids = []
    for batch in loader:
        assert batch.attention_mask.numel() <= 80
        assert (batch.input_ids == AUDIO_SLOT).sum(dim=1).equal(batch.frames // STRIDE)
        ids += batch.ids
    assert sorted(ids) == sorted(r["id"] for r in data.rows)
    assert pickle.loads(pickle.dumps(data))[3].features.equal(data[3].features)


@pytest.mark.parametrize("control", ["normal", "shuffled", "zeros"])
def test_waveforms_without_a_feature_store(tmp_path, live_dataset, control):
    rng = np.random.default_rng(0)
    (tmp_path / "audio").mkdir()
    for clip, seconds in enumerate((0.5, 1.0, 1.5)):
        soundfile.write(tmp_path / f"audio/{clip}.wav", 0.1 * rng.standard_normal(int(16000 * seconds)), 16000)
    rows = [row("a", 0), row("b", 1), row("c", 2, start=0.5, duration=0.25), row("d", 2, start=0.5)]
    write_manifest(tmp_path / "m.jsonl", rows)
    data = live_dataset(lambda samples: samples // 320, control=control)
    own = [8000, 16000, 4000, 16000]
    for index, item in enumerate(data):
        samples = len(item.waveform)
        assert item.features is None and data.lengths[index] == len(item.input_ids)
        assert item.input_ids.count(AUDIO_SLOT) == samples // 320 // STRIDE
        assert item.seconds == pytest.approx(samples / 16000)
        assert samples == own[index] or control != "normal"
        assert bool(item.waveform.any()) == (control != "zeros")
        assert len(data.own_clip(index)) == own[index]
    assert collate(list(data)).samples.tolist() == [len(item.waveform) for item in data]


def test_a_start_past_the_end_and_a_length_the_encoder_refuses_name_their_row(tmp_path, live_dataset):
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio/0.wav", np.full(16000, 0.1), 16000)

    def num_frames(samples):
        if samples > 8000:
            raise ValueError("longer than 0.5 s")
        return samples // 320

    for bad, message in (
        (row("late", 0, start=1.5), 'row "late": its start 1.5 s is past the end of .*0.wav'),
        (row("long", 0), 'row "long", audio/0.wav: longer than 0.5 s'),
    ):
        write_manifest(tmp_path / "m.jsonl", [row("fine", 0, duration=0.5), bad])
        with pytest.raises(DatasetError, match=message):
            live_dataset(num_frames)


def test_audio_that_has_changed_since_names_its_row(tmp_path, live_dataset):
    def num_frames(samples):
        if samples > 8000:
            raise ValueError("longer than 0.5 s")
        return samples // 320

    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio/0.wav", np.full(8000, 0.1), 16000)
    write_manifest(tmp_path / "m.jsonl", [row("grown", 0)])
    data = live_dataset(num_frames)
    soundfile.write(tmp_path / "audio/0.wav", np.full(16000, 0.1), 16000)
    with pytest.raises(DatasetError, match='row "grown", audio/0.wav: longer than 0.5 s'):
        data[0]
    (tmp_path / "audio/0.wav").write_bytes(b"damaged")
    with pytest.raises(AudioError, match='0.wav: .*row "grown"'):
        data[0]


@pytest.fixture
def questioned(made):
    """The manifest without the instructions of the task "asr", and two files of questions."""
    rows = [row(f"row{clip}", clip, task="class" if clip % 2 else "asr") for clip in range(6)]
    rows = [r | {"instruction": None} if r["task"] == "asr" else r for r in rows]
    write_manifest(made / "train.jsonl", rows, instruction_required=False)
    (made / "short.txt").write_text("why?\nwho?\n")
    (made / "long.txt").write_text("what is in the clip\n")
    return made


def test_rows_without_instruction_need_question_files(dataset, questioned):
    with pytest.raises(
        DatasetError, match='3 rows of .*train.jsonl have no instruction, the first is "row0".*or \\[\\]'
    ):
        dataset()
    assert len(dataset(selection={"tasks": ["class"]})) == 3
    data = dataset(selection={"questions": Questions([], 1)})
    assert {r["instruction"] for r in data.rows if r["task"] == "asr"} == {"what does the audio mean?"}
    for index, item in enumerate(data):
        assert len(item.input_ids) == data.lengths[index]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_drawn_questions_do_not_depend_on_workers_and_fit_the_lengths(dataset, questioned, num_workers):
    files = [questioned / "short.txt", questioned / "long.txt"]
    data = dataset(selection={"questions": Questions(files, 1)})
    sampler = LengthBucketSampler(data.lengths, 90)
    drawn = []
    for epoch in range(4):
        data.set_epoch(epoch)
        loader = DataLoader(data, batch_sampler=sampler.batches(epoch), collate_fn=list, num_workers=num_workers)
        items = {item.row["id"]: item for batch in loader for item in batch}
        drawn.append({name: item.row["instruction"] for name, item in items.items()})
        assert drawn[-1] == {r["id"]: r["instruction"] for r in data.rows}
        for index, r in enumerate(data.rows):
            item = items[r["id"]]
            missing = len("what is in the clip") - len(r["instruction"]) if r["task"] == "asr" else 0
            assert len(item.input_ids) + missing == data.lengths[index]
    assert len({tuple(sorted(epoch.items())) for epoch in drawn}) > 1
    assert {epoch["row1"] for epoch in drawn} == {row("row1", 1)["instruction"]}
    again = dataset(selection={"questions": Questions(files, 1)})
    again.set_epoch(3)
    assert {r["id"]: r["instruction"] for r in again.rows} == drawn[3]


def test_manifests_are_mixed_by_weight_or_temperature(dataset, made, caplog):
    rows = [row(f"row{clip}", clip) for clip in range(6)]
    write_manifest(made / "a.jsonl", rows[:5])
    write_manifest(made / "b.jsonl", rows[5:])
    data = dataset("a.jsonl", "b.jsonl")
    assert data.mixture is None
    with caplog.at_level(logging.INFO):
        data.mix([1, 2])
    assert data.mixture.counts == [2, 4] and [r["id"] for r in data.rows] == [r["id"] for r in rows]
    tokens = [int(data.lengths[data.mixture.epoch(1)[part]].sum()) for part in (slice(0, 2), slice(2, 6))]
    assert f"a.jsonl: 2 of 5 rows (33.3 %), {tokens[0]} tokens" in caplog.text
    assert f"b.jsonl: 4 of 1 rows (66.7 %), {tokens[1]} tokens" in caplog.text
    data.mix(temperature_weights(data.rows.sizes, 1))
    assert data.mixture.counts == [5, 1]


@pytest.mark.parametrize("control", ["normal", "shuffled"])
def test_spawned_workers_get_no_copy_of_the_rows(dataset, made, control):
    """What a dataset holds per row is passed in shared memory."""
    sizes = []
    for count in (200, 2000):
        write_manifest(made / "many.jsonl", (row(f"row{i}", i % 6) for i in range(count)))
        data = dataset("many.jsonl", control=control)
        sizes.append(len(ForkingPickler.dumps((data.rows, data._lengths, data._exchange))))
    assert abs(sizes[1] - sizes[0]) < 100
