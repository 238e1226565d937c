"""Audio files that training cannot read are set aside, and the run takes the same steps however often it is stopped."""

import json

import pytest
import soundfile

from audiolm_lite.audio.errors import AudioError
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.data.manifest import read_manifest, write_manifest
from audiolm_lite.training.bad_audio import LIST, BadAudioError
from audiolm_lite.training.brain import AudioLMBrain
from audiolm_lite.training.run import train_stage
from tests.training.test_build import make_corpus
from tests.training.test_run_identity import copy
from tests.training.toy import outcome

LIVE = ["--train_encoder", "true", "--device", "cpu", "--ckpt_interval_minutes", "1e-9", "--epochs", "2"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = make_corpus(tmp_path_factory.mktemp("original"))
    for name in ("train.jsonl", "valid.jsonl"):  # with durations, no audio is opened before training reads it
        rows = [dict(row) for row in read_manifest(root / name)]
        for row in rows:
            row["duration"] = soundfile.info(root / row["audio"]).duration
        write_manifest(root / name, rows)
    return root


@pytest.fixture
def corpus(original, tmp_path):
    """A copy of the corpus in which two files of training are damaged, one of them also one of validation."""
    corpus = copy(original, tmp_path / "corpus")
    for name in ("2.wav", "9.wav"):
        (corpus / name).write_bytes(b"damaged")
    return corpus


def command(corpus, *more, out="out"):
    return [str(corpus / "stage.yaml"), "--output_root", str(corpus / out), *LIVE, *more]


def finished(corpus, out="out"):
    return json.loads((corpus / out / "stage_1" / "finished.json").read_text())


def listed(corpus, out="out"):
    lines = (corpus / out / "stage_1" / LIST).read_text().splitlines()
    return sorted((json.loads(line)["read"], json.loads(line)["id"]) for line in lines)


# With 40 tokens per batch some batches have a damaged row alone, and one window of two such batches could be skipped.
@pytest.mark.parametrize("more", [["--batch_tokens", "40"], ["--num_workers", "1", "--packing", "true"]])
def test_damaged_files_are_set_aside_logged_and_counted(corpus, caplog, more):
    brain = train_stage(command(corpus, *more))
    assert listed(corpus) == [("train", "tone-2"), ("train", "tone-9"), ("valid", "tone-2")]
    assert finished(corpus)["bad_audio"] == 2 and brain.bad_audio.files == 2
    assert caplog.text.count("Set aside (train, ") == 2 and "9.wav: " in caplog.text and 'row "tone-9"' in caplog.text
    steps = [json.loads(line) for line in (brain.folder / "losses.jsonl").read_text().splitlines()]
    for epoch in (1, 2):
        assert sum(step["samples"] for step in steps if step["epoch"] == epoch) == 10
    assert all(step["loss"] is not None or step["samples"] == 0 for step in steps) and brain.progress.skipped == 0


def test_the_steps_are_those_of_a_run_without_the_damaged_rows_where_batches_are_the_same(corpus, original, tmp_path):
    """One batch per epoch, from which the rows are missing: the losses are those of the other ten rows."""
    damaged = train_stage(command(corpus, "--batch_tokens", "4096"))
    clean = copy(original, tmp_path / "clean")
    write_manifest(clean / "train.jsonl", [r for r in read_manifest(clean / "train.jsonl") if r["id"] not in BAD])
    write_manifest(clean / "valid.jsonl", [r for r in read_manifest(clean / "valid.jsonl") if r["id"] not in BAD])
    other = train_stage(command(clean, "--batch_tokens", "4096"))
    losses = [
        [json.loads(line)["loss"] for line in (brain.folder / "losses.jsonl").read_text().splitlines()]
        for brain in (damaged, other)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert damaged.summary["metrics"] == pytest.approx(other.summary["metrics"], rel=1e-5)


BAD = ("tone-2", "tone-9")


def interrupt_at(monkeypatch, step):
    fit_batch = AudioLMBrain.fit_batch

    def interrupted(brain, window):
        if brain.progress.step == step:
            raise KeyboardInterrupt
        return fit_batch(brain, window)

    monkeypatch.setattr(AudioLMBrain, "fit_batch", interrupted)


def test_an_interrupted_run_ends_bit_for_bit_the_same_even_if_a_file_was_repaired(corpus, monkeypatch):
    """Each batch has one or two rows. What was set aside before a checkpoint stays so."""
    more = ["--batch_tokens", "36", "--llm.lora.dropout", "0.2", "--trainable", "['adapter.*', 'llm.*lora_*']"]
    train_stage(command(corpus, *more, out="whole"))
    steps = len((corpus / "whole" / "stage_1" / "losses.jsonl").read_text().splitlines())
    repaired = (corpus / "1.wav").read_bytes()
    for step in (2, steps // 2 - 1, steps // 2 + 2):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt_at(patch, step)
            train_stage(command(corpus, *more))
        if step > steps / 2:  # in the second epoch, all are known
            (corpus / "2.wav").write_bytes(repaired)
    train_stage(command(corpus, *more))
    assert outcome(corpus / "out") == outcome(corpus / "whole") and listed(corpus) == listed(corpus, "whole")


def test_more_files_than_allowed_end_the_run_which_continues_with_a_higher_limit(corpus):
    with pytest.raises(BadAudioError, match=r"1 audio files .*max_bad_audio 0; the newest: .*wav: .*row \"tone-"):
        train_stage(command(corpus, "--max_bad_audio", "0"))
    with pytest.raises(BadAudioError, match="2 audio files .*more than max_bad_audio 1"):
        train_stage(command(corpus, "--max_bad_audio", "1"))
    assert train_stage(command(corpus, "--max_bad_audio", "2"))


def test_files_whose_length_cannot_be_read_are_left_out_and_counted(original, tmp_path):
    corpus = make_corpus(tmp_path)  # without durations in the manifests
    (corpus / "9.wav").write_bytes(b"damaged")
    brain = train_stage(command(corpus, "--max_bad_audio", "1"))
    assert listed(corpus) == [("train", "tone-9")] and brain.summary["bad_audio"] == 1
    with pytest.raises(BadAudioError, match="more than max_bad_audio 0"):
        train_stage(command(corpus, "--max_bad_audio", "0", out="other"))


def test_a_ctc_start_and_answers_of_the_validation_set_damaged_rows_aside(corpus):
    answers = "{metrics: {sound_class: {type: asr, normaliser: none}, caption: {type: asr}}}"
    rows = [{**row, "task": "asr"} for row in read_manifest(corpus / "train.jsonl")]
    write_manifest(corpus / "train.jsonl", rows)
    more = ["--ctc_start", "{passes: 1, batch_tokens: 20}", "--alignment_init", "{ridge: 1.0, clips: 12}"]
    brain = train_stage(command(corpus, *more, "--valid_answers", answers))
    assert {where for where, _ in listed(corpus)} == {"alignment_init", "ctc_start", "train", "valid"}
    assert brain.bad_audio.files == 2 and "sound_class/wer" in brain.summary["metrics"]


def test_rows_may_be_removed_and_repaired_by_an_explicit_option(corpus, original, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 3)
        train_stage(command(corpus, "--batch_tokens", "36"))
    rows = [row for row in read_manifest(corpus / "train.jsonl") if row["id"] != "tone-2"]
    write_manifest(corpus / "train.jsonl", rows)
    (corpus / "9.wav").write_bytes((original / "9.wav").read_bytes())
    same = command(corpus, "--batch_tokens", "36")
    with pytest.raises(ConfigError, match=r"items was 12, is now 11.*train.jsonl.*--accept_changed_data true"):
        train_stage(same)
    brain = train_stage([*same, "--accept_changed_data", "true"])
    assert [line["step"] for line in map(json.loads, (brain.folder / "losses.jsonl").open())][:4] == [1, 2, 3, 4]
    assert listed(corpus) == [("valid", "tone-2")]
    accepted = finished(corpus)["accepted_changes"]
    assert "items was 12, is now 11" in accepted and any("train.jsonl" in line for line in accepted)
    assert train_stage(same) is None  # its own data now
    with pytest.raises(ConfigError, match="epochs was 2, is now 3"):
        train_stage([*same, "--epochs", "3", "--accept_changed_data", "true"])


def test_other_lengths_of_audio_files_are_noticed(original, tmp_path, monkeypatch):
    corpus = make_corpus(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 1)
        train_stage(command(corpus))
    (corpus / "3.wav").write_bytes((corpus / "8.wav").read_bytes())
    with pytest.raises(ConfigError, match="the lengths of its rows have changed"):
        train_stage(command(corpus))


def test_nothing_readable_is_an_error(corpus):
    for file in corpus.glob("*.wav"):
        file.write_bytes(b"damaged")
    with pytest.raises((AudioError, BadAudioError, ConfigError, ValueError), match="wav"):
        train_stage(command(corpus, "--max_bad_audio", "100"))
