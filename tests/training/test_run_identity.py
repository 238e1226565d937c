"""A run goes on, is finished and hands over with exactly its own data, weights and settings, wherever they are."""

import json
import shutil
import warnings

import pytest
from safetensors.torch import load_file, save_file

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.hub.load import load_model
from audiolm_lite.training.build import build_model
from audiolm_lite.training.run import train_stage
from audiolm_lite.training.run_identity import INPUTS, difference, run_settings
from tests.tiny import save_whisper
from tests.training.test_build import make_corpus


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("original"))


@pytest.fixture
def corpus(original, tmp_path):
    """A copy of the corpus, whose YAML file has the paths of the copy."""
    return copy(original, tmp_path / "corpus")


def copy(source, target):
    shutil.copytree(source, target)
    stage = target / "stage.yaml"
    stage.write_text(stage.read_text().replace(str(source), str(target)))
    return target


def command(corpus, *more, out="out"):
    return [str(corpus / "stage.yaml"), "--output_root", str(corpus / out), "--device", "cpu", *more]


def current(corpus, *more):
    return run_settings(load_experiment(command(corpus, *more))[0])


def replace_text(path, old, new):
    text = path.read_text()
    assert old in text and len(old) == len(new)
    path.write_text(text.replace(old, new))


def test_a_finished_stage_is_that_of_its_data_and_weights_wherever_they_are(corpus, tmp_path):
    train_stage(command(corpus))
    assert train_stage(command(corpus)) is None
    moved = copy(corpus, tmp_path / "elsewhere")
    shutil.rmtree(corpus)
    assert train_stage(command(moved)) is None
    second = train_stage(command(moved, "--stage", "2"))  # and the next stage starts from it
    assert second.inherited
    replace_text(moved / "train.jsonl", "a high tone", "a loud tone")
    with pytest.raises(ConfigError, match=r"other settings: the content of \S*train.jsonl \(manifests.train\) has"):
        train_stage(command(moved))


