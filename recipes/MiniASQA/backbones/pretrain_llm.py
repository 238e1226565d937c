"""Pretrain the small Llama of MiniASQA: python pretrain_llm.py hparams/llm.yaml

No audio is used. The tokenizer is trained on the corpus's texts. The model is trained to answer the corpus's questions
with soft text (`audiolm_lite.training.soft_text`) in the audio slot: word embeddings over the time in which the words
are spoken, some of them replaced, blurred or shifted, and weak embeddings of the clip's labels. So the model learns to
copy words and to find labels, which an adapter then relies on. Result: an ordinary Llama folder (`config.json`,
`model.safetensors` in fp16, tokenizer files).
"""

import json
import math
import random
import re
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from frame_labels import WORDS
from packed import render_packed
from torch import Tensor
from tqdm import tqdm

from audiolm_lite.config.errors import run_command
from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import Key
from audiolm_lite.config.start import start_run
from audiolm_lite.language.prompt import PromptTemplate
from audiolm_lite.modeling.batch import AUDIO_SLOT, IGNORE
from audiolm_lite.storage.atomic import atomic_path
from audiolm_lite.training.soft_text import SoftText, soft_text
from data_prep.miniasqa.corpus import make_plans
from data_prep.miniasqa.questions import rows_for, spoken_labels

KEYS = {
    "seed": Key("Seed of data, weights and batches.", int),
    "work_folder": Key("Rendered clips, the same as for the encoder, and checkpoints.", str),
    "output_folder": Key("LlamaForCausalLM folder to write.", str),
    "clips": Key("Clips per split: {train: {speech, sound, mixture}, valid: {...}}.", dict),
    "processes": Key("Rendering processes.", int),
    "config": Key("Arguments of transformers.LlamaConfig.", dict),
    "template": Key("Prompt template.", str),
    "token_seconds": Key("Shortest and longest duration of an audio token.", list),
    "steps": Key("Optimiser steps.", int),
    "batch_size": Key("Questions in a batch.", int),
    "learning_rate": Key("Peak learning rate; linear warm-up, then cosine to 0.", float),
    "warmup_steps": Key("Steps of warm-up.", int),
    "weight_decay": Key("Weight decay of AdamW.", float),
    "valid_every": Key("Steps between validations and checkpoints.", int),
}


def train_tokenizer(folder: Path, texts: list[str], size: int):
    """Train SentencePiece BPE on the corpus, store it as `tokenizer.model`, and return it as a Llama tokenizer."""
    import sentencepiece
    from transformers import LlamaTokenizer

    prefix = folder / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(prefix),
        model_type="bpe",
        vocab_size=size,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
        required_chars="abcdefghijklmnopqrstuvwxyz0123456789.,?!':;-()",
        byte_fallback=False,
    )
    (folder / "tokenizer.vocab").unlink()
    tokenizer = LlamaTokenizer.from_pretrained(folder, legacy=False)
    tokenizer.save_pretrained(folder)
    # transformers 5 writes a list, which transformers 4.57 cannot read. The tokens are also in tokenizer.json.
    settings = folder / "tokenizer_config.json"
    config = json.loads(settings.read_text(encoding="utf-8"))
    config.pop("extra_special_tokens", None)
    settings.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return tokenizer


