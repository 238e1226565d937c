"""The planner counts what a real step allocates, reads no weights, and its token budgets fit."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.registry import build
from audiolm_lite.data.batching import Item
from audiolm_lite.data.manifest import write_manifest
from audiolm_lite.features.extract import extract
from audiolm_lite.modeling.batch import AUDIO_SLOT, IGNORE
from audiolm_lite.plan.batches import largest_batch, padded_batch
from audiolm_lite.plan.meta_model import build_meta_model, optimizer_bytes, weight_bytes
from audiolm_lite.plan.run import alternatives, largest_budget, main, plan
from audiolm_lite.plan.simulate import estimate

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes/MiniASQA/ltu_as"
FRAMES, TEXT, ANSWER = 20, 12, 8


@pytest.fixture
def hparams(make_experiment):
    """Settings of a stage on the tiny sources, whose weights are deleted."""
    experiment = make_experiment(lora=True)
    for folder in (experiment["encoder"]["source"], experiment["llm"]["source"]):
        for weights in Path(folder).glob("*.safetensors"):
            weights.unlink()
    return {
        **experiment,
        "train_encoder": False,
        "feature_folder": None,
        "loss_chunk": 0,
        "gradient_checkpointing": 0,
        "grad_accumulation_factor": 1,
        "precision": "fp32",
        "optimizer": "adamw",
        "batch_tokens": 400,
        "trainable": ["adapter.*", "llm.*lora_*"],
    }


def make_item(live=False):
    """An item with features as large as those of the tiny Whisper, or with a waveform."""
    ids = [AUDIO_SLOT] * FRAMES + [1] * (TEXT + ANSWER)
    labels = [IGNORE] * (FRAMES + TEXT) + [1] * ANSWER
    if live:
        return Item({"id": "x"}, ids, labels, waveform=torch.zeros(FRAMES * 2 * 320))
    return Item({"id": "x"}, ids, labels, features=torch.zeros(2, FRAMES, 16))


def saved_bytes(model, batch):
    """Bytes that autograd saves in a real forward pass, without weights and batch."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    inputs = {value.untyped_storage().data_ptr() for value in vars(batch).values() if isinstance(value, torch.Tensor)}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights | inputs:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.train()(batch).total
    loss.backward()
    return sum(saved.values())


@pytest.mark.parametrize("live", [False, True])
def test_saved_activations_are_those_that_autograd_saves(make_experiment, make_model, hparams, tmp_path, live):
    """The simulated step runs the same code as the real one."""
    hparams["train_encoder"] = live
    if live:
        hparams["trainable"] = ["encoder.*", *hparams["trainable"]]
    batch = padded_batch(make_item(live), 3)
    saved = estimate(build_meta_model(hparams)[0], batch, hparams).saved
    assert set(saved) == {"batch", "adapter", "LLM and loss", *(["encoder"] if live else [])}
    torch.manual_seed(0)
    model = build_meta_model(hparams)[0].to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        torch.nn.init.normal_(tensor.data, std=0.1) if tensor.is_floating_point() else tensor.zero_()
    assert sum(saved.values()) - saved["batch"] == pytest.approx(saved_bytes(model, batch), rel=0.02)


def test_no_weights_are_needed(hparams):
    """The fixture deletes them; config.json, tokenizer and preprocessor remain."""
    model = build_meta_model(hparams)[0]
    assert all(parameter.is_meta for parameter in model.parameters())
    assert set(weight_bytes(model, hparams)) == {"adapter", "LLM", "LoRA"}


def test_sizes_equal_a_manual_count(hparams):
    """Two blocks of the tiny Llama: 4 x 16 x 16 + 3 x 16 x 32 weights in linear layers, 13 x 16 embeddings, 5 norms."""
    linear, rest = 2 * (4 * 16 * 16 + 3 * 16 * 32), 13 * 16 + 5 * 16
    model = build_meta_model(hparams)[0]
    assert weight_bytes(model, hparams)["LLM"] == 4 * (linear + rest)
    quantised = {**hparams, "llm": {**hparams["llm"], "quantization": "8bit"}}
    assert weight_bytes(model, quantised)["LLM"] == linear + 4 * rest
    four = {**hparams, "llm": {**hparams["llm"], "quantization": "4bit"}}
    assert weight_bytes(model, four)["LLM"] == pytest.approx(0.516 * linear + 4 * rest, rel=1e-3)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert optimizer_bytes(model, "adamw") == 8 * trained
    large = torch.nn.Module()
    large.weight = torch.nn.Parameter(torch.empty(64, 64))
    assert optimizer_bytes(large, "adamw_8bit") == 2 * 64 * 64 + 2 * 16 * 4


