"""What is written into a model folder."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from audiolm_lite.hub.folder import ModelFolderError
from audiolm_lite.hub.load import load_model
from audiolm_lite.hub.save import save_model


def test_lora_is_a_plain_peft_folder(saved, sources):
    folder, _, model = saved
    base = AutoModelForCausalLM.from_pretrained(sources / "llama")
    plain = PeftModel.from_pretrained(base, folder / "lora").eval()
    ids = torch.arange(3, 9)[None]
    torch.testing.assert_close(plain(input_ids=ids).logits, model.llm(input_ids=ids).logits)


def test_untrained_lora_is_not_saved(sources, make_experiment, make_model):
    experiment = make_experiment(lora=True)
    model = make_model(experiment)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    save_model(model, experiment, sources / "model")
    assert not (sources / "model" / "lora").exists()
    assert type(load_model(sources / "model").model.llm).__name__ == "LlamaForCausalLM"


def test_saving_again_replaces_the_older_model(saved, make_model):
    folder, experiment, _ = saved
    before = load_model(folder).identity
    save_model(make_model({**experiment, "llm": {**experiment["llm"], "lora": None}}), experiment, folder)
    assert not (folder / "lora").exists() and load_model(folder).identity != before


def test_interrupted_save_leaves_a_folder_that_does_not_load(saved, make_model, monkeypatch):
    folder, experiment, model = saved

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("audiolm_lite.hub.save.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_model(model, experiment, folder)
    with pytest.raises(ModelFolderError, match="saving was interrupted"):
        load_model(folder)


def test_bundling_needs_safetensors_files(sources, make_experiment, make_model):
    experiment = make_experiment(lora=False)
    model = make_model(experiment)
    (sources / "llama" / "model.safetensors").rename(sources / "llama" / "pytorch_model.bin")
    with pytest.raises(ModelFolderError, match="llama: no .safetensors file"):
        save_model(model, experiment, sources / "model", bundle=True)
