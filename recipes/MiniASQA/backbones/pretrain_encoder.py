"""Pretrain the Whisper-shaped encoder of MiniASQA: python pretrain_encoder.py hparams/encoder.yaml

The loss is the cross-entropy of frame labels from espeak-ng's events (words, phonemes, word onsets) and of the clip's
labels, repeated for all frames (sound, gender, emotion, age, ...). Linear heads on the normalised mean of the layers
predict them, so that a linear projection into a language model can use the same information. The heads are not kept.
Result: a `WhisperModel` folder (`config.json`, `model.safetensors` in fp16, `preprocessor_config.json`).
"""

import json
import math
import time
from collections import Counter
from pathlib import Path

import jiwer
import numpy as np
import torch
import torch.nn.functional as F
from frame_labels import IGNORE, FrameLabels, collapse
from packed import PackedClips, render_packed
from torch import Tensor, nn
from tqdm import tqdm

from audiolm_lite.config.errors import run_command
from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import Key
from audiolm_lite.config.start import start_run
from audiolm_lite.encoders.whisper import WhisperEncoder
from audiolm_lite.storage.atomic import atomic_path

KEYS = {
    "seed": Key("Seed of data, weights and batches.", int),
    "work_folder": Key("Rendered clips and checkpoints.", str),
    "output_folder": Key("WhisperModel folder to write.", str),
    "clips": Key("Clips to render per split: {train: {speech, sound, mixture}, valid: {...}}.", dict),
    "processes": Key("Rendering processes.", int),
    "config": Key("Arguments of transformers.WhisperConfig.", dict),
    "preprocessor": Key("Arguments of transformers.WhisperFeatureExtractor.", dict),
    "steps": Key("Optimiser steps.", int),
    "batch_seconds": Key("Seconds of audio in a batch.", float),
    "learning_rate": Key("Peak learning rate; linear warm-up, then cosine to 0.", float),
    "warmup_steps": Key("Steps of warm-up.", int),
    "weight_decay": Key("Weight decay of AdamW.", float),
    "loss_weights": Key("Weight of each head's cross-entropy.", dict),
    "valid_every": Key("Steps between validations and checkpoints.", int),
}


class Heads(nn.Module):
    """Linear classifiers on the normalised layer mean: [B, L, T, D] -> {head: [B, T, classes]}."""

    def __init__(self, feature_dim: int, sizes: dict[str, int]):
        super().__init__()
        self.linear = nn.ModuleDict({head: nn.Linear(feature_dim, size) for head, size in sizes.items()})

    def forward(self, layers: Tensor) -> dict[str, Tensor]:
        mean = F.layer_norm(layers.mean(dim=1), layers.shape[-1:])
        return {head: linear(mean) for head, linear in self.linear.items()}


def make_batches(clips: PackedClips, batch_seconds: float, rng: np.random.Generator) -> list[list[int]]:
    """Batches of clips of similar length in random order; random factors on lengths make epochs differ."""
    samples = np.array([row["samples"] for row in clips.rows])
    order = np.argsort(samples * rng.uniform(0.9, 1.1, len(samples)))
    batches, batch, longest = [], [], 0
    for index in order.tolist():
        longest = max(longest, samples[index])
        if batch and longest * (len(batch) + 1) > batch_seconds * 16000:
            batches.append(batch)
            batch, longest = [], samples[index]
        batch.append(index)
    batches.append(batch)
    return [batches[i] for i in rng.permutation(len(batches))]


def load_batch(clips: PackedClips, indices: list[int]) -> tuple[Tensor, Tensor, list[dict]]:
    """Waveforms [B, S], lengths [B] and table rows."""
    waves, rows = zip(*(clips[i] for i in indices), strict=True)
    lengths = torch.tensor([len(w) for w in waves])
    batch = torch.zeros(len(waves), int(lengths.max()))
    for i, wave in enumerate(waves):
        batch[i, : len(wave)] = torch.from_numpy(wave)
    return batch, lengths, list(rows)


