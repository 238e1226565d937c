"""A tiny model, dataset and settings that train within a second."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from audiolm_lite.adapters.tltr import TLTR
from audiolm_lite.config.keys import TRAINING_KEYS
from audiolm_lite.data.batching import Item
from audiolm_lite.data.mixing import Mixture
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.modeling.batch import AUDIO_SLOT
from audiolm_lite.training import checkpoint
from audiolm_lite.training.brain import AudioLMBrain
from tests.tiny import LLM, tiny_llm

LAYERS, DIM, HIDDEN, VOCABULARY = 2, 8, LLM["hidden_size"], 30

# Waiting for the disk protects against power failures, which no test causes, and takes seconds on a busy machine.
checkpoint.flush = lambda path: None


class ToyData:
    """Random features with prompts; the same items for the same seed."""

    def __init__(self, items, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.items = []
        for index in range(items):
            frames, answer = [int(torch.randint(1, 6, (), generator=generator)) for _ in range(2)]
            features = torch.randn(LAYERS, frames, DIM, generator=generator)
            words = torch.randint(3, 8, (answer + 2,), generator=generator).tolist()
            ids = [1, *[AUDIO_SLOT] * frames, *words]
            labels = [-100] * (frames + 3) + words[2:]
            self.items.append(Item({"id": f"item-{index}"}, ids, labels, features=features))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]

    mixture = None

    @property
    def lengths(self):
        return [len(item.input_ids) for item in self.items]

    def set_epoch(self, epoch):
        pass


def make_model(lora=True, dropout=0.1, tied=False):
    llm = tiny_llm(VOCABULARY, seed=0, tie_word_embeddings=tied)
    if lora:
        config = LoraConfig(r=2, lora_alpha=4, lora_dropout=dropout, target_modules=["q_proj", "v_proj"])
        llm = get_peft_model(llm, config)
    return AudioLanguageModel(TLTR(feature_dim=DIM, num_layers=LAYERS, llm_dim=HIDDEN, layer_heads=2), llm)


def make_hparams(root, **changes):
    hparams = {name: key.default for name, key in TRAINING_KEYS.items()}
    hparams |= {
        "encoder": {"type": "whisper", "source": "tiny"},
        "adapter": {"type": "tltr"},
        "llm": {"source": "tiny"},
        "template": "{audio}",
        "data_folder": "unused",
        "manifests": {},
        "output_root": str(root),
        "output_folder": str(Path(root) / f"stage_{changes.get('stage', 1)}"),
        "stage": 1,
        "precision": "fp32",  # the same on every machine
        "brain": AudioLMBrain,
        "trainable": ["adapter.*", "llm.*lora_*"],
        "learning_rates": {"adapter.*": 1e-2, "llm.*": 1e-2},
        "batch_tokens": 40,
        "warmup_steps": 2,
        "epochs": 2,
        "grad_accumulation_factor": 2,
        "weight_decay": 0.01,
        "ckpt_interval_minutes": 1e-9,  # after every step
    }
    return hparams | changes


def make_brain(root, model=None, kind=AudioLMBrain, **changes):
    model = model if model is not None else make_model()
    return kind(model, make_hparams(root, **changes), {"device": "cpu", "noprogressbar": True})


def train(root, **changes):
    torch.manual_seed(1)
    brain = make_brain(root, **changes)
    brain.fit_stage(ToyData(20), ToyData(6, seed=1))
    return brain


def losses_of(brain):
    return [json.loads(line) for line in (brain.folder / "losses.jsonl").read_text().splitlines()]


def assert_same_weights(first, second):
    second = second.state_dict()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second[name]), name


def train_in(folder):
    """Train on a mixture of two sets, as a separate command does."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    data = ToyData(20)
    data.mixture = Mixture([14, 6], weights=[1, 1])
    make_brain(folder).fit_stage(data, ToyData(6, seed=1))


def outcome(folder):
    """Losses of all steps of a finished run, and the hash of its final weights."""
    stage = Path(folder) / "stage_1"
    newest = sorted((stage / "checkpoints").glob("step_*"))[-1]
    hashes = json.loads((newest / "checkpoint.json").read_text())["sha256"]
    return (stage / "losses.jsonl").read_text(), hashes["trained.safetensors"]
