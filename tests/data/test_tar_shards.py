"""Manifests whose audio is in tar shards: the same items and features as from the unpacked files."""

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from audiolm_lite.config.registry import build
from audiolm_lite.data.clip_sources import WaveformSource
from audiolm_lite.data.dataset import AudioTextDataset
from audiolm_lite.data.manifest import read_manifest, write_manifest
from audiolm_lite.data.prompt_builder import PromptBuilder
from audiolm_lite.data.selected_rows import select_rows
from audiolm_lite.features.extract import extract
from audiolm_lite.features.keys import feature_key
from audiolm_lite.features.store import FeatureStore
from audiolm_lite.language.prompt import PromptTemplate
from data_prep.tar import pack

pytest.importorskip("webdataset")

CLIPS, SHARDS = 23, 4


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    """CLIPS clips with one to three rows each, some of them segments: the manifest over shards and that over files."""
    root, rng, rows = tmp_path_factory.mktemp("shards"), np.random.default_rng(0), []
    for clip in range(CLIPS):
        soundfile.write(root / f"{clip}.flac", rng.uniform(-0.5, 0.5, 1600 + 16 * clip), 16000)
        for part in range(1 + clip % 3):
            rows.append({"id": f"{clip}-{part}", "audio": f"{clip}.flac", "task": f"t{part}", "instruction": "?",
                         "target": "x", "dataset": "d", "split": "valid" if clip == 3 else "train",
                         "start": 0.02 * part, "duration": 0.05 if part else None})  # fmt: skip
    write_manifest(root / "train.jsonl", rows)
    pack(root / "train.jsonl", root / "out", SHARDS)
    return root / "out" / "manifest.jsonl", root / "train.jsonl"


@pytest.mark.parametrize("workers", [0, 2])
def test_items_and_lengths_of_shards_are_those_of_the_files(manifests, make_experiment, make_model, workers):
    """Length buckets, mixing and resuming depend on these alone, so they are the same as well."""
    experiment = make_experiment(lora=True)
    model = make_model(experiment)
    tokenizer = AutoTokenizer.from_pretrained(experiment["llm"]["source"])
    prompt = PromptBuilder(PromptTemplate(experiment["template"]), tokenizer, model.adapter.num_tokens)
    source = WaveformSource(model.encoder.num_frames)
    shards, files = (AudioTextDataset(select_rows([path], ["t0"]), source, prompt) for path in manifests)
    index_of = {row["id"]: index for index, row in enumerate(files.rows)}
    same = [index_of[row["id"]] for row in shards.rows]
    assert sorted(same) == list(range(CLIPS)) and np.array_equal(shards.lengths, files.lengths[same])
    for item, index in zip(DataLoader(shards, batch_size=None, num_workers=workers), same, strict=True):
        assert torch.equal(item.waveform, files[index].waveform) and item.input_ids == files[index].input_ids


def test_features_of_shards_are_those_of_the_files(manifests, tmp_path):
    stores = []
    for name, manifest in zip(("shards", "files"), manifests):
        rows = read_manifest(manifest)
        encoder = build("encoders", {"type": "logmel", "mels": 80, "padding": "exact"})
        extract(rows, encoder, tmp_path / name, audio_root=manifest.parent, workers=2)
        store = FeatureStore(tmp_path / name)
        stores.append({row["id"]: store[feature_key(row)] for row in rows})
    assert stores[0].keys() == stores[1].keys()
    assert all(torch.equal(features, stores[1][name]) for name, features in stores[0].items())