def test_activation_checkpointing_changes_only_activations(hparams):
    """gradient_checkpointing saves fewer activations of the LLM; everything else stays the same."""
    batch = largest_batch(make_item(), 400)
    plain = estimate(build_meta_model(hparams)[0], batch, hparams)
    hparams["gradient_checkpointing"] = 1
    less = estimate(build_meta_model(hparams)[0], batch, hparams)
    assert less.saved["LLM and loss"] < 0.8 * plain.saved["LLM and loss"]
    assert less.saved["adapter"] == plain.saved["adapter"]
    assert (less.weights, less.optimizer, less.gradients) == (plain.weights, plain.optimizer, plain.gradients)


def test_memory_per_process(hparams):
    """With ddp a full copy and the buckets; with fsdp a shard, and unsharded two blocks and what is outside blocks."""
    batch = largest_batch(make_item(), 400)
    alone = estimate(build_meta_model(hparams)[0], batch, hparams)

    def one_of_four(**changes):
        settings = {**hparams, "processes": 4, "parallel": "fsdp", "cpu_offload": False, **changes}
        return estimate(build_meta_model(settings)[0], batch, settings)

    ddp = one_of_four(parallel="ddp")
    assert (ddp.weights, ddp.optimizer, ddp.gradients) == (alone.weights, alone.optimizer, alone.gradients)
    assert ddp.communication == alone.gradients and ddp.total == alone.total + alone.gradients
    fsdp = one_of_four()
    for part in alone.weights:
        assert fsdp.weights[part] == pytest.approx(alone.weights[part] / 4, abs=1)
    assert fsdp.optimizer == pytest.approx(alone.optimizer / 4, abs=1) and fsdp.saved == alone.saved
    assert fsdp.gradients == pytest.approx(alone.gradients / 4, abs=1)
    # The LLM has two blocks, so everything is unsharded at some moment.
    assert fsdp.communication == sum(alone.weights.values()) + alone.gradients
    assert fsdp.step - fsdp.communication <= alone.step
    assert one_of_four(grad_accumulation_factor=2).gradients == alone.gradients
    offloaded = one_of_four(cpu_offload=True)
    assert not any(offloaded.weights.values()) and offloaded.optimizer == offloaded.gradients == 0
    quantised = one_of_four(llm={**hparams["llm"], "quantization": "8bit"})
    linear, rest = 2 * (4 * 16 * 16 + 3 * 16 * 32), 13 * 16 + 5 * 16
    assert quantised.weights["LLM"] == linear + rest and quantised.communication == fsdp.communication - 4 * linear
    labels = [label for label, _ in alternatives({**hparams, "processes": 4, "parallel": "ddp", "cpu_offload": False})]
    assert labels[0] == "parallel: fsdp" and labels[-1].startswith("parallel: fsdp, gradient_checkpointing: 1")


def test_full_fine_tuning_is_sharded(hparams):
    """Gradients and moments are most of the memory then; fsdp shards those of every tensor."""
    hparams |= {"trainable": ["*"], "processes": 8, "parallel": "ddp", "cpu_offload": False}
    batch = padded_batch(make_item(), 1)
    copy = estimate(build_meta_model(hparams)[0], batch, hparams)
    hparams["parallel"] = "fsdp"
    shard = estimate(build_meta_model(hparams)[0], batch, hparams)
    state = [e.total - e.communication - sum(e.saved.values()) for e in (copy, shard)]
    assert state[1] < 0.3 * state[0]


def test_several_processes_on_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(RECIPE)
    command = ["hparams/stage_3.yaml", "--data_folder", str(tmp_path), "--batch_tokens", "400", "--processes", "2"]
    main(command)
    text = capsys.readouterr().out
    assert "communication of 2 processes (ddp)" in text and "total per process" in text
    with pytest.raises(ConfigError, match="--measure runs steps in one process"):
        main([*command, "--measure"])


