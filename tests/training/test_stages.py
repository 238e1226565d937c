"""Tests of `--stages`: the same result as separate commands, freed memory, resume, and checks before training."""

import gc
import importlib.util
import sys
import weakref
from pathlib import Path

import pytest

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.training.brain import AudioLMBrain
from audiolm_lite.training.signals import Stopped
from audiolm_lite.training.stages import stage_commands
from tests.training.test_build import make_corpus

RECIPE = Path(__file__).parents[2] / "recipes/MiniASQA/ltu_as"
MORE = """trainable: ["adapter.*", "llm.*lora_*"]\nepochs: 2\n"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """YAML files of three stages; dropout shows whether each starts with its own random numbers."""
    root = make_corpus(tmp_path_factory.mktemp("corpus"))
    text = (root / "stage.yaml").read_text().replace("dropout: 0.0", "dropout: 0.2")
    before, _, after = text.partition('trainable: ["adapter.projection.*"]\n')
    (root / "stage_1.yaml").write_text(text + "alignment_init: {ridge: 1.0, clips: 12}\n")
    for stage in (2, 3):
        (root / f"stage_{stage}.yaml").write_text(before.replace("stage: 1", f"stage: {stage}") + MORE + after)
    return root


@pytest.fixture
def recipe():
    """The module of the library that a recipe's train.py calls."""
    spec = importlib.util.spec_from_file_location("recipe_train", RECIPE / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return sys.modules[module.main.__module__]


def trained(folder):
    return [(folder / f"stage_{stage}" / "trained.safetensors").read_bytes() for stage in (1, 2, 3)]


def test_one_command_trains_the_same_weights_as_three(corpus, tmp_path, recipe, monkeypatch):
    """Even if a signal stops it in the second stage; each model is freed before the next one is built."""
    for stage in (1, 2, 3):
        recipe.main([str(corpus / f"stage_{stage}.yaml"), "--output_root", str(tmp_path / "three"), "--device", "cpu"])

    built, build_model, fit_batch = [], recipe.build_model, AudioLMBrain.fit_batch

    def build_and_watch(hparams):
        assert not [model for model in built if model() is not None]
        model, tokenizer = build_model(hparams)
        built.append(weakref.ref(model))
        return model, tokenizer

    def stopped_once(brain, window):
        if brain.hparams.stage == 2:
            brain.signals.requested = "SIGTERM"
        return fit_batch(brain, window)

    command = [str(corpus / "stage_1.yaml"), "--stages", "1-3", "--output_root", str(tmp_path / "one")]
    command += ["--device", "cpu"]
    with monkeypatch.context() as patch:
        patch.setattr(AudioLMBrain, "fit_batch", stopped_once)
        with pytest.raises(Stopped):
            recipe.main(command)
    assert not (tmp_path / "one" / "stage_3").exists()
    gc.collect()
    monkeypatch.setattr(recipe, "build_model", build_and_watch)
    recipe.main(command)
    assert len(built) == 2
    assert trained(tmp_path / "one") == trained(tmp_path / "three")


def test_the_other_files_differ_in_their_number(corpus):
    given = ["--lr", "1", str(corpus / "stage_1.yaml"), "--seed", "4"]
    assert list(stage_commands(given)) == [given]
    command = ["--seed", "4", "--stages=2-3", str(corpus / "stage_1.yaml"), "--epochs", "1"]
    expected = [["--seed", "4", str(corpus / f"stage_{stage}.yaml"), "--epochs", "1"] for stage in (2, 3)]
    assert list(stage_commands(command)) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stage_1.yaml", "--stages", "1-4"], "--stages 1-4: file not found: .*stage_4.yaml"),
        (["stage_1.yaml", "--stages", "3-1"], "--stages is '3-1': write the first and the last stage"),
        (["stage_1.yaml", "--stages"], "--stages is ''"),
        (["stage.yaml", "--stages", "1-3"], "stage.yaml does not end in a stage number"),
        (["stage_1.yaml", "--stages", "1-3", "--stage", "2"], "--stage cannot be combined with --stages"),
        (
            ["stage_1.yaml", "--stages", "1-3", "--output_folder", "x"],
            "--output_folder cannot be combined with --stages",
        ),
        (["stage_1.yaml", "--stages", "1-3", "--sede", "2"], "unknown option --sede; did you mean 'seed'"),
    ],
)
def test_errors_are_reported_before_training(corpus, words, message):
    with pytest.raises(ConfigError, match=message):
        next(stage_commands([str(corpus / words[0]), *words[1:]]))


def test_a_mistake_in_the_last_file_is_reported_before_training(corpus, tmp_path, recipe):
    for stage in (1, 2):
        text = (corpus / f"stage_{stage}.yaml").read_text().replace(str(corpus), str(tmp_path))
        (tmp_path / f"stage_{stage}.yaml").write_text(text)
    command = [str(tmp_path / "stage_1.yaml"), "--stages", "1-2"]
    last = tmp_path / "stage_2.yaml"
    right = last.read_text()
    for wrong, message in (
        (right.replace("epochs:", "epoch:"), "stage_2.yaml: unknown key 'epoch'; did you mean 'epochs'"),
        (right.replace("stage: 2", "stage: 1"), "stage_1.yaml and .*stage_2.yaml have the same output_folder"),
    ):
        last.write_text(wrong)
        with pytest.raises(ConfigError, match=message):
            recipe.main(command)
    assert not (tmp_path / "results").exists()


def test_help_contains_the_option(capsys):
    with pytest.raises(SystemExit):
        load_experiment(["--help"])
    assert "--stages FIRST-LAST" in capsys.readouterr().out
