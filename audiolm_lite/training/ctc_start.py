"""CTC start of an adapter: its audio tokens learn to spell the transcripts before the LLM receives any of them.

The adapter is trained alone, by a CTC whose output layer is the LLM's own frozen word embeddings (`modeling.ctc`). Its
audio tokens are then close to the embeddings of the words that were said, which is what an LLM can read, so adapter and
LoRA start at a low loss. It needs transcripts, but no times of words. The greedy transcript of the CTC is also a
control, "adapter alone": what the adapter recognises without an LLM.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from transformers import PreTrainedTokenizerBase

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.data.batching import Item, LengthBucketSampler, collate
from audiolm_lite.data.dataset import AudioTextDataset
from audiolm_lite.data.lengths import map_distinct
from audiolm_lite.data.readable import ReadableItems, Unreadable
from audiolm_lite.evaluation.metrics.registry import score_task
from audiolm_lite.features.keys import clips_of
from audiolm_lite.language.pieces import pieces_inside
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.modeling.ctc import CTCHead, required_tokens
from audiolm_lite.storage.atomic import atomic_path, write_json
from audiolm_lite.training.brain import AudioLMBrain
from audiolm_lite.training.build import build_datasets
from audiolm_lite.training.checkpoint import random_state, seed_process, set_random_state
from audiolm_lite.training.logging.training_log import progress_bar
from audiolm_lite.training.optimizer import set_learning_rates
from audiolm_lite.training.run_identity import refused_changes, run_settings

logger = logging.getLogger(__name__)

STATE, RESULT = "ctc_start.pt", "adapter_alone.json"
WEIGHT_DECAY = 0.01
WARMUP = 0.1  # part of the steps in which the learning rate rises
DEBUG_PASSES = 2
AVERAGE = 0.05  # weight of a step in the average loss that is logged


class Clips(NamedTuple):
    """The clips of a dataset that have a transcript, each once.

    Attributes
    ----------
    items : list of int
        Items of the dataset with task "asr" and one clip.
    tokens : ndarray
        Audio tokens [K] int64 of each.
    """

    items: list[int]
    tokens: np.ndarray


def ctc_start(
    brain: AudioLMBrain,
    datasets: Mapping[str, AudioTextDataset],
    tokenizer: PreTrainedTokenizerBase,
    alive: Callable[[], None],
    *,
    passes: int = 6,
    learning_rate: float = 2e-3,
    batch_tokens: int = 2048,
) -> str:
    """Train all parameters of the adapter by CTC, also those that the stage itself does not train.

    After each pass the state is written to `ctc_start.pt` in the stage's folder, from which the same command continues.
    The file stays until the stage is finished, so that a restart does not repeat the CTC start. The word error rate of
    the greedy transcripts of the validation set is written to `adapter_alone.json`.

    Parameters
    ----------
    brain : AudioLMBrain
        Its model is changed; encoder and LLM are not. `brain.ctc_head` is set.
    datasets : mapping
        "train" and "valid". Rows with task "asr" count, whose `target` is the transcript; several rows of a clip count
        once. Where the stage's `tasks` exclude them, they are read from the same manifests. Clips whose transcript has
        more pieces than audio tokens are left out.
    tokenizer : PreTrainedTokenizerBase
        The LLM's.
    alive : callable
        Called at least once per batch (see `processes.run_in_main`).
    passes : int
        Passes over the clips.
    learning_rate : float
        Peak of the learning rate of AdamW; linear warm-up over a tenth of the steps, then cosine.
    batch_tokens : int
        Most audio tokens of a batch, padding included.

    Returns
    -------
    str
        A line for the log.

    Raises
    ------
    ConfigError
        No row has a transcript, most transcripts do not fit, or the stage's folder has the state of other settings.
    """
    began = time.monotonic()
    model, seed = brain.model, int(brain.experiment["seed"])
    assert isinstance(model, AudioLanguageModel)
    run = {**run_settings(brain.experiment), "debug": bool(brain.debug), "items": len(datasets["train"])}
    state = _read_state(brain.folder / STATE, run, brain.experiment["accept_changed_data"])
    if state is not None and state["finished"]:
        model.adapter.load_state_dict(state["adapter"])
        brain.ctc_head = state["head"]
        return "CTC start of the adapter: finished before, its result is used"

    tasks = brain.experiment["tasks"]
    if tasks is not None and "asr" not in tasks:  # the stage itself trains other tasks of these manifests
        datasets = build_datasets({**brain.experiment, "tasks": ["asr"]}, model, tokenizer)
    clips, transcripts = _clips_that_fit(datasets["train"], tokenizer)
    head = CTCHead(torch.tensor(sorted({piece for ids in transcripts for piece in ids})), model.embedding)
    targets = [head.entries(ids) for ids in transcripts]
    sampler = LengthBucketSampler(np.minimum(clips.tokens, batch_tokens), batch_tokens, seed=seed)
    plan = [sampler.batches(number) for number in range(min(passes, DEBUG_PASSES) if brain.debug else passes)]
    if brain.debug:
        plan = [batches[: brain.debug_batches] for batches in plan]
    before, trainable = random_state(), {p: p.requires_grad for p in model.adapter.parameters()}
    # a model that will be sharded is not on the device yet
    home, parts = (
        next(model.adapter.parameters()).device,
        [part for part in (model.adapter, model.encoder) if part is not None],
    )
    for part in (*parts, head):
        part.to(brain.device)
    model.adapter.requires_grad_(True)
    trainer = _Trainer(brain, head, learning_rate, steps=sum(map(len, plan)))
    if state is not None:
        trainer.load(state)
    try:
        for number in range(trainer.passes, len(plan)):
            seed_process(seed, number)
            datasets["train"].set_epoch(number + 1)
            batches = _read(datasets["train"], clips, plan[number], brain.experiment["num_workers"])
            for batch, read in zip(plan[number], batches):
                items, spelled = _readable(brain, "ctc_start", read, [targets[index] for index in batch])
                trainer.step(items, spelled)
                alive()
            trainer.passes += 1
            trainer.save(brain.folder / STATE, run, finished=False)
            logger.info("CTC start: pass %d of %d, loss %.3f per piece", number + 1, len(plan), trainer.average)
    finally:
        trainer.bar.close()
        for parameter, flag in trainable.items():
            parameter.requires_grad_(flag)
            parameter.grad = None
    result: dict[str, Any] = {"steps": trainer.steps, "loss": round(trainer.average, 4), "pieces": len(head.pieces)}
    result |= {"clips": len(clips.items), "skipped_steps": trainer.skipped}
    result["adapter_alone"] = _score(brain, head, datasets["valid"], tokenizer, alive)
    for part in parts:
        part.to(home)
    brain.ctc_head = head.tensors()
    set_random_state(before)  # a run that skips this start because it is finished draws the same numbers afterwards
    write_json(brain.folder / RESULT, result)
    trainer.save(brain.folder / STATE, run, finished=True)
    summary = f"loss {trainer.average:.3f} per piece after {trainer.steps} steps, {time.monotonic() - began:.0f} s"
    return f"CTC start of the adapter: {summary}; {_describe(result['adapter_alone'])}"


def remove_state(folder: str | Path) -> None:
    """Remove the state of the CTC start from the folder of a stage that is finished.

    Examples
    --------
    >>> remove_state(getfixture("tmp_path"))  # a stage without a CTC start has none
    """
    (Path(folder) / STATE).unlink(missing_ok=True)


class _Trainer:
    """Adapter and head with their optimiser, and the position of the run."""

    def __init__(self, brain: AudioLMBrain, head: CTCHead, learning_rate: float, steps: int):
        self.brain, self.head, self.total = brain, head, steps
        self.passes = self.steps = self.skipped = 0
        self.average = float("nan")
        self.parameters = [*brain.model.adapter.parameters(), *head.parameters()]
        group = {"params": self.parameters, "initial_lr": learning_rate, "schedule": "cosine"}
        group["warmup_steps"] = max(1, round(WARMUP * steps))
        self.optimizer = torch.optim.AdamW([group], lr=learning_rate, weight_decay=WEIGHT_DECAY)
        self.bar = progress_bar(steps, 0, "CTC start", bool(brain.noprogressbar))
        # float16 needs a loss scaler, which is not worth it here
        self.bf16 = brain.experiment["precision"] == "bf16"

    def step(self, items: Sequence[Item], targets: Sequence[Tensor]) -> None:
        """Take one optimiser step on the mean loss per piece.

        It is skipped where the gradient is not finite, or no item can be read.
        """
        if not items:
            self.steps, self.skipped = self.steps + 1, self.skipped + 1
            self.bar.update()
            return
        self.brain.model.adapter.train()
        set_learning_rates(self.optimizer.param_groups, self.steps, self.total)
        with torch.autocast(self.head.blank.device.type, torch.bfloat16, enabled=self.bf16):
            tokens, counts = _audio_tokens(self.brain.model, items, self.head.blank.device)
        loss = self.head.loss(tokens, counts, targets) / max(1, sum(map(len, targets)))
        loss.backward()
        finite = bool(nn.utils.clip_grad_norm_(self.parameters, 1.0).isfinite())
        if finite:
            self.optimizer.step()
            value = float(loss.detach())
            self.average = value if self.average != self.average else self.average + AVERAGE * (value - self.average)
        self.optimizer.zero_grad(set_to_none=True)
        self.steps, self.skipped = self.steps + 1, self.skipped + (not finite)
        self.bar.set_postfix(loss=f"{self.average:.3f}", refresh=False)
        self.bar.update()

    def save(self, path: Path, run: Mapping[str, Any], finished: bool) -> None:
        """Write what `load` and, once it is finished, a restart of the stage need."""
        state = {name: getattr(self, name) for name in ("passes", "steps", "skipped", "average")}
        state |= {"run": json.dumps(run), "finished": finished, "head": self.head.tensors()}
        state["adapter"] = {name: tensor.cpu() for name, tensor in self.brain.model.adapter.state_dict().items()}
        state["optimizer"] = None if finished else self.optimizer.state_dict()
        with atomic_path(path, sync=True) as unfinished:
            torch.save(state, unfinished)

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from the end of a pass."""
        for name in ("passes", "steps", "skipped", "average"):
            setattr(self, name, state[name])
        self.brain.model.adapter.load_state_dict(state["adapter"])
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.bar.update(self.steps)
        logger.info("CTC start: continuing after pass %d", self.passes)


