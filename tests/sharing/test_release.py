"""Making a released model from a stage: float16, card, digests; and finding it by its name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from audiolm_lite.api import AudioLM
from audiolm_lite.backbones.cache import backbone_folder, read_record
from audiolm_lite.hub import released
from audiolm_lite.hub.folder import CONFIG_FILE, ModelFolderError
from audiolm_lite.hub.load import load_model, load_trained
from audiolm_lite.sharing.release import main, release
from audiolm_lite.training.handover import previous_folder
from tests.released import save_stage, store_backbone
from tests.tiny import tiny_llm


@pytest.fixture
def stage(sources, make_experiment, make_model, monkeypatch):
    """Folder of a stage; released models are next to it, in `released/`."""
    monkeypatch.setenv("AUDIOLM_LITE_CACHE", str(sources / "cache"))
    monkeypatch.setattr(released, "RELEASED", sources / "released")
    monkeypatch.chdir(sources)
    return save_stage(sources, make_experiment, make_model)


@pytest.fixture
def tiny(stage, sources):
    """Folder of the released model "tiny"."""
    (stage / "train_log.txt").write_text("epoch: 1\n")
    (sources / "notes.md").write_text("## Training data\n\nAN4.\n")
    main([str(stage), str(sources / "released" / "tiny"), "--notes", str(sources / "notes.md")])
    return sources / "released" / "tiny"


def test_tensors_are_float16_and_load_by_name(stage, tiny, capsys):
    for file in ("adapter.safetensors", "lora/adapter_model.safetensors"):
        exact, stored = load_file(stage / file), load_file(tiny / file)
        assert stored.keys() == exact.keys()
        assert all(torch.equal(stored[name], tensor.half()) for name, tensor in exact.items())
    assert (tiny / "train_log.txt").read_text() == "epoch: 1\n"
    bundle = load_model("tiny")
    assert torch.equal(
        bundle.model.adapter.projection.weight, load_file(tiny / "adapter.safetensors")["projection.weight"]
    )
    assert bundle.model.adapter.projection.weight.dtype == torch.float32
    assert load_trained(bundle.model, "tiny")
    assert isinstance(AudioLM.from_pretrained("tiny", device="cpu").transcribe(torch.randn(9000)), str)
    assert previous_folder({"previous_stage": "tiny"}) == tiny


def test_card_has_notes_licences_and_digests(tiny):
    card = (tiny / "README.md").read_text()
    digest = read_record(backbone_folder("whisper-tiny.en"))["digest"]
    assert "license: apache-2.0\nbase_model:\n- openai/whisper-tiny.en\n" in card
    assert 'from_pretrained("tiny")' in card and "## Training data\n\nAN4." in card and digest in card
    assert json.loads((tiny / CONFIG_FILE).read_text())["backbones"]["whisper-tiny.en"] == digest


def test_other_weights_of_a_backbone_are_reported(tiny, sources, recwarn):
    load_model("tiny")
    assert not [warning for warning in recwarn if "other weights" in str(warning.message)]
    torch.manual_seed(9)
    tiny_llm(13, tie_word_embeddings=True, max_position_embeddings=256).save_pretrained(sources / "llama")
    store_backbone("smollm2-135m-instruct", sources / "llama")
    with pytest.warns(UserWarning, match="tiny was trained with other weights of smollm2-135m-instruct .*from a test"):
        load_model("tiny")


def test_a_local_folder_of_the_same_name_takes_precedence(tiny, sources):
    (sources / "tiny").mkdir()
    with pytest.raises(ModelFolderError, match="tiny: no audiolm_lite.json"):
        load_model("tiny")


def test_unknown_names_list_the_released_models(tiny):
    with pytest.raises(ModelFolderError, match="model tinny: .*did you mean 'tiny'"):
        load_model("tinny")


def test_what_float16_cannot_store_is_refused(stage, sources):
    tensors = load_file(stage / "adapter.safetensors")
    tensors["projection.bias"][0] = 1e5
    save_file(tensors, stage / "adapter.safetensors")
    with pytest.raises(ModelFolderError, match="projection.bias: 100000 is not finite or too large"):
        release(stage, sources / "released" / "tiny", "notes")
    assert not (sources / "released" / "tiny").exists()
