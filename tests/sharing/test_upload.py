"""Publishing a model folder: its card, the uploaded files, and refusal of paths of one machine."""

import json

import pytest

from audiolm_lite.hub.folder import CONFIG_FILE, ModelFolderError
from audiolm_lite.hub.save import save_model
from audiolm_lite.sharing.model_card import model_card
from audiolm_lite.sharing.upload import push_to_hub


def test_paths_of_this_machine_are_refused(sources, make_experiment, make_model):
    experiment = make_experiment(lora=True)
    save_model(make_model(experiment), experiment, sources / "model")
    with pytest.raises(ModelFolderError, match="bundle=True"):
        push_to_hub(sources / "model", "owner/name")


def test_upload_has_a_card_with_results(sources, monkeypatch, make_experiment, make_model):
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
    assert {CONFIG_FILE, "adapter.safetensors", "lora/*", "llm/*"} <= set(calls[1]["allow_patterns"])
    assert calls[0] == (("owner/name",), {"private": True, "exist_ok": True})


def test_the_card_names_the_licences_of_the_base_models(sources, monkeypatch, make_experiment, make_model):
    (sources / "llama" / "USE_POLICY.md").write_text("policy")
    (sources / "llama" / "README.md").write_text("---\nlicense: llama3.2\n---\n")
    experiment = make_experiment(lora=True)
    save_model(make_model(experiment), experiment, sources / "model", bundle=True)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, *a, **k: None)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda self, **k: "address")
    push_to_hub(sources / "model", "owner/name")
    card = (sources / "model" / "README.md").read_text()
    assert "- `llama`, copied to `llm/`, llama3.2; its terms are in `llm/USE_POLICY.md`" in card
    assert "- `whisper`, copied to `encoder/`, licence not stated" in card
    assert "reads safetensors and JSON only and runs no code from it.\n" in card
    named = {**json.loads((sources / "model" / CONFIG_FILE).read_text()), "licences": {}}
    named["llm"]["source"], named["encoder"]["source"] = "owner/llm", "whisper-tiny.en"
    card = model_card(named, "owner/name", licence="MIT", licences={"owner/llm": "gemma"})
    assert "The tensors of this model (adapter, LoRA) are under MIT." in card and "license: mit\n" in card
    assert "- `owner/llm` ([its page](https://huggingface.co/owner/llm)), gemma" in card
    assert "- `whisper-tiny.en` ([openai/whisper-tiny.en](https://huggingface.co/openai/whisper-tiny.en)), MIT;" in card


def test_no_file_of_another_kind_is_uploaded(sources, monkeypatch, make_experiment, make_model):
    experiment = make_experiment(lora=True)
    save_model(make_model(experiment), experiment, sources / "model", bundle=True)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, *a, **k: pytest.fail("uploads"))
    for file in ("llm/decode_step.pt2", "lora/id_rsa", "encoder/.env"):
        (sources / "model" / file).write_text("x")
        with pytest.raises(ModelFolderError, match="safetensors and JSON only"):
            push_to_hub(sources / "model", "owner/name")
        (sources / "model" / file).unlink()
    (sources / "model" / "metrics.json").symlink_to("/etc/passwd")
    with pytest.raises(ModelFolderError, match="metrics.json: a symbolic link out of the model folder"):
        push_to_hub(sources / "model", "owner/name")