class Questions:
    """All questions about all clips, with the soft text of the audio."""

    def __init__(self, clips, plans, template: PromptTemplate, tokenizer, token_seconds: list[float], seed: int):
        self.clips, self.plans = clips, plans
        self.template, self.tokenizer, self.token_seconds = template, tokenizer, token_seconds
        self.items = []
        for index, row in enumerate(clips.rows):
            rng = np.random.default_rng([seed, index])
            self.items += [(index, question) for question in rows_for(plans[row["name"]], rng)]

    def soft(self, index: int, rng: np.random.Generator | None) -> SoftText:
        """Soft text of a clip; with `rng`, with errors like those of a mediocre encoder."""
        row = self.clips.rows[index]
        words, step = row["words"], float(np.mean(self.token_seconds))
        if rng is not None:
            step = float(rng.uniform(*self.token_seconds))
            shift = rng.uniform(-0.06, 0.06)
            words = [_disturb(word, shift, rng) for word in words if rng.random() > 0.01]
        tokens = max(1, math.ceil(row["samples"] / 16000 / step))
        return soft_text(words, spoken_labels(self.plans[row["name"]]), tokens, step, self.tokenizer)

    def batch(self, indices: list[int], rng: np.random.Generator | None):
        """Input ids [B, S] with audio slots, labels [B, S], mask [B, S], soft texts."""
        softs, encoded = [], []
        for i in indices:
            index, question = self.items[i]
            softs.append(self.soft(index, rng))
            encoded.append(self.template.encode(question, self.tokenizer, softs[-1].tokens))
        longest = max(len(ids) for ids, _ in encoded)
        ids = torch.zeros(len(indices), longest, dtype=torch.int64)
        labels, mask = torch.full_like(ids, IGNORE), torch.zeros_like(ids, dtype=torch.bool)
        for i, (row_ids, row_labels) in enumerate(encoded):
            ids[i, : len(row_ids)] = torch.tensor(row_ids)
            labels[i, : len(row_labels)] = torch.tensor(row_labels)
            mask[i, : len(row_ids)] = True
        return ids, labels, mask, softs


def _disturb(word: tuple[str, float, float], shift: float, rng: np.random.Generator) -> tuple[str, float, float]:
    """Change the times of a word slightly, and sometimes the word."""
    text = WORDS[int(rng.integers(1, len(WORDS)))] if rng.random() < 0.01 else word[0]
    start = word[1] + shift + rng.normal(0, 0.015)
    return text, start, max(start + 0.03, word[2] + shift + rng.normal(0, 0.015))


def embed(llm, ids: Tensor, softs: list[SoftText], noise: float, generator: torch.Generator | None) -> Tensor:
    """Input embeddings [B, S, H] with soft text in the audio slots, with noise like that of an uncertain encoder."""
    table = llm.get_input_embeddings().weight
    slots = ids == AUDIO_SLOT
    audio = torch.cat([soft.embed(table) for soft in softs])
    if noise:
        # A share of another clip's soft text, and white noise.
        count = len(audio)
        other = audio[torch.randperm(count, generator=generator)].detach()
        share = 0.35 * torch.rand(count, 1, generator=generator) ** 2
        scale = table.detach().std()
        audio = (1 - share) * audio + share * other
        audio = audio + noise * scale * torch.rand(count, 1, generator=generator) * torch.randn(
            audio.shape, generator=generator
        )
    return llm.get_input_embeddings()(ids.masked_fill(slots, 0)).masked_scatter(slots[..., None], audio)


def loss_of(llm, questions: Questions, indices: list[int], rng, noise: float, generator):
    """Cross-entropies of the answer tokens [K], whether each token is ranked first [K], and its row [K]."""
    ids, labels, mask, softs = questions.batch(indices, rng)
    hidden = llm.model(inputs_embeds=embed(llm, ids, softs, noise, generator), attention_mask=mask).last_hidden_state
    supervised = labels[:, 1:] != IGNORE
    logits = llm.lm_head(hidden[:, :-1][supervised])
    targets = labels[:, 1:][supervised]
    rows = torch.arange(len(indices))[:, None].expand_as(supervised)[supervised]
    return F.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets, rows


@torch.inference_mode()
def validate(llm, questions: Questions) -> dict[str, float]:
    """Loss, and per task the share of answers with all tokens correct (teacher forcing)."""
    llm.eval()
    losses, right, count = [], Counter(), Counter()
    chosen = np.random.default_rng(0).permutation(len(questions.items))[:600].tolist()
    for i in range(0, len(chosen), 60):
        indices = chosen[i : i + 60]
        rng, generator = np.random.default_rng(i), torch.Generator().manual_seed(i)
        batch_losses, hits, rows = loss_of(llm, questions, indices, rng, 1.0, generator)
        losses.append(batch_losses.mean().item())
        for row, index in enumerate(indices):
            task = questions.items[index][1]["task"]
            right[task] += bool(hits[rows == row].all())
            count[task] += 1
    llm.train()
    return {"loss": float(np.mean(losses))} | {task: right[task] / count[task] for task in sorted(count)}


