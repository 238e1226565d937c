"""Publishing a model folder: its card, the uploaded files, and refusal of paths of one machine."""

import json

import pytest

from audiolm_lite.hub.folder import CONFIG_FILE, ModelFolderError
from audiolm_lite.hub.save import save_model
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