def test_largest_budget_is_the_largest(hparams):
    """One more item does not fit."""
    item = make_item()
    length = len(item.input_ids)
    limit = 3 * 2**20
    _, budget = largest_budget(hparams, item, limit)
    model = build_meta_model(hparams)[0]
    assert estimate(model, largest_batch(item, budget), hparams).total <= limit
    assert estimate(model, largest_batch(item, budget + length), hparams).total > limit


def test_alternatives_are_settings_that_are_not_set_yet(hparams):
    """Each alternative is labelled with the setting that it changes."""
    labels = [label for label, _ in alternatives(hparams)]
    assert "gradient_checkpointing: 1" in labels
    assert "llm.quantization: 4bit" in labels
    hparams |= {"gradient_checkpointing": 1, "trainable": ["llm.*"]}
    labels = [label for label, _ in alternatives(hparams)]
    assert not any("quantization" in label or label.startswith("gradient") for label in labels)


def test_an_item_longer_than_the_budget_is_named():
    """The message contains its length."""
    with pytest.raises(ConfigError, match="batch_tokens is 30.*has 40 tokens"):
        largest_batch(make_item(), 30)


def test_worst_bucket_is_planned(hparams):
    """The bucket of several that needs most memory."""
    short = Item({"id": "s"}, [AUDIO_SLOT, 1, 1], [IGNORE, IGNORE, 1], features=torch.zeros(2, 1, 16))
    worst, needed = plan(hparams, {"longest": make_item(), "shortest": short})
    model = build_meta_model(hparams)[0]
    assert needed.total == max(
        estimate(model, largest_batch(item, 400), hparams).total for item in (make_item(), short)
    )


@pytest.fixture(scope="module")
def mini_data(tmp_path_factory):
    """Noise of three lengths as a corpus that is prepared for the MiniASQA recipe."""
    folder = tmp_path_factory.mktemp("data")
    noise = np.random.default_rng(0)
    rows = []
    for seconds in (2, 5, 10):
        soundfile.write(folder / f"{seconds}.wav", noise.uniform(-0.3, 0.3, 16000 * seconds), 16000)
        rows.append(
            {
                "id": str(seconds), "audio": f"{seconds}.wav", "start": 0.0, "duration": None, "task": "asr",
                "instruction": "transcribe the speech.", "target": "the red dog runs home. " * seconds,
                "dataset": "noise", "split": "train",
            }
        )  # fmt: skip
    write_manifest(folder / "train.jsonl", rows)
    block = {"type": "whisper", "source": str(RECIPE / "../backbones/encoder"), "padding": "exact"}
    encoder = build("encoders", {**block, "layers": [1, 3], "pool": 4}).eval()
    extract(rows, encoder, folder / "features", audio_root=folder)
    return folder


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is measured on Linux")
@pytest.mark.parametrize(
    "flags",
    [
        ["--batch_tokens", "3000"],
        ["--gradient_checkpointing", "2", "--precision", "bf16", "--train_encoder", "true", "--trainable", "['*']",
         "--learning_rates", "{'*': 1.0e-3}"],
    ],
    ids=["stored features", "everything, through the encoder"],
)  # fmt: skip
def test_estimate_is_close_to_the_measured_memory(mini_data, flags):
    """Stage 3 of the recipe: the growth of resident memory differs from the estimate by less than 15 %."""
    command = [sys.executable, "-m", "audiolm_lite", "plan", "hparams/stage_3.yaml", "--measure", "--device", "cpu"]
    command += ["--data_folder", str(mini_data), "--output_root", str(mini_data / "results"), *flags]
    done = subprocess.run(command, cwd=RECIPE, env=_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = re.findall(r"^(longest|middle|shortest) .*?([\d.]+) *$", done.stdout, re.MULTILINE)
    assert len(rows) == 3, done.stdout
    for name, ratio in rows:
        assert 0.85 < float(ratio) < 1.15, f"{name}:\n{done.stdout}"


def test_plan_of_unprepared_data(tmp_path, capsys, monkeypatch):
    """Without data the command prints its assumptions, whether they fit, and what would fit."""
    monkeypatch.chdir(RECIPE)
    main(["hparams/stage_3.yaml", "--data_folder", str(tmp_path / "none"), "--vram", "0.7", "--batch_tokens", "1024"])
    text = capsys.readouterr().out
    assert "10 s of audio (63 audio tokens)" in text
    assert "fit" in text
    assert "gradient_checkpointing: 1" in text


def _environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
