"""Export of a model folder: the LoRA for PEFT, the merged LLM for transformers."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from audiolm_lite.config.errors import UserError
from audiolm_lite.convert.run import main
from audiolm_lite.hub.load import load_model
from audiolm_lite.hub.save import save_model

IDS = torch.arange(3, 9)[None]


@pytest.fixture
def model_folder(sources, make_experiment, make_model):
    def make(lora, **llm):
        experiment = make_experiment(lora=lora)
        experiment["llm"] |= llm
        model = make_model(experiment)
        name = "model.layers.1.mlp.up_proj.weight"
        name = f"llm.base_model.model.{name}" if lora else f"llm.{name}"
        model.get_parameter(name).data += 0.5
        save_model(model, experiment, sources / "model", trained=[name])
        return sources / "model"

    return make


def test_exported_lora_is_a_peft_folder(model_folder, sources, tmp_path):
    folder = model_folder(lora=True)
    main(["export_lora", str(folder), str(tmp_path / "lora")])
    llm = load_model(folder).model.llm
    base = AutoModelForCausalLM.from_pretrained(sources / "llama")
    base.model.layers[1].mlp.up_proj.weight.data += 0.5
    plain = PeftModel.from_pretrained(base, tmp_path / "lora").eval()
    torch.testing.assert_close(plain(input_ids=IDS).logits, llm(input_ids=IDS).logits)


@pytest.mark.parametrize("lora", [True, False])
def test_merged_llm_loads_in_transformers(model_folder, sources, tmp_path, lora):
    folder = model_folder(lora=lora)
    expected = load_model(folder).model.llm(input_ids=IDS).logits
    main(["export_merged", str(folder), str(tmp_path / "llm")])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "llm").eval()
    torch.testing.assert_close(merged(input_ids=IDS).logits, expected, rtol=0, atol=2e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "llm")("dog rain").input_ids
    plain = AutoModelForCausalLM.from_pretrained(sources / "llama").eval()
    assert (plain(input_ids=IDS).logits - expected).abs().max() > 0.01


def test_refused_exports(model_folder, tmp_path):
    folder = model_folder(lora=False)
    with pytest.raises(UserError, match="no LoRA"):
        main(["export_lora", str(folder), str(tmp_path / "lora")])
    for command in ("export_lora", "export_merged"):
        with pytest.raises(UserError, match="exists"):
            main([command, str(folder), str(folder)])
        with pytest.raises(UserError, match="no audiolm_lite.json"):
            main([command, str(tmp_path), str(tmp_path / "new")])
    assert not list(tmp_path.glob(".*.tmp"))
