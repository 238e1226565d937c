"""What is written into a model folder."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from audiolm_lite.hub.folder import CONFIG_FILE, ModelFolderError
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


def test_bundling_copies_licences_whatever_their_ending(sources, make_experiment, make_model):
    names = ("LICENSE", "LICENSE.txt", "Licence.pdf", "NOTICE", "Notice.html", "USE_POLICY.md", "use-policy.rst")
    names += ("ACCEPTABLE_USE_POLICY", "COPYING.LESSER", "THIRD_PARTY_NOTICES.md", "Terms_of_Use.docx", "EULA.rtf")
    for name in names:
        (sources / "llama" / name).write_bytes(name.encode())
    for name in ("license.bin", "notice.py", "pytorch_model.bin", "hyperparams.yaml", "evil.py", "notes.txt"):
        (sources / "llama" / name).write_bytes(b"x")
    (sources / "llama" / "README.md").write_text("---\nlicense: other\nlicense_name: llama3.2\n---\n")
    experiment = make_experiment(lora=False)
    save_model(make_model(experiment), experiment, sources / "model", bundle=True)
    copied = {path.name: path for path in (sources / "model" / "llm").iterdir()}
    assert {name for name in copied if not name.endswith((".json", ".safetensors"))} == set(names)
    assert all(copied[name].read_text() == name for name in names)
    licences = json.loads((sources / "model" / CONFIG_FILE).read_text())["licences"]
    assert licences["llm"] == {"model": "llama", "licence": "llama3.2", "files": sorted(names)}
    assert licences["encoder"] == {"model": "whisper", "licence": None, "files": []}


def test_bundling_writes_tokenizers_and_chat_templates_as_json_and_leaves_code_out(
    sources, make_experiment, make_model
):
    template = "{% for m in messages %}{{ m.role }} : {{ m.content }} </s> {% endfor %}"
    experiment = make_experiment(lora=False) | {"template": "{bos}{audio}{instruction}{answer}{eos}"}
    AutoTokenizer.from_pretrained(sources / "llama").save_pretrained(sources / "words")
    (sources / "words" / "chat_template.jinja").write_text(template)
    experiment["llm"]["tokenizer"] = str(sources / "words")
    for name in ("llama/config.json", "words/tokenizer_config.json"):
        content = json.loads((sources / name).read_text())
        code = {"auto_map": {"AutoModelForCausalLM": "modeling_x.X", "AutoTokenizer": ["tokenization_x.X", None]}}
        (sources / name).write_text(json.dumps({**content, **code, "vocab_file": "/etc/passwd"}))
    save_model(make_model(experiment), experiment, sources / "model", bundle=True)
    for name in ("llama", "words", "whisper"):
        shutil.rmtree(sources / name)
    bundle = load_model(sources / "model")
    assert bundle.tokenizer.chat_template == template and bundle.tokenizer("dog rain").input_ids == [6, 7]
    files = [path for path in (sources / "model").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert not any("auto_map" in path.read_text() for path in files if path.suffix == ".json")


def test_bundling_refuses_links_out_of_the_pretrained_model(sources, make_experiment, make_model):
    experiment = make_experiment(lora=False)
    model = make_model(experiment)
    (sources / "llama" / "LICENSE").symlink_to("/etc/passwd")
    with pytest.raises(ModelFolderError, match="LICENSE: a symbolic link out of its folder"):
        save_model(model, experiment, sources / "model", bundle=True)
