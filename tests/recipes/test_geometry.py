"""Recipes' YAML files of real size with the published sizes of their models, on the meta device: trained parameters."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from audiolm_lite.adapters.build import build_adapter
from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.registry import build
from audiolm_lite.language import llm as language
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.training.trainable import parameter_groups, select_trainable
from tests.encoders.test_real_sizes import with_geometry

ROOT = Path(__file__).parents[2]


def llama(dim, hidden, layers, heads, kv_heads, vocabulary, tied=False, head_dim=None):
    return LlamaConfig(
        hidden_size=dim, intermediate_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=vocabulary, tie_word_embeddings=tied, head_dim=head_dim,
    )  # fmt: skip


# As in config.json of each name.
LLMS = {
    "meta-llama/Llama-3.2-1B-Instruct": llama(2048, 8192, 16, 32, 8, 128256, tied=True),
    "meta-llama/Llama-3.2-3B-Instruct": llama(3072, 8192, 28, 24, 8, 128256, tied=True),
    "meta-llama/Meta-Llama-3-8B-Instruct": llama(4096, 14336, 32, 32, 8, 128256),
    "smollm2-135m-instruct": llama(576, 1536, 30, 9, 3, 49152, tied=True),
    "lmsys/vicuna-7b-v1.5": llama(4096, 11008, 32, 32, 32, 32000),
    "lmsys/vicuna-13b-v1.1": llama(5120, 13824, 40, 40, 40, 32000),
    "mistralai/Voxtral-Mini-3B-2507": llama(3072, 8192, 30, 32, 8, 131072, head_dim=128),
    "Qwen/Qwen3-1.7B": Qwen3Config(
        hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
        head_dim=128, vocab_size=151936, tie_word_embeddings=True,
    ),
}  # fmt: skip

# Parameters in billions, of the LoRA in millions.
BLOCKS = {
    "llama3_2_1b_lora": (1.24, 0.85),
    "llama3_2_3b_lora": (3.21, 2.29),
    "llama3_8b_lora": (8.03, 3.41),
    "smollm2_135m_lora": (0.135, 4.88),
    "vicuna_7b": (6.74, 0),
    "vicuna_7b_lora": (6.74, 4.19),
    "vicuna_13b_lora": (13.02, 6.55),
    "qwen3_1_7b": (1.72, 0),
    "qwen3_1_7b_lora": (1.72, 1.61),
    "voxtral_mini_3b": (4.01, 0),
}

# Stages of real size. Each file says how many parameters it trains, as published where a publication says it.
STAGES = {
    f"{path.parent.parent.relative_to(ROOT / 'recipes')}/{path.stem}": path
    for path in sorted(ROOT.glob("recipes/*/*/hparams/*.yaml"))
    if "\n_trainable_parameters:" in path.read_text("utf-8")
}


@pytest.fixture
def load_llm(monkeypatch):
    """`load_llm` with models without weights in place of downloaded ones, and without quantisation."""

    def empty(source, **options):
        return AutoModelForCausalLM.from_config(LLMS[source])

    monkeypatch.setattr(language, "AutoConfig", SimpleNamespace(from_pretrained=lambda source, **_: LLMS[source]))
    monkeypatch.setattr(language, "AutoModelForCausalLM", SimpleNamespace(from_pretrained=empty))
    monkeypatch.setattr(language, "_load_tokenizer", lambda source: None)
    monkeypatch.setattr(language, "resolve", lambda source: source)
    monkeypatch.setattr(language, "check_published", lambda where, source, **_: None)

    def load(block):
        with torch.device("meta"):
            return language.load_llm({**block, "quantization": None})[0]

    return load


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


@pytest.mark.parametrize("block", BLOCKS)
def test_llms_have_their_published_size(block, load_llm):
    llm = load_llm(yaml.safe_load((ROOT / f"hparams/llms/{block}.yaml").read_text(encoding="utf-8")))
    lora = count(parameter for name, parameter in llm.named_parameters() if "lora_" in name)
    billions, millions = BLOCKS[block]
    assert (count(llm.parameters()) - lora) / 1e9 == pytest.approx(billions, abs=0.005)
    assert lora / 1e6 == pytest.approx(millions, abs=0.005)


def test_every_llm_block_is_tested():
    blocks = {path.stem for path in (ROOT / "hparams/llms").glob("*.yaml")}
    assert blocks - {"miniasqa_lora"} == BLOCKS.keys()  # the recipe's tests load that one


def test_stages_of_real_size_say_how_many_parameters_they_train():
    files = [path for path in ROOT.glob("recipes/*/*/hparams/*.yaml") if "\ntrainable:" in path.read_text("utf-8")]
    assert {path for path in files if "backbones" not in path.read_text("utf-8")} == set(STAGES.values())


@pytest.mark.parametrize("stage", STAGES)
def test_as_many_parameters_train_as_the_file_says(stage, load_llm, tmp_path, monkeypatch):
    path = STAGES[stage]
    monkeypatch.chdir(path.parent.parent)
    beats = ["--beats", "PLACEHOLDER"] if "beats:" in path.read_text("utf-8") else []
    hparams, _, _ = load_experiment([str(path), "--output_folder", str(tmp_path), *beats])
    if hparams["llm"]["source"] not in LLMS:
        pytest.skip(f"the sizes of {hparams['llm']['source']} are not in LLMS")
    llm = load_llm(hparams["llm"])
    with torch.device("meta"):
        encoder = build("encoders", with_geometry(hparams["encoder"]))
        sizes = {"feature_dim": encoder.feature_dim, "num_layers": encoder.num_layers}
        adapter = build_adapter(hparams["adapter"], **sizes, llm_dim=llm.get_input_embeddings().embedding_dim)
    model = AudioLanguageModel(adapter, llm, encoder if hparams["train_encoder"] else None)
    select_trainable(model, hparams["trainable"])
    groups = parameter_groups(
        model, hparams["learning_rates"], {key: hparams[key] for key in ("weight_decay", "schedule", "warmup_steps")}
    )
    millions = count(parameter for group in groups for parameter in group["params"]) / 1e6
    expected, unit = hparams["_trainable_parameters"].split()
    digits = len(expected.partition(".")[2])
    assert f"{millions:.{digits}f} million" == f"{expected} {unit}"
