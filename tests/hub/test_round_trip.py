"""Saving a model and loading it again gives the same tensors."""

import shutil

import torch
from safetensors.torch import load_file

from audiolm_lite.hub.folder import CONFIG_FILE
from audiolm_lite.hub.load import load_model
from audiolm_lite.hub.save import save_model


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
