"""Experiment files: a typo is an error, overrides reach into blocks, defaults and types are checked."""

import pytest

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import REQUIRED, TRAINING_KEYS, Key
from audiolm_lite.config.settings import settings
from audiolm_lite.config.start import start_run

KEYS = {
    "seed": Key("Seed.", int, 7),
    "output_folder": Key("Folder.", str, result=False),
    "adapter": Key("Adapter.", dict),
    "template": Key("Prompt.", str, "{audio}"),
    "schedule": Key("Schedule.", ("linear", "cosine"), "linear"),
    "lr": Key("Learning rate.", float, 1e-3),
}


@pytest.fixture
def experiment(tmp_path):
    """Return a function that writes a YAML file and loads it with command line arguments."""
    (tmp_path / "adapter.yaml").write_text("type: tltr\ntime_heads: 1\nlayer_heads: 8\n")

    def load(text="", *argv, keys=KEYS):
        (tmp_path / "stage.yaml").write_text(
            f"root: {tmp_path}\noutput_folder: !ref <root>/out\nadapter: !include:adapter.yaml\n{text}"
        )
        hparams, run_opts, resolved = load_experiment([str(tmp_path / "stage.yaml"), *argv], keys)
        start_run(hparams, resolved)
        return hparams, run_opts

    return load


def test_defaults_references_and_includes(experiment, tmp_path):
    hparams, run_opts = experiment("lr: 1e-4\n", "--device", "cpu", "--debug")
    assert hparams["adapter"] == {"type": "tltr", "time_heads": 1, "layer_heads": 8}
    assert hparams["seed"] == 7 and hparams["lr"] == 1e-4
    assert hparams["output_folder"] == f"{tmp_path}/out"
    assert run_opts == {"device": "cpu", "debug": True}
    assert "time_heads" in (tmp_path / "out" / "hyperparams.yaml").read_text()


def test_overrides_reach_into_included_blocks(experiment):
    hparams, _ = experiment("", "--adapter.time_heads", "4", "--seed=3", "--template", "{audio} {answer}", "--lr", "1")
    assert hparams["adapter"] == {"type": "tltr", "time_heads": 4, "layer_heads": 8}
    assert hparams["seed"] == 3 and hparams["template"] == "{audio} {answer}"
    assert hparams["lr"] == 1.0 and isinstance(hparams["lr"], float)


RATES = "learning_rates: {'llm.*': 1, 'adapter.*': 2}\n"
RATES_KEYS = {**KEYS, "learning_rates": Key("Learning rates.", dict)}


@pytest.mark.parametrize(
    ("argv", "rates"),
    [
        (["--learning_rates", "{'adapter.*': 3}"], {"llm.*": 1, "adapter.*": 3}),
        (["--learning_rates:={'adapter.*': 3}"], {"adapter.*": 3}),
        (["--learning_rates={'llm.*': null}"], {"adapter.*": 2}),
        (["--learning_rates={'llm.*': null, x: 4}"], {"adapter.*": 2, "x": 4}),
    ],
)
def test_mappings_are_merged_or_replaced(experiment, argv, rates):
    assert experiment(RATES, *argv, keys=RATES_KEYS)[0]["learning_rates"] == rates


def test_blocks_are_replaced(experiment):
    hparams, _ = experiment(
        "width: {a: {b: 1, c: 2}}\n_x: !ref <width>\n", "--adapter:={type: linear}", "--width.a:={d: 3}"
    )
    assert hparams["adapter"] == {"type": "linear"} and hparams["width"] == {"a": {"d": 3}}
    with pytest.raises(ConfigError, match="lora:= cannot replace a mapping within !include:adapter.yaml"):
        experiment("", "--adapter.lora:={r: 4}")
    assert experiment("", "--adapter.time_heads:=4")[0]["adapter"]["time_heads"] == 4


@pytest.mark.parametrize(
    ("text", "argv", "message"),
    [
        ("sede: 3\n", [], "unknown key 'sede'; did you mean 'seed'"),
        ("", ["--shedule", "cosine"], "unknown option --shedule; did you mean 'schedule'"),
        ("schedule: cosinus\n", [], "schedule is 'cosinus'; choose one of linear, cosine"),
        ("seed: many\n", [], "seed is 'many'; it must be of type int"),
        ("template: !PLACEHOLDER\n", [], "'template' is a !PLACEHOLDER"),
        ("template: !ref <nowhere>\n", [], "nowhere"),
        ("seed: 1\nseed: 2\n", [], "duplicate key"),
        ("", ["other.yaml"], "unexpected argument 'other.yaml'"),
        ("", ["--seed"], "--seed has no value"),
        ("", ["--adapter={type: "], "option --adapter: '{type: ' is not valid YAML"),
        ("", ["--lr", "a: b: c"], "option --lr: 'a: b: c' is not valid YAML"),
        ("", ["--adapter=linear", "--adapter.type=linear"], "another option sets all of adapter"),
        ("", ["--adapter:={}", "--adapter.type=linear"], "another option sets all of adapter"),
    ],
)
def test_errors_name_the_key(experiment, text, argv, message):
    with pytest.raises(ConfigError, match=message):
        experiment(text, *argv)


def test_missing_required_key(experiment):
    with pytest.raises(ConfigError, match="key 'stage' is missing"):
        experiment(keys={**KEYS, "stage": Key("Number.", int)})


def test_helper_keys_are_allowed_when_private_or_referenced(experiment):
    hparams, _ = experiment("_note: text\nwidth: 3\nlr: !ref <width> / 2\n")
    assert hparams["lr"] == 1.5


def test_help_lists_every_key(capsys):
    with pytest.raises(SystemExit):
        load_experiment(["--help"])
    printed = capsys.readouterr().out
    assert all(f"--{name}" in printed for name in TRAINING_KEYS)


def test_settings_leave_out_what_cannot_change_the_model(experiment):
    hparams, _ = experiment()
    assert set(settings(hparams, KEYS)) == {"seed", "adapter", "template", "schedule", "lr"}
    assert REQUIRED not in settings(hparams, KEYS).values()