def _read_state(path: Path, run: Mapping[str, Any], accept_data: bool) -> dict[str, Any] | None:
    """State of an earlier CTC start of the same settings, None without one."""
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        saved = json.loads(state["run"])
    except Exception as error:  # torch reports damage by errors of many types
        logger.warning("%s is damaged (%s): the CTC start begins again", path, error)
        return None
    if different := refused_changes(saved, run, accept_data):
        raise ConfigError(
            f"{path} is of an unfinished run with other settings: {different}. "
            f"Use the same settings, delete {path.parent} to start from scratch, or choose another --output_folder"
        )
    return state


def _clips_with_transcript(dataset: AudioTextDataset) -> Clips:
    items, seen = [], set()
    for index, row in enumerate(dataset.rows):
        clip = dataset.source.identity(dataset.rows.manifest_of(index), clips_of(row)[0])
        if row["task"] == "asr" and len(clips_of(row)) == 1 and clip not in seen:
            seen.add(clip)
            items.append(index)
    keep = np.zeros(len(dataset), dtype=bool)
    keep[items] = True
    if not items:
        return Clips([], np.zeros(0, np.int64))
    frames = dataset.source.frames_of_rows(dataset.rows.keep(keep))
    return Clips(items, map_distinct(dataset.prompt.num_tokens, frames).astype(np.int64))


