"""Tests of a training run on a tiny model: YAML file, manifests, features or live audio, three stages, export."""

import json
import shutil
import sys

import numpy as np
import pytest
import soundfile
import torch

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.registry import build
from audiolm_lite.config.settings import settings
from audiolm_lite.config.start import seed_everything
from audiolm_lite.data.manifest import read_manifest, write_manifest
from audiolm_lite.features.extract import extract
from audiolm_lite.hub.load import load_model
from audiolm_lite.training.build import (
    _require_encoder,
    build_dataset,
    build_model,
)
from audiolm_lite.training.run import train_stage as train
from tests.tiny import save_whisper, tiny_family, tiny_llm, word_tokenizer

WORDS = ["<s>", "</s>", "<unk>", ",", "what", "is", "heard", "?", "a", "low", "high", "tone", ":"]
YAML = """
stage: 1
seed: 3
data_folder: {root}
output_root: {root}/results
output_folder: !ref <output_root>/stage_<stage>
feature_folder: {root}/features
manifests:
    train: [{root}/train.jsonl]
    valid: [{root}/valid.jsonl]
template: "{{bos}}{{audio}}{{instruction}} : {{answer}}{{eos}}"
brain: !name:audiolm_lite.training.brain.AudioLMBrain
encoder: {{type: whisper, source: {root}/encoder, padding: exact, pool: 2}}
adapter: {{type: tltr, layer_heads: 2}}
llm:
    source: {root}/llm
    lora: {{r: 2, alpha: 4, dropout: 0.0, target_modules: [q_proj, v_proj]}}
trainable: ["adapter.projection.*"]
learning_rates: {{"*": 5.0e-3}}
batch_tokens: 256
warmup_steps: 1
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def make_corpus(root):
    """Write tiny backbones, clips of low and high tones, their features, and the YAML file of a stage."""
    save_whisper(root / "encoder", mels=16, seed=0, encoder_ffn_dim=16, vocab_size=8)
    llm = tiny_llm(
        len(WORDS),
        intermediate_size=16,
        num_hidden_layers=1,
        initializer_range=0.5,  # so that answers are more than the end token
        bos_token_id=0,
        eos_token_id=1,
    )
    llm.save_pretrained(root / "llm")
    word_tokenizer(WORDS, bos_token="<s>", eos_token="</s>").save_pretrained(root / "llm")

    rows = []
    for number in range(12):
        kind, hertz = ("low", 200) if number % 2 else ("high", 2000)
        seconds = 0.3 + 0.05 * number
        samples = 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(16000 * seconds)) / 16000)
        soundfile.write(root / f"{number}.wav", samples, 16000)
        rows.append(
            {
                "id": f"tone-{number}",
                "audio": f"{number}.wav",
                "task": "sound_class" if number < 8 else "caption",
                "instruction": "what is heard ?",
                "target": f"a {kind} tone",
                "dataset": "tones",
                "split": "train",
                "words": [[kind, 0.0, 0.2], ["tone", 0.2, 0.3]],
            }
        )
    write_manifest(root / "train.jsonl", rows)
    write_manifest(root / "valid.jsonl", rows[:4])
    (root / "stage.yaml").write_text(YAML.format(root=root))
    encoder = build("encoders", {"type": "whisper", "source": str(root / "encoder"), "pool": 2})
    extract(rows, encoder, root / "features", audio_root=root)
    return root


def test_three_stages_through_the_command_line(corpus, tmp_path, caplog):
    command = [str(corpus / "stage.yaml"), "--output_root", str(tmp_path), "--device", "cpu"]
    first = train([*command, "--alignment_init", "{ridge: 1.0, clips: 12}", "--tasks", "[sound_class]"])
    assert "Closed-form initialisation" in caplog.text and "adapter.projection" in caplog.text
    assert first.model.encoder is None  # features come from the store
    more = ["--trainable", "['adapter.*', 'llm.*lora_*']", "--epochs", "2"]
    train([*command, "--stage", "2", *more])
    third = train([*command, "--stage", "3", *more])
    assert (tmp_path / "stage_3" / "train_log.txt").read_text().count("\n") == 2
    assert train([*command, "--stage", "3", *more]) is None

    bundle = load_model(tmp_path / "stage_3")
    trained = third.model.state_dict()
    for name, tensor in bundle.model.state_dict().items():
        if not name.startswith("encoder."):
            assert torch.equal(tensor, trained[name]), name


def test_debug_takes_two_steps_per_epoch(corpus, tmp_path):
    command = [str(corpus / "stage.yaml"), "--output_root", str(tmp_path), "--device", "cpu"]
    train([*command, "--debug", "--epochs", "5", "--batch_tokens", "40"])
    records = [json.loads(line) for line in (tmp_path / "stage_1" / "losses.jsonl").read_text().splitlines()]
    assert [(record["epoch"], record["step"]) for record in records] == [(1, 1), (1, 2), (2, 3), (2, 4)]


def test_training_through_the_encoder_on_live_audio(corpus, tmp_path):
    command = [str(corpus / "stage.yaml"), "--output_root", str(tmp_path), "--device", "cpu", "--train_encoder", "true"]
    hparams, _, _ = load_experiment(command)
    seed_everything(hparams["seed"])
    before = build_model(hparams)[0].state_dict()
    # with augmentation, which changes the length of clips and so the prompts
    brain = train([*command, "--trainable", "['adapter.*', 'encoder.model.layers.*']", "--augmentation", "{}"])
    changed = {name for name, tensor in brain.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(name.startswith("encoder.model.layers.") for name in changed)
    assert not any(name.startswith(("llm.", "encoder.model.conv")) for name in changed)
    # a stage on stored features cannot follow: they were computed by the encoder before its training
    with pytest.raises(ConfigError, match="contains encoder.model.layers.* does not have"):
        train([str(corpus / "stage.yaml"), "--output_root", str(tmp_path), "--stage", "2", "--device", "cpu"])
    bundle = load_model(tmp_path / "stage_1")
    for name, tensor in brain.model.encoder.state_dict().items():
        assert torch.equal(tensor, bundle.model.encoder.state_dict()[name]), name


def test_features_of_another_encoder_block_are_refused(corpus, tmp_path):
    command = [str(corpus / "stage.yaml"), "--output_folder", str(tmp_path)]
    for block, message in {
        "--encoder.pool": "encoder pool 2, the YAML file has 4",
        "--encoder.layers": r"encoder layers \[0, 1\], the YAML file has \[1\]",
        "--encoder.type": r"encoder type 'whisper', the YAML file has 'beats'",
    }.items():
        value = {"--encoder.pool": "4", "--encoder.layers": "[-1]", "--encoder.type": "beats"}[block]
        hparams, _, _ = load_experiment([*command, block, value])
        with pytest.raises(ConfigError, match=message):
            build_model(hparams)


def test_each_encoder_of_a_fused_one_is_compared():
    tiny = {"embed_dim": 8, "encoder_layers": 2, "encoder_embed_dim": 8, "encoder_ffn_embed_dim": 8}
    tiny |= {"encoder_attention_heads": 2, "conv_pos": 4, "conv_pos_groups": 2}
    part = {"type": "beats", "source": tiny}
    block = {"type": "fused", "encoders": {"a": part, "b": part | {"layers": [-1], "pool": 4}}}
    made = build("encoders", block).identity()
    _require_encoder("store", block, made)
    for change, message in (
        ({"align": "linear"}, "encoder align 'nearest'"),
        ({"encoders": {**block["encoders"], "b": part}}, r"encoder.encoders.b layers \[1\].* YAML file has \[0, 1\]"),
        ({"encoders": {"a": part, "c": part}}, "encoder encoders"),
    ):
        with pytest.raises(ConfigError, match=message):
            _require_encoder("store", block | change, made)


def test_validation_data_has_prompts_without_answers(corpus, tmp_path):
    hparams, _, _ = load_experiment([str(corpus / "stage.yaml"), "--output_folder", str(tmp_path)])
    model, tokenizer = build_model(hparams)
    dataset = build_dataset(hparams, "valid", model, tokenizer)
    assert max(dataset[0].labels) >= 0 and max(dataset.without_answers()[0].labels) == -100
    with pytest.raises(ConfigError, match="manifests: no list of files under 'test'"):
        build_dataset(hparams, "test", model, tokenizer)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"max_position_embeddings": 9}, "max_length .* is beyond max_position_embeddings 9"),
        ({"layer_types": ["linear_attention"]}, "layers of the kind linear_attention are not supported"),
    ],
)
def test_an_llm_that_cannot_answer_is_refused_before_training(corpus, tmp_path, entries, message):
    shutil.copytree(corpus / "llm", tmp_path / "llm")
    path = tmp_path / "llm" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    command = [str(corpus / "stage.yaml"), "--output_root", str(tmp_path), "--device", "cpu"]
    with pytest.raises(ConfigError, match=f"cannot answer after training: LlamaConfig: {message}"):
        train([*command, "--llm.source", str(tmp_path / "llm")])
    assert not (tmp_path / "stage_1" / "losses.jsonl").exists()


def save_family(corpus, folder, kind):
    """An LLM of `tests.tiny` with the tokenizer of the corpus."""
    shutil.copytree(corpus / "llm", folder)
    tiny_family(kind, len(WORDS)).save_pretrained(folder)
    return ["--llm.source", str(folder)]


def test_an_llm_with_recurrent_layers_is_not_packed(corpus, tmp_path):
    flags = save_family(corpus, tmp_path / "llm", "lfm2")
    command = [str(corpus / "stage.yaml"), "--output_root", str(tmp_path), "--packing", "true", *flags]
    with pytest.raises(ConfigError, match="packing: the LLM has recurrent layers.*set packing to false"):
        build_model(load_experiment(command)[0])


@pytest.mark.parametrize("kind", ["gemma2", "qwen3_5_text"])
def test_todays_llms_train_validate_and_answer(corpus, tmp_path, kind):
    """A stage with its validation, which decodes, and its exported model: bf16 on a CPU, so matmul where possible."""
    flags = [*save_family(corpus, tmp_path / "llm", kind), "--precision", "bf16", "--epochs", "1"]
    train([str(corpus / "stage.yaml"), "--output_root", str(tmp_path), "--device", "cpu", *flags])
    bundle = load_model(tmp_path / "stage_1")
    rows = [json.loads(line) for line in (corpus / "valid.jsonl").read_text().splitlines()[:2]]
    assert bundle.model.causal_lm.config.model_type == kind and rows
    losses = [json.loads(line)["loss"] for line in (tmp_path / "stage_1" / "losses.jsonl").read_text().splitlines()]
    assert losses and all(0 < loss < 20 for loss in losses)


def test_stored_features_need_no_encoder(corpus, tmp_path, monkeypatch):
    hparams, _, _ = load_experiment([str(corpus / "stage.yaml"), "--output_folder", str(tmp_path)])
    monkeypatch.setattr(sys.modules["audiolm_lite.encoders.whisper"], "_load", None)
    model, _ = build_model(hparams)
    assert model.encoder is None


def test_weights_temperature_and_question_files_come_from_the_yaml_file(corpus, tmp_path):
    few = [row | {"id": f"few-{i}", "instruction": None} for i, row in enumerate(read_manifest(corpus / "valid.jsonl"))]
    write_manifest(corpus / "few.jsonl", few, instruction_required=False)
    command = [str(corpus / "stage.yaml"), "--output_folder", str(tmp_path), "--question_files", "{train: []}"]
    paths = [f"{corpus}/train.jsonl", f"{corpus}/few.jsonl"]

    def load(weights=None, *further):
        entries = [f"{{path: {p}, weight: {w}}}" for p, w in zip(paths, weights)] if weights else paths
        return load_experiment([*command, "--manifests.train", f"[{', '.join(entries)}]", *further])[0]

    model, tokenizer = build_model(load())
    plain = build_dataset(load(), "train", model, tokenizer)
    assert plain.mixture is None and plain.rows[12]["instruction"] == "what does the audio mean?"
    weighted = build_dataset(load([1, 3]), "train", model, tokenizer)
    assert weighted.mixture.counts == [4, 12] and weighted.mixture.seed == 3
    assert build_dataset(load(None, "--mixing_temperature", "1"), "train", model, tokenizer).mixture.counts == [12, 4]
    with pytest.raises(ConfigError, match="weights: only train may have them, and only without mixing_temperature"):
        build_dataset(load([1, 3], "--mixing_temperature", "2"), "train", model, tokenizer)
    # another mixture is another run
    assert settings(load([1, 3])) != settings(load([1, 2])) != settings(load())
