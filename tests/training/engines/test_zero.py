"""Tests of DeepSpeed: its configuration, the calls of its engine, and that ZeRO-2 and ZeRO-3 compute what the other
engines compute. The latter run on the CPU, where DeepSpeed is installed.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.evaluation.validation import AnswerValidation
from audiolm_lite.hub.load import load_model
from audiolm_lite.training.build import build_dataset
from audiolm_lite.training.checkpoint import read_checkpoint
from audiolm_lite.training.engines import zero, zero_config
from audiolm_lite.training.engines.unshard import main as unshard
from audiolm_lite.training.signals import Stopped
from tests.training.engines.test_sharding import StoppedAlone, assert_close, losses, newest, weights
from tests.training.engines.two_processes import curriculum_command, run
from tests.training.test_build import make_corpus
from tests.training.toy import ToyData, make_brain, make_hparams, make_model, train

ROOT = Path(__file__).parents[3]
ZERO = {2: {"stage": 2}, 3: {"stage": 3, "stage3_param_persistence_threshold": 0}}  # no tensor is too small to shard
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")


def write(path, **config):
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}} | config))
    return str(path)


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(zero_config, "require_deepspeed", lambda: None)


def read(file, **changes):
    return zero_config.read_config(make_hparams("unused", parallel="deepspeed", deepspeed_config=file, **changes))


def test_the_error_without_deepspeed_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'audiolm_lite\[distributed\]'"):
        make_brain(tmp_path, parallel="deepspeed", deepspeed_config=write(tmp_path / "zero.json"))


@pytest.mark.parametrize("file", sorted((ROOT / "hparams" / "deepspeed").glob("*.json")), ids=lambda file: file.stem)
def test_the_files_of_the_project_are_accepted(installed, file):
    config = read(str(file), max_grad_norm=0.5)
    assert config["gradient_clipping"] == 0.5 and config["zero_optimization"]["stage"] in (2, 3)
    assert "torch_autocast" not in config


def test_entries_left_open_are_set_by_the_yaml_file(installed, tmp_path):
    """As in files for transformers and accelerate."""
    auto = {"gradient_clipping": "auto", "train_batch_size": "auto", "bf16": {"enabled": "auto"}}
    zero_2 = {"stage": 2, "reduce_bucket_size": "auto"}
    config = read(write(tmp_path / "zero.json", zero_optimization=zero_2, **auto), max_grad_norm=0.5)
    assert config["gradient_clipping"] == 0.5 and config["zero_optimization"] == {"stage": 2}
    assert "bf16" not in config and "train_batch_size" not in config


def test_precision_is_set_by_the_yaml_file(installed, tmp_path):
    autocast = read(write(tmp_path / "zero.json"), precision="bf16")["torch_autocast"]
    assert autocast["enabled"] and autocast["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"optimizer": {"type": "Adam"}}, "learning_rates"),
        ({"scheduler": {"type": "WarmupLR"}}, "warmup_steps"),
        ({"gradient_clipping": 1.0}, "max_grad_norm"),
        ({"gradient_accumulation_steps": 4}, "grad_accumulation_factor"),
        ({"train_batch_size": 32}, "batch_tokens"),
        ({"bf16": {"enabled": True}}, "precision"),
        ({"sequence_parallel_size": 2}, "is not supported"),
        ({"zero_optimization": {"stage": 1}}, "stage is 1"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "offload_param.device is nvme"),
        ({"zero_optimization": {"stage": 2, "compute_grad_norm": False}}, "max_grad_norm needs"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_entries_that_the_yaml_file_sets_are_refused(installed, tmp_path, entry, message):
    with pytest.raises(ConfigError, match="zero.json.*" + next(iter(entry)) + ".*" + message):
        read(write(tmp_path / "zero.json", **entry))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"precision": "fp16"}, "fp16"),
        ({"optimizer": "adamw_8bit"}, "adamw_8bit"),
        ({"loss_chunk": 8}, "loss_chunk"),
        ({"loss_kernel": "torch"}, "loss_kernel"),
        ({"compile": True}, "compile"),
    ],
)
def test_keys_that_it_does_not_support_are_refused(installed, tmp_path, changes, named):
    with pytest.raises(ConfigError, match=named):
        read(write(tmp_path / "zero.json", zero_optimization={"stage": 3}), **changes)


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_an_unreadable_file_is_named(installed, tmp_path, text):
    file = tmp_path / "zero.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match="zero.json"):
        read(str(file))
    with pytest.raises(ConfigError, match="hparams/deepspeed/zero2.json"):
        read(None)


def test_parameters_that_zero_does_not_support_are_refused():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2).bfloat16()})
    together = torch.optim.AdamW([{"params": list(model.parameters())}])
    with pytest.raises(ConfigError, match="a pattern of its own"):
        zero._check_parameters(model, together, 2)
    apart = torch.optim.AdamW([{"params": list(part.parameters())} for part in model.values()])
    zero._check_parameters(model, apart, 2)
    with pytest.raises(ConfigError, match="one dtype"):
        zero._check_parameters(model, apart, 3)
    model["c"] = nn.ParameterList([nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)])
    with pytest.raises(ConfigError, match="quantised"):
        zero._check_parameters(model, torch.optim.AdamW(model["a"].parameters()), 3)


class Engine(nn.Module):
    """The methods of DeepSpeed's engine that this library calls, for one process; records the calls."""

    def __init__(self, model, optimizer, config):
        super().__init__()
        self.module, self.wrapped, self.config = model, optimizer, config
        self.calls, self.optimizer, self.norm = [], SimpleNamespace(), None

    def forward(self, *inputs):
        return self.module(*inputs)

    def set_gradient_accumulation_boundary(self, last):
        self.calls.append("last" if last else "more")

    def backward(self, loss):
        loss.backward()

    def step(self):
        self.calls.append("step")
        self.norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.config["gradient_clipping"])
        if self.norm.isfinite():
            self.wrapped.step()
        self.wrapped.zero_grad()

    def get_global_grad_norm(self):
        return self.norm if self.norm.isfinite() else float("inf")

    def save_checkpoint(self, folder, tag, save_latest, exclude_frozen_parameters):
        assert exclude_frozen_parameters and not save_latest
        (Path(folder) / tag).mkdir(parents=True)
        torch.save(self.wrapped.state_dict(), Path(folder) / tag / "optim_states.pt")

    def load_checkpoint(self, folder, tag, **options):
        self.wrapped.load_state_dict(torch.load(Path(folder) / tag / "optim_states.pt"))


