"""The models that the package contains can be published: small, in float16, with a card, without paths or logs."""

import os

import pytest
import torch
from safetensors.torch import load_file

from audiolm_lite.backbones.known import KNOWN
from audiolm_lite.config.registry import sources
from audiolm_lite.hub.folder import read_config
from audiolm_lite.hub.load import load_model
from audiolm_lite.hub.released import RELEASED, released_models

MEGABYTES = 25
KINDS = {".json", ".safetensors", ".md", ".txt"}


@pytest.mark.parametrize("name", released_models())
def test_folder_is_small_complete_and_names_its_backbones(name):
    folder = RELEASED / name
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MEGABYTES * 1e6
    assert {path.suffix for path in files} <= KINDS
    config = read_config(folder)
    named = {*sources(config["encoder"]), *sources(config["llm"])}
    assert named <= KNOWN.keys() and named == config["backbones"].keys()
    for path in folder.rglob("*.safetensors"):
        kinds = {tensor.dtype for tensor in load_file(path).values()}
        assert path.name == "ctc_head.safetensors" or kinds == {torch.float16}
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert all(part in card for part in ("license: ", "## Training data", "## Commands", *config["backbones"].values()))


@pytest.mark.parametrize("name", released_models())
def test_released_model_loads(name, monkeypatch):
    parent = os.environ.get("AUDIOLM_LITE_BACKBONES")
    if not parent:
        pytest.skip("AUDIOLM_LITE_BACKBONES is not set (real backbones)")
    monkeypatch.chdir(parent)  # local folders of the names of the backbones
    assert load_model(name, merge=True).template.asks