def losses_of(logits: dict[str, Tensor], labels: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mean cross-entropy of each head over the labelled frames."""
    return {h: F.cross_entropy(v.transpose(1, 2), labels[h], ignore_index=IGNORE) for h, v in logits.items()}


@torch.inference_mode()
def validate(encoder: WhisperEncoder, heads: Heads, clips: PackedClips, labels: FrameLabels) -> dict[str, float]:
    """Word error rate of the frame-wise best path, and accuracy of each clip label by the mean over frames."""
    encoder.eval()
    references, hypotheses, right, count = [], [], Counter(), Counter()
    for batch in make_batches(clips, 200, np.random.default_rng(0)):
        waves, lengths, rows = load_batch(clips, batch)
        layers, frames = encoder(waves, lengths)
        logits = heads(layers)
        targets = labels.batch(rows, frames)
        for i, row in enumerate(rows):
            n = int(frames[i])
            if row["kind"] == "speech":
                references.append(" ".join(word for word, _, _ in row["words"]))
                hypotheses.append(" ".join(collapse(logits["word"][i, :n].argmax(-1).tolist())))
            for head in logits:
                if head in ("word", "phoneme", "onset"):
                    known = targets[head][i, :n] != IGNORE
                    right[head] += int((logits[head][i, :n].argmax(-1) == targets[head][i, :n])[known].sum())
                    count[head] += int(known.sum())
                elif targets[head][i, 0] > 0:
                    right[head] += int(logits[head][i, :n].mean(0).argmax() == targets[head][i, 0])
                    count[head] += 1
    encoder.train()
    return {"wer": jiwer.wer(references, hypotheses)} | {h: right[h] / count[h] for h in logits}


def schedule(step: int, warmup: int, total: int) -> float:
    """Factor on the learning rate."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def new_folder(folder: Path, config: dict, preprocessor: dict) -> None:
    """Write a randomly initialised WhisperModel folder (its decoder has no layers and is never used)."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    WhisperModel(WhisperConfig(**config)).save_pretrained(folder)
    WhisperFeatureExtractor(**preprocessor).save_pretrained(folder)


def save_folder(folder: Path, encoder: WhisperEncoder) -> None:
    """Write the trained weights into the folder, fp16."""
    from transformers import WhisperModel

    model = WhisperModel.from_pretrained(folder)
    model.encoder.load_state_dict(encoder.model.state_dict())
    model.half().save_pretrained(folder)


def main(argv: list[str]) -> None:
    """Train, continuing from a checkpoint if there is one, and write the folder."""
    hparams, _, resolved = load_experiment(argv, KEYS)
    start_run(hparams, resolved)
    torch.manual_seed(hparams["seed"])
    work, output = Path(hparams["work_folder"]), Path(hparams["output_folder"])
    sets = {
        split: render_packed(work / split, hparams["seed"], split, counts, hparams["processes"])
        for split, counts in hparams["clips"].items()
    }
    phonemes = Counter(p for row in sets["train"].rows for p, _, _ in row["phonemes"])
    phonemes = ["", *sorted(p for p, n in phonemes.items() if n >= 500)]

    new_folder(output, hparams["config"], hparams["preprocessor"])
    encoder = WhisperEncoder(str(output), padding="exact")
    encoder.requires_grad_(True)
    encoder.train()
    labels = FrameLabels(phonemes, encoder.frame_seconds)
    heads = Heads(encoder.feature_dim, labels.sizes)
    parameters = [*encoder.parameters(), *heads.parameters()]
    print(f"encoder: {sum(p.numel() for p in encoder.parameters()) / 1e6:.2f} M parameters")
    parameters = [p for p in parameters if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=hparams["learning_rate"], weight_decay=hparams["weight_decay"])

    step, batches, epoch = 0, [], 0
    checkpoint = work / "encoder.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        encoder.load_state_dict(state["encoder"])
        heads.load_state_dict(state["heads"])
        optimiser.load_state_dict(state["optimiser"])
        step, epoch = state["step"], state["epoch"]
    progress = tqdm(total=hparams["steps"], initial=step, unit="step", desc="encoder")
    running, started = Counter(), time.time()
    while step < hparams["steps"]:
        if not batches:
            batches = make_batches(sets["train"], hparams["batch_seconds"], np.random.default_rng([1, epoch]))
            epoch += 1
        waves, lengths, rows = load_batch(sets["train"], batches.pop())
        layers, frames = encoder(waves, lengths)
        losses = losses_of(heads(layers), labels.batch(rows, frames))
        total = sum(hparams["loss_weights"][head] * loss for head, loss in losses.items())
        optimiser.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimiser.param_groups:
            group["lr"] = hparams["learning_rate"] * schedule(step, hparams["warmup_steps"], hparams["steps"])
        optimiser.step()
        step += 1
        progress.update()
        running.update({head: float(loss.detach()) for head, loss in losses.items()})
        if step % hparams["valid_every"] == 0 or step == hparams["steps"]:
            metrics = validate(encoder, heads, sets["valid"], labels)
            record = {"step": step, "seconds": round(time.time() - started)}
            record |= {f"loss_{h}": round(v / hparams["valid_every"], 4) for h, v in running.items()}
            record |= {f"valid_{k}": round(v, 4) for k, v in metrics.items()}
            with open(output / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
            progress.write(json.dumps(record))
            running.clear()
            state = {"encoder": encoder.state_dict(), "heads": heads.state_dict(), "step": step, "epoch": epoch}
            with atomic_path(checkpoint) as unfinished:
                torch.save(state | {"optimiser": optimiser.state_dict()}, unfinished)
    save_folder(output, encoder)


if __name__ == "__main__":
    run_command(main)
