"""What is written into a model folder."""

import json
import os
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from audiolm_lite.decoding.options import GenerationError
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


class Killed(BaseException):
    """A process that is killed removes nothing that it has written."""


@pytest.mark.parametrize("bundle", [False, True])
def test_a_save_that_is_killed_at_any_moment_leaves_the_old_model_or_the_new_one(
    sources, make_experiment, make_model, monkeypatch, tmp_path, bundle
):
    """Old: LoRA and trained LLM. New: another adapter, a trained encoder. Each change of the disk is the last one."""
    old, new = make_experiment(lora=True), make_experiment(lora=False)
    first, second = make_model(old), make_model(new)
    second.encoder.model.conv1.weight.data += 1
    save_model(first, old, tmp_path / "old", trained=["llm.base_model.model.lm_head.weight"], bundle=bundle)
    trained = ["encoder.model.conv1.weight"]
    save_model(second, new, tmp_path / "new", trained=trained)
    identities = [load_model(tmp_path / name).identity for name in ("old", "new")]
    files = {path.relative_to(tmp_path / "new") for path in (tmp_path / "new").rglob("*")}

    def killed_at(last):
        count = 0

        def counted(function):
            def run(*arguments, **options):
                nonlocal count
                count += 1
                if count > last:
                    raise Killed
                return function(*arguments, **options)

            return run

        with monkeypatch.context() as patch:
            for module, name in ((os, "replace"), (os, "unlink"), (os, "mkdir"), (os, "rmdir"), (shutil, "rmtree")):
                patch.setattr(module, name, counted(getattr(module, name)))
            patch.setattr("audiolm_lite.hub.save.save_file", counted(save_file))
            try:
                save_model(second, new, folder, trained=trained)
            except Killed:
                return True
        return False

    seen, last = [], 0
    while True:
        folder = tmp_path / str(last)
        shutil.copytree(tmp_path / "old", folder)
        (folder / "log.txt").write_text("of the stage")
        if not killed_at(last):
            break
        seen.append(identities.index(load_model(folder).identity))
        last += 1
    assert seen == sorted(seen) and set(seen) == {0, 1}  # the old one, then the new one
    assert {path.relative_to(folder) for path in folder.rglob("*")} >= files
    assert load_model(folder).identity == identities[1] and (folder / "log.txt").read_text() == "of the stage"
    assert not (folder / "lora").exists() and not (folder / ".new_model").exists()


def test_a_save_that_fails_leaves_the_old_model(saved, make_experiment, make_model, sources):
    folder, experiment, model = saved
    before = load_model(folder).identity
    with pytest.raises(GenerationError):
        save_model(model, {**experiment, "generation": {"beamz": 2}}, folder)
    (sources / "llama" / "pytorch_model.bin").write_bytes(b"")
    (sources / "llama" / "LICENSE").symlink_to("/etc/passwd")
    with pytest.raises(ModelFolderError, match="symbolic link"):
        save_model(model, experiment, folder, bundle=True)
    (sources / "llama" / "LICENSE").unlink()
    assert load_model(folder).identity == before and not (folder / ".new_model").exists()


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "log.txt", "lora/../../outside", "checkpoints/x", "link/x", "llm/link/x", 3]
)
def test_a_list_of_new_files_names_nothing_else(saved, name, tmp_path):
    folder = saved[0]
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "x").write_text("mine")
    (folder / "llm").mkdir()
    for link in (folder / "link", folder / "llm" / "link"):
        link.symlink_to(outside)
    (folder / ".new_model").mkdir()
    for entry in ({"files": [name], "copies": []}, {"files": [], "copies": [name]}, {"files": [name]}):
        (folder / ".new_model" / "files.json").write_text(json.dumps(entry))
        with pytest.raises(ModelFolderError, match="not a list of the files of a model"):
            load_model(folder)
    assert (outside / "x").read_text() == "mine"


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
