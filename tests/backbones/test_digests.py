"""Digests of pretrained weights depend on the tensors alone, and those of large ones are kept."""

import json

import pytest
import torch
from safetensors.torch import save_file

from audiolm_lite.backbones import digests
from audiolm_lite.backbones.digests import source_digests, weights_digest


@pytest.fixture
def tensors():
    return {"a": torch.arange(4.0), "b": torch.ones(2, 2)}


def test_files_and_metadata_do_not_matter(tmp_path, tensors):
    for name in ("one", "split", "changed"):
        (tmp_path / name).mkdir()
    save_file(tensors, tmp_path / "one" / "model.safetensors", metadata={"format": "pt"})
    files = {name: f"model-{name}.safetensors" for name in tensors}
    for name, file in files.items():
        save_file({name: tensors[name]}, tmp_path / "split" / file)
    (tmp_path / "split" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    save_file({"unrelated": torch.zeros(1)}, tmp_path / "split" / "consolidated.safetensors")
    save_file({**tensors, "b": torch.zeros(2, 2)}, tmp_path / "changed" / "model.safetensors")
    one, split, changed = (weights_digest(str(tmp_path / name)) for name in ("one", "split", "changed"))
    assert one == split != changed


def test_every_source_of_a_block_has_its_digest(tmp_path, tensors):
    for name in ("speech", "sound"):
        (tmp_path / name).mkdir()
        save_file({**tensors, name: torch.zeros(1)}, tmp_path / name / "model.safetensors")
    parts = {name: {"type": "whisper", "source": str(tmp_path / name)} for name in ("speech", "sound")}
    found = source_digests({"type": "fused", "encoders": parts}, "encoder")
    assert found == {f"encoder/encoders/{name}": weights_digest(str(tmp_path / name)) for name in parts}
    (tmp_path / "speech" / "tokenizer.json").write_text("{}")
    other = source_digests({"source": str(tmp_path / "sound"), "tokenizer": str(tmp_path / "speech")}, "llm")
    assert list(other) == ["llm", "llm/tokenizer"]
    assert source_digests({"source": str(tmp_path / "absent")}, "llm") == {}


def test_large_weights_are_read_once_until_they_change(tmp_path, tensors, monkeypatch):
    monkeypatch.setenv("AUDIOLM_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "WORTH_STORING", 1)
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    first = weights_digest(str(tmp_path))
    with monkeypatch.context() as unread:
        unread.setattr(digests, "_digest", None)
        assert weights_digest(str(tmp_path)) == first
    save_file({**tensors, "c": torch.ones(1)}, path)
    assert weights_digest(str(tmp_path)) != first
