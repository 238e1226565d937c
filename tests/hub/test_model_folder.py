"""A model's folder: what is written comes back, a bundled one stands alone, and nothing wrong passes silently."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
)

from audiolm_lite.hub.folder import CONFIG, ModelFolderError
from audiolm_lite.hub.load import load_model
from audiolm_lite.hub.save import save_model
from audiolm_lite.sharing.upload import push_to_hub


def equal_states(model, other, prefix):
    own, others = ({n: t for n, t in m.state_dict().items() if n.startswith(prefix)} for m in (model, other))
    return own.keys() == others.keys() and all(torch.equal(own[name], others[name]) for name in own)


@pytest.fixture
def saved(sources, make_experiment, make_model):
    """(folder, experiment, model) of a model with a LoRA."""
    experiment = make_experiment(lora=True)
    model = make_model(experiment)
    save_model(model, experiment, sources / "model")
    return sources / "model", experiment, model


def test_round_trip_with_a_lora(saved):
    folder, experiment, model = saved
    bundle = load_model(folder)
    for part in ("adapter.", "llm.", "encoder."):
        assert equal_states(model, bundle.model, part)
    assert not bundle.model.training and not any(p.requires_grad for p in bundle.model.parameters())
    assert bundle.template.template == experiment["template"] and bundle.eos_ids == [2]
    assert {path.name for path in folder.iterdir()} == {CONFIG, "adapter.safetensors", "lora"}


def test_a_lora_on_the_adapter_comes_back(sources, make_experiment, make_model):
    experiment = make_experiment(lora=False)
    experiment["adapter"] |= {"lora": {"r": 2, "alpha": 4, "dropout": 0.0}}
    model = make_model(experiment)
    save_model(model, experiment, sources / "model")
    assert any("lora_B" in name for name in load_file(sources / "model" / "adapter.safetensors"))
    assert equal_states(model, load_model(sources / "model").model, "adapter.")


def test_the_lora_is_a_plain_peft_folder(saved, sources):
    folder, _, model = saved
    base = AutoModelForCausalLM.from_pretrained(sources / "llama")
    plain = PeftModel.from_pretrained(base, folder / "lora").eval()
    ids = torch.arange(3, 9)[None]
    torch.testing.assert_close(plain(input_ids=ids).logits, model.llm(input_ids=ids).logits)


def test_fine_tuned_llm_and_encoder_come_back_trained_now_or_before(sources, make_experiment, make_model):
    experiment = make_experiment(lora=False)
    model = make_model(experiment)
    model.llm.model.layers[1].mlp.up_proj.weight.data += 1
    model.llm.model.embed_tokens.weight.data += 1
    model.encoder.model.conv1.weight.data += 1
    model.llm.model.embed_tokens.requires_grad_(True)  # tied to the output layer, which must follow
    trained = ["llm.model.layers.1.mlp.up_proj.weight", "encoder.model.conv1.weight"]
    save_model(model, experiment, sources / "model", trained=trained)
    bundle = load_model(sources / "model")
    for part in ("adapter.", "llm.", "encoder."):
        assert equal_states(model, bundle.model, part)
    names = set(load_file(sources / "model" / "llm.safetensors"))
    assert names == {"model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"}


def test_fine_tuned_llm_below_a_lora(sources, make_experiment, make_model):
    experiment = make_experiment(lora=True)
    model = make_model(experiment)
    name = "llm.base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"
    model.get_parameter(name).data += 1
    save_model(model, experiment, sources / "model", trained=[name])
    assert equal_states(model, load_model(sources / "model").model, "llm.")


def test_round_trip_of_a_dora(sources, make_experiment, make_model):
    """Its magnitudes travel with it."""
    experiment = make_experiment(lora=True)
    experiment["llm"]["lora"]["dora"] = True
    model = make_model(experiment)
    magnitudes = {name: tensor for name, tensor in model.state_dict().items() if "lora_magnitude_vector" in name}
    assert magnitudes and all(model.get_parameter(name).requires_grad for name in magnitudes)
    save_model(model, experiment, sources / "model")
    loaded = load_model(sources / "model").model.state_dict()
    for name, tensor in magnitudes.items():
        assert torch.equal(loaded[name], tensor), name


def test_an_untrained_lora_is_left_out(sources, make_experiment, make_model):
    experiment = make_experiment(lora=True)
    model = make_model(experiment)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    save_model(model, experiment, sources / "model")
    assert not (sources / "model" / "lora").exists()
    assert type(load_model(sources / "model").model.llm).__name__ == "LlamaForCausalLM"


def test_a_bundled_folder_stands_alone_and_can_move(sources, make_experiment, make_model):
    experiment = make_experiment(lora=True)
    model = make_model(experiment, with_encoder=False)  # trained on stored features
    save_model(model, experiment, sources / "model", bundle=True)
    for name in ("whisper", "llama"):
        shutil.rmtree(sources / name)
    moved = shutil.move(sources / "model", sources / "elsewhere")
    bundle = load_model(moved)
    assert equal_states(model, bundle.model, "adapter.") and equal_states(model, bundle.model, "llm.")
    text = "".join(path.read_text() for path in (sources / "elsewhere").rglob("*.json"))
    assert str(sources) not in text  # no path of the machine that made it


def test_saving_again_replaces_the_older_model(saved, sources, make_model):
    folder, experiment, _ = saved
    before = load_model(folder).identity
    save_model(make_model({**experiment, "llm": {**experiment["llm"], "lora": None}}), experiment, folder)
    assert not (folder / "lora").exists() and load_model(folder).identity != before


def edit(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("adapter.safetensors", lambda t: t.pop("projection.weight"), "projection.weight is missing"),
        ("adapter.safetensors", lambda t: t.update(extra=torch.ones(1)), "no place in this adapter, for example extra"),
        ("adapter.safetensors", lambda t: t.update({"projection.bias": torch.ones(3)}), "has shape"),
        ("lora/adapter_model.safetensors", lambda t: t.pop(sorted(t)[0]), "is not in the file"),
        ("lora/adapter_model.safetensors", lambda t: t.update(x=torch.ones(1)), "has no place in this LLM"),
        (
            "lora/adapter_model.safetensors",
            lambda t: [tensor.zero_() for name, tensor in t.items() if "lora_B" in name],
            "every lora_B is zero",
        ),
    ],
)
def test_every_tensor_is_accounted_for(saved, file, change, message):
    folder, _, _ = saved
    edit(folder / file, change)
    with pytest.raises(ModelFolderError, match=message):
        load_model(folder)


def test_damaged_and_foreign_folders_are_refused(saved, sources):
    folder, _, _ = saved
    with pytest.raises(ModelFolderError, match="no audiolm_lite.json"):
        load_model(sources)
    (folder / "adapter.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ModelFolderError, match="damaged"):
        load_model(folder)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"format": 2}))
    with pytest.raises(ModelFolderError, match="format 2"):
        load_model(folder)
    (folder / CONFIG).write_text(json.dumps(config | {"template": None}))
    with pytest.raises(ModelFolderError, match='"template" must be a str'):
        load_model(folder)


def test_a_configuration_cannot_name_code(saved):
    folder, _, _ = saved
    config = json.loads((folder / CONFIG).read_text())
    config["adapter"]["type"] = "os.system"
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match="unknown type"):
        load_model(folder)


def test_publishing_refuses_paths_of_this_machine(saved):
    folder, _, _ = saved
    with pytest.raises(ModelFolderError, match="bundle=True"):
        push_to_hub(folder, "owner/name")


def test_publishing_uploads_a_card_with_results(sources, monkeypatch, make_experiment, make_model):
    experiment = make_experiment(lora=True)
    save_model(make_model(experiment), experiment, sources / "model", bundle=True)
    score = {"type": "asr", "wer": 0.123, "cer": 0.05, "utterances": 7, "interval": {"wer": [0.1, 0.2]}}
    metrics = {"controls": {"normal": {"asr": score}, "zeros": {"asr": score | {"wer": 1.5}}}}
    (sources / "model" / "metrics.json").write_text(json.dumps(metrics))
    calls = []
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, *a, **k: calls.append((a, k)))
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda self, **k: calls.append(k) or "address")
    assert push_to_hub(sources / "model", "owner/name", private=True) == "address"
    card = (sources / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name") and "12.3 [10.0, 20.0] | 150.0 [10.0, 20.0] |" in card
    assert {CONFIG, "adapter.safetensors", "lora/*", "llm/*"} <= set(calls[1]["allow_patterns"])
    assert calls[0] == (("owner/name",), {"private": True, "exist_ok": True})


def test_every_encoder_inside_a_fused_one_travels(sources, make_experiment, make_model, tmp_path):
    experiment = make_experiment(lora=False)
    whisper = experiment["encoder"]
    encoders = {"speech": whisper, "audio": whisper | {"layers": [0]}}
    experiment["encoder"] = {"type": "fused", "encoders": encoders}
    model = make_model(experiment)
    model.encoder.encoders["audio"].model.conv1.weight.data += 1
    trained = ["encoder.encoders.audio.model.conv1.weight"]
    save_model(model, experiment, sources / "model", trained=trained, bundle=True)
    (sources / "whisper").rename(tmp_path / "gone")
    bundle = load_model((sources / "model").rename(tmp_path / "elsewhere"))
    assert equal_states(model, bundle.model, "encoder.")
