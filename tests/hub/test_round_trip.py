"""Saving a model and loading it again gives the same tensors."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from audiolm_lite.backbones.tensor_report import ConversionError
from audiolm_lite.convert.export import export_merged
from audiolm_lite.data.batching import Item
from audiolm_lite.hub.folder import CONFIG_FILE, ModelFolderError
from audiolm_lite.hub.load import load_model
from audiolm_lite.hub.save import save_model
from audiolm_lite.language.llm import load_llm
from audiolm_lite.modeling.batch import AUDIO_SLOT, IGNORE
from audiolm_lite.modeling.lora import add_lora, merge_lora, unwrap_peft
from tests.tiny import ATTENTION_LLMS, LLM, RECURRENT_LLMS, save_gemma3, tiny_llm

LORA_FILE = "lora/adapter_model.safetensors"


def equal_states(model, other, prefix):
    states = [{n: t for n, t in m.state_dict().items() if n.startswith(prefix)} for m in (model, other)]
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][n], states[1][n]) for n in states[0])


def test_model_with_lora(saved):
    folder, experiment, model = saved
    bundle = load_model(folder)
    for prefix in ("adapter.", "llm.", "encoder."):
        assert equal_states(model, bundle.model, prefix)
    assert not bundle.model.training and not any(p.requires_grad for p in bundle.model.parameters())
    assert bundle.template.template == experiment["template"] and bundle.eos_ids == [2]
    assert {path.name for path in folder.iterdir()} == {CONFIG_FILE, "adapter.safetensors", "lora"}


def test_adapter_with_lora(sources, make_experiment, make_model):
    experiment = make_experiment(lora=False)
    experiment["adapter"] |= {"lora": {"r": 2, "alpha": 4, "dropout": 0.0}}
    model = make_model(experiment)
    save_model(model, experiment, sources / "model")
    assert any("lora_B" in name for name in load_file(sources / "model" / "adapter.safetensors"))
    assert equal_states(model, load_model(sources / "model").model, "adapter.")


def test_llm_and_encoder_trained_now_or_in_an_earlier_stage(sources, make_experiment, make_model):
    experiment = make_experiment(lora=False)
    model = make_model(experiment)
    model.llm.model.layers[1].mlp.up_proj.weight.data += 1
    model.llm.model.embed_tokens.weight.data += 1
    model.encoder.model.conv1.weight.data += 1
    model.llm.model.embed_tokens.requires_grad_(True)  # tied to the output layer, which must change with it
    trained = ["llm.model.layers.1.mlp.up_proj.weight", "encoder.model.conv1.weight"]
    save_model(model, experiment, sources / "model", trained=trained)
    bundle = load_model(sources / "model")
    for prefix in ("adapter.", "llm.", "encoder."):
        assert equal_states(model, bundle.model, prefix)
    names = set(load_file(sources / "model" / "llm.safetensors"))
    assert names == {"model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"}


def test_trained_llm_with_lora(sources, make_experiment, make_model):
    experiment = make_experiment(lora=True)
    model = make_model(experiment)
    name = "llm.base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"
    model.get_parameter(name).data += 1
    save_model(model, experiment, sources / "model", trained=[name])
    assert equal_states(model, load_model(sources / "model").model, "llm.")


def test_dora_magnitudes_are_saved(sources, make_experiment, make_model):
    experiment = make_experiment(lora=True)
    experiment["llm"]["lora"]["dora"] = True
    model = make_model(experiment)
    magnitudes = {name: tensor for name, tensor in model.state_dict().items() if "lora_magnitude_vector" in name}
    assert magnitudes and all(model.get_parameter(name).requires_grad for name in magnitudes)
    save_model(model, experiment, sources / "model")
    loaded = load_model(sources / "model").model.state_dict()
    for name, tensor in magnitudes.items():
        assert torch.equal(loaded[name], tensor), name


def test_bundled_folder_loads_after_a_move_and_without_the_pretrained_models(sources, make_experiment, make_model):
    experiment = make_experiment(lora=True)
    model = make_model(experiment, with_encoder=False)  # trained on stored features
    save_model(model, experiment, sources / "model", bundle=True)
    for name in ("whisper", "llama"):
        shutil.rmtree(sources / name)
    moved = shutil.move(sources / "model", sources / "moved")
    bundle = load_model(moved)
    assert equal_states(model, bundle.model, "adapter.") and equal_states(model, bundle.model, "llm.")
    text = "".join(path.read_text() for path in (sources / "moved").rglob("*.json"))
    assert str(sources) not in text, "the folder contains a path of the machine that wrote it"


def test_bundled_folder_contains_every_encoder_of_a_fused_one(sources, make_experiment, make_model, tmp_path):
    experiment = make_experiment(lora=False)
    whisper = experiment["encoder"]
    encoders = {"speech": whisper, "audio": whisper | {"layers": [0]}}
    experiment["encoder"] = {"type": "fused", "encoders": encoders}
    model = make_model(experiment)
    model.encoder.encoders["audio"].model.conv1.weight.data += 1
    trained = ["encoder.encoders.audio.model.conv1.weight"]
    save_model(model, experiment, sources / "model", trained=trained, bundle=True)
    (sources / "whisper").rename(tmp_path / "gone")
    bundle = load_model((sources / "model").rename(tmp_path / "moved"))
    assert equal_states(model, bundle.model, "encoder.")


def test_lora_merged_while_loading_gives_the_bits_of_peft(saved):
    folder, _, _ = saved
    merged, wrapped = load_model(folder, merge=True).model.llm, merge_lora(load_model(folder).model.llm)
    assert not hasattr(merged, "peft_config") and merged.state_dict().keys() == wrapped.state_dict().keys()
    assert all(torch.equal(tensor, wrapped.state_dict()[name]) for name, tensor in merged.state_dict().items())
    with pytest.raises(ModelFolderError, match="has been merged"):
        save_model(load_model(folder, merge=True).model, {}, folder)


def test_the_lora_of_quantised_weights_stays_separate(saved, monkeypatch, caplog):
    """Also where the LLM was published in 4 bits, of which the model folder has no entry."""

    def published_in_4_bits(config):
        llm, tokenizer = load_llm(config)
        unwrap_peft(llm).is_quantized = True
        return llm, tokenizer

    folder, _, model = saved
    monkeypatch.setattr("audiolm_lite.hub.load.load_llm", published_in_4_bits)
    bundle = load_model(folder, merge=True)
    weights = {name: t.clone() for name, t in bundle.model.llm.state_dict().items()}
    with caplog.at_level("INFO"):
        bundle.prepare("bfloat16")
    assert hasattr(bundle.model.llm, "peft_config") and "stays separate" in caplog.text
    assert all(torch.equal(tensor, weights[name]) for name, tensor in bundle.model.llm.state_dict().items())
    assert equal_states(model, bundle.model, "llm.")
    with pytest.raises(ConversionError, match="are quantised"):
        export_merged(folder, folder / "merged")
    with pytest.raises(ValueError, match="the LLM is quantised"):
        add_lora(unwrap_peft(published_in_4_bits(saved[1]["llm"])[0]), load_file(folder / LORA_FILE), 1.0)


def test_merging_says_what_it_does(saved, caplog):
    for merge in (True, False):
        caplog.clear()
        with caplog.at_level("INFO"):
            load_model(saved[0], merge=merge).prepare()
        assert caplog.text.count("is added to the weights of the LLM in memory, with sums rounded to float32") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(sorted(t)[0]), "tensors instead of"),
        (lambda t: t.update({sorted(t)[0]: torch.ones(2, 3)}), "has the shapes"),
        (lambda t: t.update({"x.lora_A.weight": t.pop(sorted(t)[0])}), "does not belong to this LLM"),
        (lambda t: [tensor.zero_() for name, tensor in t.items() if "lora_B" in name], "every lora_B is zero"),
    ],
)
def test_a_lora_that_does_not_fit_is_not_merged(saved, change, message):
    path = saved[0] / "lora" / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(ModelFolderError, match=message):
        load_model(saved[0], merge=True)


@pytest.mark.parametrize("kind", ["gemma2", "granite", "gpt_oss", "qwen3_5_text", "lfm2", "gemma3"])
def test_todays_llms_are_saved_loaded_and_merged(sources, make_experiment, make_model, kind):
    """And answer as they did before; of "gemma3", a model with a vision tower, the language model is loaded."""
    sizes = {**LLM, "num_key_value_heads": 1, "vocab_size": 13}
    if kind == "gemma3":
        save_gemma3(sources / "llama", **{**sizes, **ATTENTION_LLMS["gemma3_text"], "final_logit_softcapping": None})
    else:
        tiny_llm(13, kind=kind, **{**sizes, **(ATTENTION_LLMS | RECURRENT_LLMS)[kind]}).save_pretrained(
            sources / "llama"
        )
    experiment = make_experiment(lora=True)
    model = make_model(experiment)
    save_model(model, experiment, sources / "model", bundle=True)
    shutil.rmtree(sources / "llama")
    bundle = load_model(sources / "model")
    assert equal_states(model, bundle.model, "llm.") and not hasattr(bundle.model.causal_lm, "vision_tower")
    ids = [1, 3, 5, *[AUDIO_SLOT] * 10, 8, 4, 5]
    item = Item({"id": "a"}, ids, [IGNORE] * len(ids), features=torch.randn(2, 10, 16))
    answers = []
    for loaded in (bundle, load_model(sources / "model", merge=True)):
        loaded.model.requires_grad_(False)
        answers.append(loaded.answer([item, item], {"max_new_tokens": 6, "stop_loops": False}))
    assert answers[0] == answers[1] and answers[0][0] == answers[0][1] != ""
