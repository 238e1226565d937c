"""Published checkpoints of a stranger: whatever loads one runs no code in it and asks nobody."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch

from audiolm_lite.backbones.untrusted import check_modules, check_published
from audiolm_lite.config.errors import ConfigError, UserError
from audiolm_lite.config.registry import build
from audiolm_lite.convert.read import read_file, read_published
from audiolm_lite.convert.run import main as convert
from audiolm_lite.encoders.whisper_decoder import WhisperDecoder
from audiolm_lite.evaluation.metrics.matched_caption import score_matched_caption
from audiolm_lite.language.llm import load_llm
from audiolm_lite.plan.meta_model import build_meta_encoder
from tests.tiny import BEATS, SPEAKER, Code, save_recognizer, save_ssl, save_voxtral, tiny_llm, word_tokenizer

DEEP = '{"a":' * 50_000 + "1" + "}" * 50_000


def save_llm(folder: Path) -> None:
    words = "<unk> <s> </s> user answer".split()
    word_tokenizer(words, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    tiny_llm(len(words), max_position_embeddings=64).save_pretrained(folder)


def _match(source: Path, kind: str) -> object:
    return score_matched_caption(["dog"], ["a dog"], [["dog", "rain"]], {"type": kind, "source": str(source)})


# What loads a folder in transformers' format -> (writes one, loads it).
LOADERS: dict[str, tuple[Callable, Callable]] = {
    "wav2vec2": (lambda f: save_ssl(f, "wav2vec2"), lambda f: build("encoders", {"type": "ssl", "source": str(f)})),
    "hubert": (lambda f: save_ssl(f, "hubert"), lambda f: build("encoders", {"type": "ssl", "source": str(f)})),
    "wavlm": (lambda f: save_ssl(f, "wavlm"), lambda f: build("encoders", {"type": "ssl", "source": str(f)})),
    "whisper": (save_recognizer, lambda f: build("encoders", {"type": "whisper", "source": str(f)})),
    "voxtral_encoder": (
        lambda f: save_voxtral(f, 20, 2),
        lambda f: build("encoders", {"type": "whisper", "source": str(f)}),
    ),
    "fused": (
        lambda f: save_ssl(f, "wavlm"),
        lambda f: build(
            "encoders",
            {"type": "fused", "encoders": {"a": {"type": "ssl", "source": str(f)}, "b": {"type": "logmel", "mels": 8}}},
        ),
    ),
    "whisper_decoder": (save_recognizer, lambda f: WhisperDecoder(str(f), "en")),
    "planner": (save_recognizer, lambda f: build_meta_encoder({"type": "whisper", "source": str(f)})),
    "llm": (save_llm, lambda f: load_llm({"source": str(f)})),
    "llm_of_the_planner": (save_llm, lambda f: load_llm({"source": str(f)}, on_meta=True)),
    "voxtral_llm": (lambda f: save_voxtral(f, 20, 2), lambda f: load_llm({"source": str(f)})),
    "matcher": (save_llm, lambda f: _match(f, "llm")),
}


def edit(path: Path, **entries: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def add_code(folder: Path, marker: Path, **entries: object) -> None:
    (folder / "evil.py").write_text(
        f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
        "from transformers import PretrainedConfig\n"
        "class Config(PretrainedConfig):\n    model_type = 'evil'\n"
        "class Model: pass\n"
    )
    names = ("AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "AutoFeatureExtractor", "AutoProcessor")
    auto = {"AutoConfig": "evil.Config", **dict.fromkeys(names, "evil.Model")}
    edit(folder / "config.json", auto_map=auto, **entries)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("change", ["code", "kernel", "deep", "huge", "negative", "many", "lora"])
def test_hostile_folders_are_refused_by_every_loader(loader, change, tmp_path, marker):
    save, load = LOADERS[loader]
    folder = tmp_path / "model"
    save(folder)
    config = folder / "config.json"
    if change == "code":
        add_code(folder, marker, model_type="evil")
    elif change == "deep":
        config.write_text(DEEP)
    elif change == "lora":  # its entry names another model, whose code or pickles would be read
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "evil/model"}')
    else:
        entries = {
            "kernel": {"attn_implementation": "evil/kernel"},
            "huge": {"hidden_size": 10**15, "d_model": 10**15},
            "negative": {"num_attention_heads": -2, "encoder_attention_heads": -2},
            "many": {"num_hidden_layers": 10**9, "encoder_layers": 10**9},
        }
        edit(config, **entries[change])
    messages = {
        "code": "auto_map names code of the repository, which is never run",
        "kernel": "names code or files elsewhere",
        "deep": "nested more than 40 levels",
        "huge": "is 1000000000000000",
        "negative": "is -2",
        "many": "is 1000000000",
        "lora": "name a merged model",
    }
    with pytest.raises(UserError, match=messages[change]):
        load(folder)


def test_an_encoder_that_offers_code_is_refused_and_an_llm_of_a_known_type_uses_transformers_class(tmp_path, marker):
    save_ssl(tmp_path / "wavlm", "wavlm")
    add_code(tmp_path / "wavlm", marker)
    with pytest.raises(UserError, match="auto_map"):
        build("encoders", {"type": "ssl", "source": str(tmp_path / "wavlm")})
    save_llm(tmp_path / "llm")
    add_code(tmp_path / "llm", marker)
    llm, _ = load_llm({"source": str(tmp_path / "llm")})
    assert type(llm).__name__ == "LlamaForCausalLM"


def test_a_tokenizer_with_code_is_refused(tmp_path, marker):
    save_llm(tmp_path / "llm")
    add_code(tmp_path / "llm", marker)
    auto = {"AutoTokenizer": ["evil.Model", None]}
    edit(tmp_path / "llm" / "tokenizer_config.json", auto_map=auto, tokenizer_class="EvilTokenizer")
    edit(tmp_path / "llm" / "config.json", model_type="llama")
    try:
        load_llm({"source": str(tmp_path / "llm")})  # versions of transformers differ: an error, or its own class
    except UserError as error:
        assert "code of a repository is never run" in str(error)


@pytest.mark.parametrize("kind", ["zip", "raw"])
def test_pickles_with_code_are_refused_by_every_loader(kind, tmp_path, marker):
    file = tmp_path / "embedding_model.ckpt"
    if kind == "raw":
        file.write_bytes(pickle.dumps({"cfg": Code(marker), "model": {}}))
    else:
        torch.save({"cfg": Code(marker), "model": {"weight": torch.ones(1)}}, file)
    for block in ({"type": "beats"}, {"type": "speaker", **SPEAKER}):
        with pytest.raises(UserError, match="is not a valid checkpoint of tensors"):
            build("encoders", {**block, "source": str(file)})
    for read in (read_file, lambda path: read_published(path.parent, ["*.ckpt"])):
        with pytest.raises(UserError, match="would run its code|damaged"):
            read(file)
    for save in (save_ssl, save_llm):
        folder = tmp_path / save.__name__
        save(folder, *(("wav2vec2",) if save is save_ssl else ()))
        (folder / "model.safetensors").unlink()
        file.rename(folder / "pytorch_model.bin")
        with pytest.raises(UserError):
            build("encoders", {"type": "ssl", "source": str(folder)}) if save is save_ssl else load_llm(
                {"source": str(folder)}
            )
        (folder / "pytorch_model.bin").rename(file)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"\x80\x04.", b"\x80\x02}q\x00(X\x01", b"(" * 100_000])
def test_damaged_pickles_are_errors_of_the_user(damage, tmp_path):
    file = tmp_path / "x.pt"
    file.write_bytes(damage)
    with pytest.raises(UserError, match="x.pt"):
        build("encoders", {"type": "beats", "source": str(file)})
    with pytest.raises(UserError, match="x.pt"):
        read_file(file)


@pytest.mark.parametrize("entries", [{"encoder_layers": 10**9}, {"embed_dim": -8}, {"encoder_embed_dim": 10**15}])
def test_sizes_of_a_pickled_configuration_are_checked(entries, tmp_path):
    torch.save({"cfg": {**BEATS, **entries}, "model": {}}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=f"{next(iter(entries))} is"):
        build("encoders", {"type": "beats", "source": str(tmp_path / "x.pt")})


def test_yaml_with_tags_is_refused(tmp_path, marker):
    block = tmp_path / "enc.yaml"
    block.write_text(f"type: !!python/object/apply:pathlib.Path.touch [{marker}]\n")
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(UserError, match="not a YAML block of plain values"):
        convert(["slam_llm", str(tmp_path / "model.pt"), str(tmp_path / "out"), "--encoder", str(block)])


def test_the_configuration_of_a_published_checkpoint_is_read_as_data(tmp_path):
    torch.save({"weight": torch.ones(1)}, tmp_path / "model.pt")
    for text, message in ((DEEP, "nested more than"), ("[]", "not a JSON object"), ("{", "not valid JSON")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=message):
            read_published(tmp_path, ["*.pt"])


def test_modules_of_a_sentence_encoder_are_those_of_the_library(tmp_path, marker):
    pytest.importorskip("sentence_transformers")
    (tmp_path / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "evil.Model"}]')
    (tmp_path / "evil.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
    with pytest.raises(UserError, match="'evil.Model' is not a class of sentence-transformers"):
        _match(tmp_path, "embedding")


@pytest.mark.parametrize(
    "change",
    [{"default_num_special_tokens": 10**12}, {"pattern": 5}, {"default_vocab_size": "x"}],
)
def test_tekken_with_impossible_entries_is_refused(change, tmp_path):
    save_voxtral(tmp_path, 20, 2)
    content = json.loads((tmp_path / "tekken.json").read_text())
    (tmp_path / "tekken.json").write_text(json.dumps({**content, "config": {**content["config"], **change}}))
    with pytest.raises(UserError, match="tekken.json of .* is damaged"):
        load_llm({"source": str(tmp_path)}, on_meta=True)


@pytest.mark.parametrize("modules", ['[{"\\u0074ype": "evil.Model"}]', '[{"path": ""}]', '["evil.Model"]', "[" * 9999])
def test_lists_of_modules_without_a_class_of_the_library_are_refused(tmp_path, modules):
    (tmp_path / "modules.json").write_text(modules)
    with pytest.raises(ConfigError, match="is not a class of sentence-transformers|nested more than 40 levels"):
        check_modules("matcher", str(tmp_path))


def test_a_repository_of_the_hub_is_looked_up_once(tmp_path, monkeypatch):
    """Six files one by one would take minutes without a connection, because the hub's client tries again."""
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": -1}')
    asked = []

    def download(name, allow_patterns):
        asked.append(name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ConfigError, match="hidden_size is -1"):
        check_published("llm", "owner/llm")
    assert asked == ["owner/llm"]
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: (_ for _ in ()).throw(OSError("offline"))
    )
    check_published("llm", "owner/llm")  # its loader reports it
