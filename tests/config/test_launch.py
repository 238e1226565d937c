"""The configuration files of `accelerate launch`, as Accelerate itself hands them to the processes."""

from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.launch import accelerate_options

FILES = Path(__file__).parents[2] / "hparams" / "accelerate"
YAML = Path(__file__).parents[2] / "recipes" / "AN4" / "ltu_as" / "hparams" / "stage_1.yaml"


def environment_of(name):
    arguments = launch_command_parser().parse_args(["--config_file", str(FILES / name), "train.py"])
    return prepare_multi_gpu_env(_validate_launch_command(arguments)[0])


def test_the_files_that_ship_mean_what_they_say():
    fsdp = {"precision": "bf16", "parallel": "fsdp", "gradient_checkpointing": 1}
    assert accelerate_options(environment_of("fsdp.yaml")) == fsdp
    assert accelerate_options(environment_of("ddp.yaml")) == {"precision": "bf16"}
    assert accelerate_options({}) == {}


def test_the_launcher_goes_before_the_file_and_the_command_line_before_both(monkeypatch):
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "true"}.items():
        monkeypatch.setenv(name, value)
    hparams = load_experiment([str(YAML)])[0]
    assert hparams["parallel"] == "fsdp" and hparams["cpu_offload"] is True
    assert load_experiment([str(YAML), "--parallel", "ddp"])[0]["parallel"] == "ddp"


def test_all_that_a_file_may_ask_for():
    asked = {"ACCELERATE_MIXED_PRECISION": "fp16", "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}
    asked |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "zero3.json"}
    assert accelerate_options(asked) == {
        "precision": "fp16",
        "compile": True,
        "parallel": "deepspeed",
        "deepspeed_config": "zero3.json",
    }


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM is not supported"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "bf16, fp16 or no"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "None"}, "deepspeed_config_file"),
    ],
)
def test_what_is_not_here_is_refused(asked, message):
    with pytest.raises(ConfigError, match=message):
        accelerate_options(asked)
