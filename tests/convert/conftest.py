"""Fixtures of the conversion tests: a tiny LLM with a LoRA, and calls of `audiolm-lite convert`."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from audiolm_lite.config.errors import UserError
from audiolm_lite.convert.run import main


@pytest.fixture
def lora_llm(sources):
    """The tiny LLM with a random LoRA of rank 2 and alpha 6 on q and v."""
    llm = AutoModelForCausalLM.from_pretrained(sources / "llama")
    llm = get_peft_model(llm, LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    for name, parameter in llm.named_parameters():
        if "lora_" in name:
            parameter.data = 0.5 * torch.randn(parameter.shape)
    return llm.eval()


@pytest.fixture
def lora(lora_llm):
    """Tensors of the LoRA of `lora_llm`, by their names in the model."""
    return {name: tensor.clone() for name, tensor in lora_llm.state_dict().items() if "lora_" in name}


@pytest.fixture
def run(capsys):
    """Call `audiolm-lite convert` with arguments; returns what it prints."""

    def call(*arguments):
        main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(run, tmp_path):
    """Expect the command to fail with a message, and to write nothing."""

    def call(message, name, source, *arguments):
        out = tmp_path / "refused"
        with pytest.raises(UserError, match=message):
            run(name, source, out, *arguments)
        assert not out.exists()

    return call