def _clips_that_fit(dataset: AudioTextDataset, tokenizer: PreTrainedTokenizerBase) -> tuple[Clips, list[list[int]]]:
    """Clips whose transcript fits in their audio tokens, and the token ids of these transcripts."""
    clips = _clips_with_transcript(dataset)
    if not clips.items:
        raise ConfigError('ctc_start: no row of the training set has task "asr"; add some, or set ctc_start to null')
    transcripts = [pieces_inside(" ".join(dataset.rows[i]["target"].split()), tokenizer) for i in clips.items]
    if not any(transcripts):
        raise ConfigError("ctc_start: all transcripts are empty; correct their field target, or set ctc_start to null")
    fitting = [k for k, ids in enumerate(transcripts) if required_tokens(ids) <= clips.tokens[k]]
    if lost := len(transcripts) - len(fitting):
        example = dataset.rows[next(clips.items[k] for k in range(len(transcripts)) if k not in set(fitting))]["id"]
        text = f"{lost} of {len(transcripts)} transcripts have more pieces than audio tokens, such as that of {example}"
        if lost > len(transcripts) / 2:
            raise ConfigError(
                f"ctc_start: {text}. Use an adapter with a smaller stride or window, or set ctc_start to null"
            )
        logger.warning("CTC start: %s; these clips are left out", text)
    return Clips([clips.items[k] for k in fitting], clips.tokens[fitting]), [transcripts[k] for k in fitting]