def test_changed_data_and_weights_are_noticed_on_resume(corpus, monkeypatch):
    def stop(brain, *arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("audiolm_lite.training.brain.AudioLMBrain._load_best", stop)
    with pytest.raises(KeyboardInterrupt):
        train_stage(command(corpus))
    replace_text(corpus / "valid.jsonl", "a high tone", "a loud tone")
    with pytest.raises(
        ConfigError, match=r"unfinished run .* content of \S*valid.jsonl \(manifests.valid\) has changed"
    ):
        train_stage(command(corpus))
    replace_text(corpus / "valid.jsonl", "a loud tone", "a high tone")
    weights = load_file(corpus / "llm" / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, corpus / "llm" / "model.safetensors")
    with pytest.raises(ConfigError, match="the weights of llm are others: digest"):
        train_stage(command(corpus))
    save_file(weights, corpus / "llm" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(KeyboardInterrupt):  # it goes on
        train_stage(command(corpus))


def test_every_input_is_compared_by_its_content(corpus):
    questions = corpus / "questions.txt"
    questions.write_text("what is it ?\n")
    more = ["--question_files", f"{{train: [{questions}]}}"]
    before = current(corpus, *more)
    assert difference(before, current(corpus, *more)) == []
    questions.write_text("what is so ?\n")
    assert difference(before, current(corpus, *more)) == [
        f"the content of {questions} (question_files.train) has changed"
    ]
    header = json.loads((corpus / "features" / "store.json").read_text())
    header["fingerprint"]["weights"] = "0123456789abcdef"
    (corpus / "features" / "store.json").write_text(json.dumps(header))
    assert any(
        "features has other features: fingerprint.weights was" in line for line in difference(before, current(corpus))
    )
    several = ["--manifests.train", f"[{corpus}/train.jsonl, {corpus}/valid.jsonl]"]
    assert "manifests.train had 1 files, has now 2" in difference(before, current(corpus, *several))


def test_settings_of_an_earlier_version_are_compared_without_inputs(corpus, caplog):
    now = current(corpus)
    old = {name: value for name, value in now.items() if name != INPUTS}
    assert difference(old, now) == [] and "earlier version" in caplog.text
    assert difference({**old, "epochs": 9}, now) == ["epochs was 9, is now 1"]


def test_a_store_of_another_encoder_of_the_same_shape_is_refused(corpus, caplog):
    save_whisper(corpus / "other", mels=16, seed=1, encoder_ffn_dim=16, vocab_size=8)
    other = load_experiment(command(corpus, "--encoder.source", str(corpus / "other")))[0]
    with pytest.raises(ConfigError, match=r"features: its features were computed by an encoder with other weights"):
        build_model(other)
    shutil.copytree(corpus / "encoder", corpus / "renamed")
    build_model(load_experiment(command(corpus, "--encoder.source", str(corpus / "renamed")))[0])
    assert "not compared" not in caplog.text
    build_model(load_experiment(command(corpus, "--encoder.source", str(corpus / "absent")))[0])
    assert "is not on this machine, so its weights are not compared" in caplog.text


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("r", 4, "llm.lora.r is 4 and was 2 in training; write r: 2"),
        ("alpha", 16, "llm.lora.alpha is 16 and was 4 in training; write alpha: 4"),
        ("dropout", 0.5, "llm.lora.dropout is 0.5 and was 0.0 in training; write dropout: 0.0"),
        ("target_modules", ["q_proj"], "target_modules is .* write target_modules: .'q_proj', 'v_proj'."),
        ("dora", True, "llm.lora.dora is True and was False in training; write dora: False"),
        ("rslora", True, "llm.lora.rslora is True and was False in training; write rslora: False"),
        (None, None, "llm.lora is null, and the LoRA that was trained has .*'alpha': 4"),
    ],
)
def test_a_lora_is_handed_over_with_its_settings_only(trained, entry, value, message):
    option = "--llm.lora:=null" if entry is None else f"--llm.lora.{entry}={json.dumps(value)}"
    for number, folder in enumerate((trained / "out" / "stage_1", trained / "model")):
        more = ["--stage", "2", "--previous_stage", str(folder), "--output_folder", str(trained / f"next_{number}")]
        with pytest.raises(ConfigError, match=message):
            train_stage(command(trained, *more, option))


@pytest.fixture(scope="module")
def trained(original, tmp_path_factory):
    """A corpus with a finished stage that has trained the LoRA, and the same as a model folder (`model`)."""
    corpus = copy(original, tmp_path_factory.mktemp("trained") / "corpus")
    train_stage(command(corpus, "--trainable", "['adapter.*', 'llm.*lora_*']"))
    shutil.copytree(corpus / "out" / "stage_1", corpus / "model")
    (corpus / "model" / "finished.json").unlink()
    return corpus


def test_a_model_folder_knows_the_weights_that_it_was_trained_with(trained, tmp_path):
    moved = copy(trained, tmp_path / "moved")
    path = moved / "model" / "audiolm_lite.json"
    config = json.loads(path.read_text())
    assert set(config["backbones"]) == {"encoder", "llm"}
    path.write_text(path.read_text().replace(str(trained), str(moved)))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*was trained with other weights")
        # a corrected path does not make another model
        assert load_model(moved / "model").identity == load_model(trained / "model").identity
    for part in ("llm", "encoder"):
        weights = moved / part / "model.safetensors"
        kept = weights.read_bytes()
        changed = {
            name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in load_file(weights).items()
        }
        save_file(changed, weights, metadata={"format": "pt"})
        with pytest.warns(UserWarning, match=f"was trained with other weights of its {part} "):
            assert load_model(moved / "model").identity != load_model(trained / "model").identity
        more = ["--stage", "2", "--previous_stage", str(moved / "model"), "--train_encoder", "true"]
        with pytest.raises(ConfigError, match=f"cannot start from .*: the weights of {part} are others"):
            train_stage(command(moved, *more))
        weights.write_bytes(kept)