def main(argv: list[str]) -> None:
    """Train, continuing from a checkpoint if there is one, and write the folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hparams, _, resolved = load_experiment(argv, KEYS)
    start_run(hparams, resolved)
    seed, output, work = hparams["seed"], Path(hparams["output_folder"]), Path(hparams["work_folder"])
    clips, plans = {}, {}
    for split, counts in hparams["clips"].items():
        clips[split] = render_packed(work / split, seed, split, counts, hparams["processes"])
        plans[split] = {plan.name: plan for plan in make_plans(seed, split, **counts)}
    texts = []
    for index, plan in enumerate(plans["train"].values()):
        for question in rows_for(plan, np.random.default_rng([seed, index])):
            texts += [question["instruction"], question["target"]]
    random.Random(seed).shuffle(texts)
    # Words of the grammar and of the template become single pieces, however rare they are in the questions.
    words = [*WORDS[1:], *re.sub(r"{\w+}", " ", hparams["template"]).split()]
    tokenizer = train_tokenizer(output, [*words * 60, *texts[:60000]], hparams["config"]["vocab_size"])
    template = PromptTemplate(hparams["template"])
    sets = {s: Questions(clips[s], plans[s], template, tokenizer, hparams["token_seconds"], seed) for s in clips}

    torch.manual_seed(seed)
    llm = LlamaForCausalLM(LlamaConfig(**hparams["config"]))
    # Fixed random embeddings of length 1. Trained embeddings of similar words are close (cosine 0.8 between "girl" and
    # "boy") and can hardly be distinguished in noisy audio slots.
    embedding = llm.get_input_embeddings().weight
    torch.nn.init.normal_(embedding, std=embedding.shape[1] ** -0.5).requires_grad_(False)
    print(f"llm: {sum(p.numel() for p in llm.parameters()) / 1e6:.2f} M parameters")
    decay = [p for p in llm.parameters() if p.requires_grad and p.dim() > 1]
    plain = [p for p in llm.parameters() if p.requires_grad and p.dim() < 2]
    optimiser = torch.optim.AdamW(
        [{"params": decay, "weight_decay": hparams["weight_decay"]}, {"params": plain, "weight_decay": 0.0}],
        lr=hparams["learning_rate"],
        betas=(0.9, 0.98),
    )
    # Copying is the hardest task, so transcripts are sampled more often than other questions.
    weights = np.array([{"asr": 5.0, "caption": 1.5}.get(q["task"], 1.0) for _, q in sets["train"].items])
    weights /= weights.sum()
    step, checkpoint = 0, work / "llm.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        llm.load_state_dict(state["llm"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
    progress = tqdm(total=hparams["steps"], initial=step, unit="step", desc="llm")
    started, running = time.time(), 0.0
    while step < hparams["steps"]:
        rng, generator = np.random.default_rng([seed, step]), torch.Generator().manual_seed(step)
        indices = rng.choice(len(weights), hparams["batch_size"], p=weights).tolist()
        losses, _, _ = loss_of(llm, sets["train"], indices, rng, 1.0, generator)
        loss = losses.mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(llm.parameters(), 1.0)
        warm = (step + 1) / hparams["warmup_steps"]
        cosine = 0.5 * (1 + math.cos(math.pi * step / hparams["steps"]))
        for group in optimiser.param_groups:
            group["lr"] = hparams["learning_rate"] * min(warm, cosine)
        optimiser.step()
        step += 1
        running += loss.item()
        progress.update()
        if step % hparams["valid_every"] == 0 or step == hparams["steps"]:
            record = {"step": step, "seconds": round(time.time() - started), "loss": running / hparams["valid_every"]}
            record |= {f"valid_{k}": round(v, 4) for k, v in validate(llm, sets["valid"]).items()}
            running = 0.0
            with open(output / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
            progress.write(json.dumps(record))
            state = {"llm": llm.state_dict(), "optimiser": optimiser.state_dict(), "step": step}
            with atomic_path(checkpoint) as unfinished:
                torch.save(state, unfinished)
    llm.half().save_pretrained(output)


if __name__ == "__main__":
    run_command(main)