@pytest.fixture
def engines(installed, monkeypatch):
    """List of the engines built, by a replacement of DeepSpeed."""
    built = []

    def initialize(model, optimizer, config):
        built.append(Engine(model, optimizer, config))
        return built[-1], optimizer, None, None

    monkeypatch.setattr(zero, "_import", lambda device: SimpleNamespace(initialize=initialize))
    monkeypatch.setattr(zero, "read_shard", lambda file: None)
    monkeypatch.setenv("LOCAL_RANK", "0")
    yield built
    dist.destroy_process_group()


def test_the_loop_calls_the_engine_as_documented(engines, tmp_path):
    """The losses equal those of torch's engine, and a stopped run continues exactly."""
    options = {"parallel": "deepspeed", "deepspeed_config": write(tmp_path / "zero.json")}
    train(tmp_path / "plain")
    train(tmp_path / "uninterrupted", **options)
    assert losses(tmp_path / "uninterrupted") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
    assert engines[0].calls[:6] == ["more", "last", "step"] * 2
    assert engines[0].optimizer.check_grad_overflow
    torch.manual_seed(1)
    with pytest.raises(Stopped):
        make_brain(tmp_path / "halves", kind=StoppedAlone, **options).fit_stage(ToyData(20), ToyData(6, seed=1))
    checkpoint = read_checkpoint(newest(tmp_path / "halves"))
    assert checkpoint.state["optimizer"] is None and checkpoint.state["deepspeed"] == {"stage": 2, "ranks": 1}
    assert "deepspeed/optim_states.pt" in checkpoint.info["sha256"]
    train(tmp_path / "halves", **options)
    assert losses(tmp_path / "halves") == losses(tmp_path / "uninterrupted")


def test_a_loss_that_is_not_finite_skips_the_step(engines, tmp_path):
    data = ToyData(20)
    data.items[3].features[:] = torch.nan
    options = {"parallel": "deepspeed", "deepspeed_config": write(tmp_path / "zero.json")}
    brain = make_brain(tmp_path, **options)
    brain.fit_stage(data, ToyData(6, seed=1))
    assert all(parameter.isfinite().all() for parameter in brain.model.parameters())
    assert any(record is None for record in losses(tmp_path))


def test_an_objective_of_other_tokens_is_an_error(engines, tmp_path):
    brain = make_brain(tmp_path, parallel="deepspeed", deepspeed_config=write(tmp_path / "zero.json"))
    forward = brain.compute_forward
    brain.compute_forward = lambda batch, stage: (loss := forward(batch, stage))._replace(tokens=loss.tokens + 1)
    with pytest.raises(RuntimeError, match="answer tokens"):
        brain.fit_stage(ToyData(20), ToyData(6, seed=1))