def _readable(
    brain: AudioLMBrain, where: str, read: Sequence[Item | Unreadable], targets: Sequence[Any]
) -> tuple[list[Item], list[Any]]:
    """Items that could be read, and their targets; the others are set aside."""
    brain.bad_audio.add(where, [item for item in read if isinstance(item, Unreadable)])
    pairs = [(item, target) for item, target in zip(read, targets) if isinstance(item, Item)]
    return [item for item, _ in pairs], [target for _, target in pairs]


def _read(
    dataset: AudioTextDataset, clips: Clips, batches: list[list[int]], num_workers: int
) -> Iterator[list[Item | Unreadable]]:
    return iter(
        DataLoader(
            Subset(ReadableItems(dataset), clips.items),
            batch_sampler=batches,
            collate_fn=list,
            num_workers=num_workers,
            generator=torch.Generator(),  # its own, so that the random numbers of dropout do not change
        )
    )


def _audio_tokens(model: Any, items: Sequence[Item], device: torch.device) -> tuple[Tensor, Tensor]:
    """Audio tokens [A, N, H] and counts [A]; gradients end at the features."""
    batch = collate(items).to(device)
    features, frames = batch.features, batch.frames
    if features is None:
        with torch.no_grad():
            features, frames = model.encoder.eval()(batch.waveforms, batch.samples)
    return model.adapter(features.to(next(model.adapter.parameters()).dtype), frames)


@torch.no_grad()
def _score(
    brain: AudioLMBrain,
    head: CTCHead,
    dataset: AudioTextDataset,
    tokenizer: PreTrainedTokenizerBase,
    alive: Callable[[], None],
) -> dict[str, Any] | None:
    """Scores of the greedy transcripts of the validation set; None where it has no transcript."""
    clips = _clips_with_transcript(dataset)
    if not clips.items:
        return None
    entry = ((brain.experiment["valid_answers"] or {}).get("metrics") or {}).get("asr", {})
    entry = entry if entry.get("type") == "asr" else {"type": "asr"}
    budget = max(brain.experiment["batch_tokens"], int(clips.tokens.max()))
    batches = LengthBucketSampler(clips.tokens, budget, shuffle=False).batches(0)
    if brain.debug:
        batches = batches[: brain.debug_batches]
    brain.model.adapter.eval()
    rows, answers = [], []
    for read in _read(dataset, clips, batches, brain.experiment["num_workers"]):
        items, _ = _readable(brain, "ctc_start of valid", read, read)
        rows += [item.row for item in items]
        if items:
            answers += head.transcribe(*_audio_tokens(brain.model, items, head.blank.device), tokenizer)
        alive()
    return score_task(rows, answers, entry) if rows else None


def _describe(scores: Mapping[str, Any] | None) -> str:
    if scores is None:
        return 'no row of the validation set has task "asr", so the adapter alone has no WER'
    low, high = scores["interval"]["wer"]
    return (
        f"WER of the adapter alone {100 * scores['wer']:.1f} % [{100 * low:.1f}, {100 * high:.1f}] on "
        f"{scores['utterances']} validation clips ({scores['normaliser']})"
    )
