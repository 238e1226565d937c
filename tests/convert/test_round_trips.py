"""Published checkpoints, built from tiny models, become model folders that compute the same."""

import json

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from audiolm_lite.hub.load import load_model
from tests.convert import published

QFORMER = {"queries": 3, "dim": 24, "heads": 3, "hidden_dim": 20}
CONFORMER = {"type": "conformer", "dim": 24, "heads": 3, "kernel": 5, "expansion": 2, "channels": 4}


@pytest.fixture
def encoder(sources, tmp_path):
    """Write a YAML block of the tiny encoder with these layers; None: all layers."""

    def write(layers):
        path = tmp_path / "encoder.yaml"
        block = {"type": "whisper", "source": str(sources / "whisper"), "layers": layers}
        path.write_text(yaml.safe_dump(block))
        return path

    return write


@pytest.fixture
def llama_3(sources):
    """Give the tiny LLM's tokenizer the special tokens of Llama 3, which the template of LTU-AS has."""
    tokenizer = AutoTokenizer.from_pretrained(sources / "llama")
    tokenizer.add_tokens(["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], special_tokens=True)
    tokenizer.save_pretrained(sources / "llama")


@pytest.fixture
def check(run, sources, encoder, tmp_path, lora_llm):
    """Convert a file or folder to a model folder; compare its adapter and LLM with the originals."""

    def compare(name, source, adapter, *arguments, alpha=None, layers=1):
        out = tmp_path / "model"
        block = encoder([-1] if layers == 1 else None)
        printed = run(name, source, out, "--encoder", block, "--llm", sources / "llama", *arguments)
        assert "0 missing, 0 misshapen, 0 unexpected" in printed
        bundle = load_model(out)
        features, frames = torch.randn(2, layers, 40, published.DIM), torch.tensor([40, 33])
        for ours, theirs in zip(bundle.model.adapter(features, frames), adapter(features, frames)):
            torch.testing.assert_close(ours, theirs)
        if alpha is not None:
            for module in lora_llm.modules():
                if hasattr(module, "lora_A"):
                    module.scaling["default"] = alpha / 2
            ids = torch.arange(3, 9)[None]
            torch.testing.assert_close(bundle.model.llm(input_ids=ids).logits, lora_llm(input_ids=ids).logits)
        return printed

    return compare


@pytest.mark.parametrize("conv", [False, True])
def test_slam_llm_linear(check, tmp_path, conv):
    adapter = published.make_adapter({"type": "linear", "stride": 3, "hidden_dim": 24, "conv": conv})
    torch.save(published.slam_linear(adapter), tmp_path / "model.pt")
    check("slam_llm", tmp_path / "model.pt", adapter, "--stride", 3)


@pytest.mark.parametrize("wrapped", ["prefix", "entry"])
def test_slam_llm_from_deepspeed_with_a_lora_in_the_file(check, tmp_path, lora, wrapped):
    adapter = published.make_adapter({"type": "linear"})
    tensors = published.slam_linear(adapter) | {f"llm.{name}": tensor for name, tensor in lora.items()}
    if wrapped == "prefix":
        torch.save({f"module.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "model.pt")
    else:
        torch.save({"module": tensors, "optimizer": {"lr": 1.0}, "global_steps": 3}, tmp_path / "model.pt")
    check("slam_llm", tmp_path / "model.pt", adapter, alpha=32)


def test_slam_llm_qformer_with_a_lora_in_a_peft_folder(check, tmp_path, lora_llm):
    adapter = published.make_adapter({"type": "qformer", **QFORMER, "blocks": 3, "cross_every": 2})
    folder = tmp_path / "checkpoint"
    lora_llm.save_pretrained(folder / "lora", save_embedding_layers=False)
    torch.save(published.slam_qformer(adapter), folder / "model.pt")
    check("slam_llm", folder, adapter, "--heads", 3, alpha=6)


def test_slam_llm_qformer_has_the_names_of_transformers(tmp_path):
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    sizes = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 20, "num_hidden_layers": 3}
    library = Blip2QFormerModel(Blip2QFormerConfig(**sizes, encoder_hidden_size=published.DIM))
    adapter = published.make_adapter({"type": "qformer", **QFORMER, "blocks": 3})
    names = {name for name in published.slam_qformer(adapter) if "qformer." in name}
    assert names == {f"encoder_projector.qformer.{name}" for name in library.state_dict()}


@pytest.mark.parametrize("streams", [[10, 6], [16]])
def test_salmonn(check, tmp_path, lora, streams):
    block = {"type": "window_qformer", **QFORMER, "streams": streams, "published_behaviour": True}
    adapter = published.make_adapter(block)
    tensors = published.salmonn(adapter) | {f"llama_model.{name}": tensor for name, tensor in lora.items()}
    tensors = {n.replace("speech_Qformer.", "speech_Qformer._orig_mod."): t for n, t in tensors.items()}
    tensors |= {
        "beats.encoder.layers.0.fc1.weight": torch.ones(2, 2),
        "speech_Qformer._orig_mod.bert.embeddings.position_ids": torch.arange(8)[None],
        "llama_model.base_model.model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2),
    }
    config = {"model": {"lora_alpha": 12, "lora_rank": 2}}
    torch.save({"model": tensors, "config": config, "epoch": 3, "optimizer": {"state": {}}}, tmp_path / "salmonn.pth")
    printed = check("salmonn", tmp_path / "salmonn.pth", adapter, "--heads", 3, alpha=12)
    assert "3 ignored" in printed and "BEATs itself" in printed


@pytest.mark.parametrize(
    "changes", [{}, {"factor": 2}, {"factor": 8}, {"factor": 4, "subsampling": "striding"}], ids=str
)
def test_nemo_salm_from_lightning(check, tmp_path, lora, changes):
    adapter = published.make_adapter({**CONFORMER, **changes})
    tensors = published.nemo(adapter) | {f"llm.{name}": tensor for name, tensor in lora.items()}
    tensors |= {
        "embed_tokens.weight": torch.ones(13, published.DIM),
        "llm.base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight": torch.ones(
            published.DIM, published.DIM
        ),
        "llm.base_model.model.model.norm.weight": torch.ones(published.DIM),
        "perception.preprocessor.featurizer.window": torch.ones(4),
        "perception.encoder.layers.0.norm_out.weight": torch.ones(4),
    }
    content = {"state_dict": tensors, "hyper_parameters": {"cfg": {"lora": {"lora_alpha": 10}}}, "epoch": 1}
    torch.save(content, tmp_path / "step=10.ckpt")
    assert "5 ignored" in check("nemo_salm", tmp_path / "step=10.ckpt", adapter, alpha=10)


def test_nemo_salm_from_hugging_face(check, tmp_path, lora):
    adapter = published.make_adapter({"type": "identity"})
    state = {f"perception.proj.{name.split('.')[1]}": tensor.clone() for name, tensor in adapter.state_dict().items()}
    folder = tmp_path / "salm"
    folder.mkdir()
    save_file(state | {f"llm.{name}": tensor for name, tensor in lora.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"lora": {"r": 2, "lora_alpha": 4}, "pretrained_llm": "x"}))
    check("nemo_salm", folder, adapter, alpha=4)


def test_nemo_salm_with_a_fine_tuned_llm(run, sources, encoder, tmp_path):
    """Without a LoRA all of the LLM was trained (SFT), including its embeddings, which NeMo stores outside it."""
    llm = AutoModelForCausalLM.from_pretrained(sources / "llama")
    for parameter in llm.parameters():
        parameter.data += 0.1
    adapter = published.make_adapter({"type": "identity"})
    state = {f"perception.proj.{name.split('.')[1]}": tensor.clone() for name, tensor in adapter.state_dict().items()}
    for name, tensor in llm.state_dict().items():
        outside = name == "model.embed_tokens.weight"
        if name != "lm_head.weight":  # tied
            state["embed_tokens.weight" if outside else f"llm.{name}"] = tensor.clone()
    save_file(state, tmp_path / "model.safetensors")
    run("nemo_salm", tmp_path / "model.safetensors", tmp_path / "out", "--encoder", encoder([-1]),
        "--llm", sources / "llama")  # fmt: skip
    ids = torch.arange(3, 9)[None]
    loaded = load_model(tmp_path / "out").model.llm
    torch.testing.assert_close(loaded(input_ids=ids).logits, llm.eval()(input_ids=ids).logits)


@pytest.mark.usefixtures("llama_3")
def test_ltu_as_from_speechbrain(check, tmp_path, lora):
    adapter = published.make_adapter({"type": "tltr"}, num_layers=2)
    unused = {"0.at_model.mlp_layer.1.weight": torch.ones(527, published.DIM)}
    folder = tmp_path / "CKPT"
    folder.mkdir()
    torch.save(published.ltu_as(adapter) | unused, folder / "model.ckpt")
    torch.save({f"model.{name}": tensor for name, tensor in lora.items()}, folder / "llama3.ckpt")
    assert "1 ignored" in check("ltu_as", folder, adapter, alpha=16, layers=2)


@pytest.mark.usefixtures("llama_3")
def test_ltu_as_from_the_original_code(check, tmp_path, lora):
    adapter = published.make_adapter({"type": "tltr"}, num_layers=2)
    prefix = "base_model.model.model."
    tensors = published.ltu_as(adapter, tltr=f"{prefix}audio_encoder.", projection=f"{prefix}audio_proj.1")
    tensors |= {name.replace(".default", ""): tensor for name, tensor in lora.items()}  # its PEFT was older
    torch.save(tensors, tmp_path / "ltuas.bin")
    check("ltu_as", tmp_path / "ltuas.bin", adapter, "--lora_alpha", 5, alpha=5, layers=2)


def test_tltr_of_audioset_gets_a_random_projection(run, refused, tmp_path):
    adapter = published.make_adapter({"type": "tltr"}, num_layers=2)
    tensors = published.ltu_as(adapter, tltr="module.at_model.", projection="module.out")
    tensors = {name: tensor for name, tensor in tensors.items() if "out." not in name or "attn.out" in name}
    torch.save(tensors, tmp_path / "large-v1_ori.pth")
    refused("--llm_dim", "ltu_as", tmp_path / "large-v1_ori.pth")
    assert "new and random" in run("ltu_as", tmp_path / "large-v1_ori.pth", tmp_path / "out", "--llm_dim", 24)
    state = load_file(tmp_path / "out" / "adapter.safetensors")
    assert state["projection.weight"].shape == (24, published.DIM) and state["projection.weight"].any()
    for name, tensor in adapter.time_block.state_dict(prefix="time_block.").items():
        assert torch.equal(state[name], tensor)


def test_without_sources_adapter_and_lora_are_written(run, tmp_path, sources, lora_llm, lora):
    adapter = published.make_adapter({"type": "linear"})
    torch.save(published.slam_linear(adapter) | {f"llm.{n}": t for n, t in lora.items()}, tmp_path / "model.pt")
    run("slam_llm", tmp_path / "model.pt", tmp_path / "out", "--lora_alpha", 6)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"adapter.safetensors", "adapter.yaml", "lora"}
    block = yaml.safe_load((tmp_path / "out" / "adapter.yaml").read_text())
    assert block == {"type": "linear", "stride": 5, "hidden_dim": 2048, "conv": False}
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(sources / "llama"), tmp_path / "out" / "lora"
    )
    ids = torch.arange(3, 9)[None]
    torch.testing.assert_close(plain.eval()(input_ids=ids).logits, lora_llm(input_ids=ids).logits)