def test_another_engine_does_not_load_its_checkpoints(engines, tmp_path):
    options = {"parallel": "deepspeed", "deepspeed_config": write(tmp_path / "zero.json")}
    train(tmp_path, epochs=1, **options)
    with pytest.raises(ConfigError, match=r"ZeRO-2, 1 processes.*another engine.*audiolm-lite unshard .*step_"):
        train(tmp_path, epochs=1)
    with pytest.raises(ConfigError, match="ZeRO-3"):
        zero.require_layout({"stage": 2, "ranks": 1}, {"stage": 3, "ranks": 1}, tmp_path)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folder with the runs of two processes under DeepSpeed."""
    root = tmp_path_factory.mktemp("zero")
    (root / "corpus").mkdir()
    make_corpus(root / "corpus")
    for stage, settings in ZERO.items():
        write(root / f"zero{stage}.json", zero_optimization=settings)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    script = [str(ROOT / "tests/training/engines/zero_processes.py"), str(root)]
    result = subprocess.run(
        [*launcher, *script], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr[-5000:]
    return root


@needs_deepspeed
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_computes_what_ddp_does(root, stage):
    """With LoRA and windows of several batches, and with all parameters trained and tied embeddings."""
    assert_close(root / f"zero{stage}", root / "ddp")
    assert_close(root / f"zero{stage} full", root / "ddp full")
    first, second = weights(root / f"zero{stage}"), weights(root / "ddp")
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-4, atol=1e-5)


@needs_deepspeed
def test_recomputed_blocks_under_zero_3(root):
    assert_close(root / "zero3 blocks", root / "zero3")


@needs_deepspeed
@pytest.mark.parametrize("stage", [2, 3])
def test_a_stopped_run_continues_bit_for_bit(root, stage):
    assert losses(root / f"zero{stage} halves") == losses(root / f"zero{stage} dropout")
    halves, expected = weights(root / f"zero{stage} halves"), weights(root / f"zero{stage} dropout")
    assert all((halves[name] == expected[name]).all() for name in expected)


@needs_deepspeed
def test_frozen_parameters_stay_frozen_and_zero_3_shards_them(root):
    results = json.loads((root / "results.json").read_text())
    (full, second), (half, third) = results["frozen 2"], results["frozen 3"]
    assert second == third == results["frozen before"]
    assert half == full / 2


@needs_deepspeed
@pytest.mark.parametrize("stage", [2, 3])
def test_a_nonfinite_step_ends_both_and_names_its_items(root, stage):
    (kind, message), second = json.loads((root / "results.json").read_text())[f"nonfinite {stage}"]
    assert kind == "NonFiniteError" and second == [kind, message]
    assert any(f"item-{index}" in message for index in (3, 4, 5))


@needs_deepspeed
@pytest.mark.parametrize("stage", [2, 3])
def test_one_process_continues_from_an_unsharded_checkpoint(root, tmp_path, stage):
    """With the losses of two processes: weights, moments and steps are those of the shards."""
    source = newest(root / f"zero{stage} stopped")
    unshard([str(source), str(tmp_path / "stage_1" / "checkpoints")])
    before, after = load_file(source / "trained.safetensors"), weights(tmp_path)
    assert before.keys() == after.keys() and all((before[name] == after[name]).all() for name in before)
    done = len(losses(root / f"zero{stage} stopped"))
    run(tmp_path, grad_accumulation_factor=2)
    assert losses(tmp_path) == pytest.approx(losses(root / f"zero{stage}")[done:], rel=1e-5)


@needs_deepspeed
def test_shards_with_foreign_code_are_refused(root, tmp_path):
    file = tmp_path / "optim_states.pt"
    torch.save({"optimizer_state_dict": subprocess.Popen}, file)
    with pytest.raises(ConfigError, match="not a file that DeepSpeed writes"):
        zero.read_shard(file)
    with pytest.raises(ConfigError, match="not saved under DeepSpeed"):
        unshard([str(newest(root / "ddp")), str(tmp_path / "out")])


@needs_deepspeed
@pytest.mark.parametrize("stage", [1, 2])
def test_a_curriculum_writes_unsharded_models(root, stage):
    """Stage 1 was trained with ZeRO-2, stage 2 with ZeRO-3; their answers equal those of validation."""
    bundle = load_model(root / "curriculum" / f"stage_{stage}")
    hparams, _, _ = load_experiment(curriculum_command(root))
    valid = build_dataset(hparams, "valid", bundle.model, bundle.tokenizer)
    scores, _ = AnswerValidation(bundle.model, valid, hparams, sharded=False).run(lambda: None)
    found = json.loads((root / "curriculum" / f"stage_{stage}" / "finished.json").read_text())["metrics"]
    assert {name: found[name] for name in ("sound_class/wer", "sound_class/cer")} == scores


@needs_deepspeed
@pytest.mark.parametrize("stage", [2, 3])
def test_one_process_alone_with_the_optimiser_in_the_hosts_memory(tmp_path, stage):
    pytest.importorskip("ninja", reason="DeepSpeed compiles its AdamW for the CPU with ninja")
    settings = ZERO[stage] | {"offload_optimizer": {"device": "cpu"}}
    file = write(tmp_path / "zero.json", zero_optimization=settings)
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.training.engines.two_processes import curriculum_command, run\n"
        "brain = run(Path(sys.argv[1]), parallel='deepspeed', deepspeed_config=sys.argv[2])\n"
        "assert type(brain.optimizer).__name__ == 'DeepSpeedCPUAdam'"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-c", code, str(tmp_path / "zero"), file]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr[-5000:]
    run(tmp_path / "plain", model=make_model(dropout=0.0))
    assert losses(tmp_path / "zero") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
