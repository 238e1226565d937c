"""The training loop of one stage: SpeechBrain's Brain, with exact accumulation, skipped bad steps and exact resume.

What SpeechBrain's own `fit` does otherwise, and why it is not used: it drops the last incomplete accumulation window,
averages windows by batch instead of by token, clips the first parameter group only, back-propagates a NaN, and its
mid-epoch checkpoints hold no random number state.
"""

import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.utils.train_logger import FileTrainLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from audiolm_lite.data.batching import Batch, LengthBucketSampler, collate
from audiolm_lite.hub import save_model
from audiolm_lite.model import Loss
from audiolm_lite.parts import ConfigError
from audiolm_lite.training import handover
from audiolm_lite.training.blocks import checkpoint_blocks, compile_blocks
from audiolm_lite.training.checkpoint import CheckpointFolder, copy_tensors, random_state, set_random_state
from audiolm_lite.training.experiment import settings
from audiolm_lite.training.optimisation import build_optimizer, set_learning_rates
from audiolm_lite.training.parts import parameter_groups, parts_table, select_trainable

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError:  # an option: everything it would show is in losses.jsonl and train_log.txt too
    SummaryWriter = None

logger = logging.getLogger(__name__)


class NonFiniteError(RuntimeError):
    """More optimiser steps of an epoch than `nonfinite_patience` had a non-finite loss or gradient."""


@dataclass
class Progress:
    """Position of a run; together with the random number state it decides every later step.

    Attributes
    ----------
    epoch : int
        Current epoch, from 1.
    window : int
        Optimiser steps taken (or skipped) in this epoch.
    step : int
        Optimiser steps taken (or skipped) in all.
    skipped : int
        Steps skipped in this epoch because something was not finite.
    loss_sum, tokens : float
        Over this epoch's answer tokens, for its mean loss.
    """

    epoch: int = 1
    window: int = 0
    step: int = 0
    skipped: int = 0
    loss_sum: float = 0.0
    tokens: float = 0.0


class AudioLMBrain(sb.Brain):
    """Trains one stage of an audio language model.

    Parameters
    ----------
    model : nn.Module
        AudioLanguageModel; exactly the parameters named by `trainable` are made trainable.
    hparams : dict
        Every key of `experiment.TRAINING_KEYS`.
    run_opts : dict, optional
        `device`, `debug` and others of SpeechBrain's run options.
    """

    def __init__(self, model: nn.Module, hparams: dict, run_opts: dict | None = None):
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ConfigError("training runs in one process: start it with python, not with torchrun")
        select_trainable(model, hparams["trainable"])
        self.experiment, self.run_opts = hparams, dict(run_opts or {})
        super().__init__(modules={"model": model}, hparams=hparams, run_opts=self.run_opts)
        self.evaluation_ctx = self.training_ctx
        self.model = model
        defaults = {name: hparams[name] for name in ("weight_decay", "schedule", "warmup_steps")}
        groups = parameter_groups(model, hparams["learning_rates"], defaults)
        self.optimizer = build_optimizer(hparams["optimizer"], groups, hparams["betas"])
        self.optimizers_dict = {"optimizer": self.optimizer}
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if self.scaler.is_enabled() and any(p.dtype == torch.float16 for p in self.trained.values()):
            raise ConfigError("precision fp16 trains float32 parameters: set the llm's dtype to float32, or use bf16")
        for part in filter(None, (model.encoder, model.llm)):
            if hparams["gradient_checkpointing"]:
                checkpoint_blocks(part, hparams["gradient_checkpointing"])
            if hparams["compile"]:
                compile_blocks(part)
        self.folder = Path(hparams["output_folder"])
        self.folder.mkdir(parents=True, exist_ok=True)
        self.progress = Progress()
        self.carried: list[str] = []
        self.summary: dict = {}

    def print_parts(self) -> None:
        """Log the table part | parameters | trainable | lr | dtype | memory."""
        logger.info(
            "Stage %s on %s\n%s", self.hparams.stage, self.device, parts_table(self.model, self.optimizer.param_groups)
        )

    def load_previous_stage(self) -> None:
        """Start from what the stage before has trained (see `handover.load_previous_stage`)."""
        self.carried = handover.load_previous_stage(self.model, self.experiment)

    def compute_forward(self, batch: Batch, stage: sb.Stage) -> Loss:
        """Sums of loss, answer tokens and correct ones over a batch."""
        return self.modules.model(batch)

    def compute_objectives(self, predictions: Loss, batch: Batch, stage: sb.Stage) -> Tensor:
        """Sum of the cross-entropies; the mean is taken over a whole accumulation window."""
        return predictions.total

    def fit_stage(self, train: Dataset, valid: Dataset) -> None:
        """Train all epochs, going on from the newest checkpoint, and end with the best checkpoint's tensors.

        Raises
        ------
        ConfigError
            The checkpoints there are of a run with other settings.
        NonFiniteError
            Too many bad steps in an epoch.
        """
        began = time.monotonic()
        epochs = min(self.hparams.epochs, self.debug_epochs) if self.debug else self.hparams.epochs
        sampler = self._sampler(train, shuffle=True)
        windows = [self._windows_in_epoch(sampler, epoch) for epoch in range(1, epochs + 1)]
        self.total_steps = sum(windows)
        self.checkpoints = CheckpointFolder(self.folder / "checkpoints", self.hparams.valid_metric)
        self._resume(len(train))
        board = SummaryWriter(self.folder / "tensorboard", purge_step=self.progress.step) if SummaryWriter else None
        log = FileTrainLogger(str(self.folder / "train_log.txt"), precision=3)
        with (
            open(self.folder / "losses.jsonl", "a", encoding="utf-8", buffering=1) as losses,
            _bar(self.total_steps, self.progress.step, f"stage {self.hparams.stage}", self.noprogressbar) as bar,
        ):
            while self.progress.epoch <= epochs:
                epoch = self.progress.epoch
                self.on_stage_start(sb.Stage.TRAIN, epoch)
                for record in self._train_epoch(train, sampler, windows[epoch - 1], bar):
                    finite = {k: v if math.isfinite(v) else None for k, v in record.items()}  # JSON has no NaN
                    losses.write(json.dumps(finite) + "\n")
                    for name in ("loss", "lr", "grad_norm") if board else ():
                        board.add_scalar(f"train/{name}", record[name], record["step"])
                train_stats = {"loss": self.progress.loss_sum / max(1.0, self.progress.tokens)}
                train_stats["skipped steps"] = self.progress.skipped
                self.on_stage_end(sb.Stage.TRAIN, train_stats["loss"], epoch)
                self.on_stage_start(sb.Stage.VALID, epoch)
                metrics = self.validate(valid)
                self.on_stage_end(sb.Stage.VALID, metrics["loss"], epoch)
                rate = max(group["lr"] for group in self.optimizer.param_groups)
                log.log_stats({"epoch": epoch, "step": self.progress.step, "lr": rate}, train_stats, metrics)
                for name in metrics if board else ():
                    board.add_scalar(f"valid/{name}", metrics[name], self.progress.step)
                self.progress = Progress(epoch=epoch + 1, step=self.progress.step)
                self._save(metrics)
        if board:
            board.close()
        best = self.checkpoints.best()
        copy_tensors(self.model, best.tensors, self.checkpoints.folder)
        self.summary = {name: best.info[name] for name in ("step", "metrics")}
        self.summary["seconds"] = round(time.monotonic() - began, 1)
        logger.info("Best checkpoint: step %s of %s, %s", best.info["step"], self.total_steps, best.info["metrics"])

    def fit_batch(self, window: list[Batch]) -> dict:
        """Take one optimiser step on the mean loss over all answer tokens of an accumulation window.

        Nothing is updated when the loss or the gradient is not finite. One host synchronisation a step.

        Returns
        -------
        dict
            step, epoch, loss (mean per token, nats), lr (the largest), grad_norm (before clipping), tokens, samples.
        """
        sums = []
        for batch in window:
            batch = batch.to(self.device)
            with self.training_ctx:
                loss = self.compute_forward(batch, sb.Stage.TRAIN)
                objective = self.compute_objectives(loss, batch, sb.Stage.TRAIN)
            self.scaler.scale(objective).backward()
            sums.append(torch.stack([objective.detach(), loss.tokens]))
        self.scaler.unscale_(self.optimizer)
        sums = torch.stack(sums)  # [W, 2] float32
        tokens = sums[:, 1].sum()
        for parameter in self.trained.values():
            if parameter.grad is not None:
                parameter.grad.div_(tokens)
        norm = nn.utils.clip_grad_norm_(self.trained.values(), self.max_grad_norm)
        total, tokens, norm = torch.cat([sums.sum(dim=0), norm[None].float()]).tolist()

        set_learning_rates(self.optimizer.param_groups, self.progress.step, self.total_steps)
        # With fp16 an overflowing gradient is the scaler's daily business: it skips the step and lowers its scale.
        overflow = self.scaler.is_enabled() and math.isfinite(total) and self.scaler.get_scale() > 1
        finite = math.isfinite(total) and math.isfinite(norm)
        if finite or overflow:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.progress.window += 1
        if finite:
            self.progress.loss_sum += total
            self.progress.tokens += tokens
        elif not overflow:
            self._count_bad_step(window, sums[:, 0].tolist())
        return {
            "step": self.progress.step,
            "epoch": self.progress.epoch,
            "loss": total / tokens if tokens else math.nan,
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            "grad_norm": norm,
            "tokens": int(tokens),
            "samples": sum(len(batch.ids) for batch in window),
        }

    @torch.no_grad()
    def validate(self, dataset: Dataset) -> dict[str, float]:
        """Teacher-forced loss (nats per answer token) and token accuracy over a whole dataset."""
        self.modules.eval()
        sampler = self._sampler(dataset, shuffle=False)
        batches = _bar(len(sampler), 0, "validation", self.noprogressbar, leave=False)
        sums = []
        with batches:
            for batch in islice(self._loader(dataset, sampler), self._batch_limit()):
                batch = batch.to(self.device)
                with self.evaluation_ctx:
                    loss = self.compute_forward(batch, sb.Stage.VALID)
                sums.append(torch.stack([loss.total, loss.tokens, loss.correct]))
                batches.update()
        total, tokens, correct = torch.stack(sums).double().sum(dim=0).tolist()
        return {"loss": total / tokens, "accuracy": correct / tokens}

    def export(self, folder: str | Path) -> None:
        """Write the model's folder (see `hub`) for users to `folder`, then mark the stage finished for the next one."""
        save_model(self.model, self.experiment, folder, trained=self.carried)
        handover.save_stage(self.model, self.experiment, self.run_opts, self.carried, self.summary)

    def _train_epoch(self, dataset: Dataset, sampler: LengthBucketSampler, windows: int, bar: tqdm) -> Iterator[dict]:
        """Take the epoch's remaining optimiser steps, yielding each one's record and saving in between."""
        self.modules.train()
        self.optimizer.zero_grad(set_to_none=True)
        sampler.set_epoch(self.progress.epoch)
        sampler.start(self.progress.window * self.grad_accumulation_factor)
        batches = iter(self._loader(dataset, sampler))
        saved = began = time.monotonic()
        samples = 0
        while self.progress.window < windows:
            record = self.fit_batch(list(islice(batches, self.grad_accumulation_factor)))
            yield record
            samples += record["samples"]
            rate = f"{samples / (time.monotonic() - began):.1f}"
            bar.set_postfix(
                {"loss": f"{record['loss']:.3f}", "lr": f"{record['lr']:.1e}", "samples/s": rate}, refresh=False
            )
            bar.update()
            if 0 < self.ckpt_interval_minutes * 60 < time.monotonic() - saved:
                self._save()
                saved = time.monotonic()

    def _count_bad_step(self, window: list[Batch], losses: list[float]) -> None:
        """Report a step that was not finite by its items' ids, and stop after too many."""
        self.progress.skipped += 1
        bad = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
        what = "loss" if bad else "gradient"
        ids = [name for i in bad or range(len(window)) for name in window[i].ids]
        count = f"{self.progress.skipped} in epoch {self.progress.epoch}"
        logger.warning("Step %s skipped (%s): non-finite %s, items %s", self.progress.step, count, what, ", ".join(ids))
        if self.progress.skipped > self.nonfinite_patience:
            raise NonFiniteError(
                f"{count} steps had a non-finite loss or gradient, more than nonfinite_patience "
                f"{self.nonfinite_patience}; the last one's items: {', '.join(ids)}. Check these items, or lower the "
                "learning rate or use precision bf16 or fp32"
            )

    def _sampler(self, dataset: Dataset, shuffle: bool) -> LengthBucketSampler:
        lengths = [dataset.length(i) for i in range(len(dataset))]
        return LengthBucketSampler(lengths, self.hparams.batch_tokens, shuffle=shuffle, seed=self.hparams.seed)

    def _loader(self, dataset: Dataset, sampler: LengthBucketSampler) -> DataLoader:
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=self.hparams.num_workers,
            pin_memory=self.device_type == "cuda",
            # its own generator: making the loader must not draw from the one that dropout uses, or a resumed
            # epoch would go on with other masks
            generator=torch.Generator().manual_seed(self.hparams.seed + self.progress.epoch),
        )

    def _windows_in_epoch(self, sampler: LengthBucketSampler, epoch: int) -> int:
        windows = math.ceil(len(sampler.batches(epoch)) / self.grad_accumulation_factor)
        return min(windows, self.debug_batches) if self.debug else windows

    def _batch_limit(self) -> int | None:
        return self.debug_batches if self.debug else None

    def _settings(self) -> dict:
        return {**settings(self.experiment), "debug": bool(self.debug)}

    def _save(self, metrics: Mapping | None = None) -> None:
        """Write a checkpoint; only called between optimiser steps, so there are no partial gradients to keep."""
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": asdict(self.progress),
            "random": random_state(),
        }
        info = {"step": self.progress.step, "epoch": self.progress.epoch, "metrics": metrics}
        # statistics of an adapter's batch norms change in training, too
        statistics = {name: buffer for name, buffer in self.model.named_buffers() if name.startswith("adapter.")}
        tensors = {**self.trained, **statistics}
        self.checkpoints.save(tensors, state, {**info, "items": self.items, "settings": self._settings()})

    def _resume(self, items: int) -> None:
        """Go on from the newest checkpoint where there is one."""
        self.items = items
        checkpoint = self.checkpoints.newest()
        if checkpoint is None:
            _keep_lines(self.folder / "losses.jsonl", 0)
            return
        saved = {**checkpoint.info["settings"], "items": checkpoint.info["items"]}
        different = handover.difference(saved, {**self._settings(), "items": items})
        if different:
            raise ConfigError(
                f"{self.checkpoints.folder} holds an unfinished run with other settings: {'; '.join(different)}. "
                f"Use the same settings, delete {self.folder} to start anew, or choose another --output_folder"
            )
        copy_tensors(self.model, checkpoint.tensors, self.checkpoints.folder)
        self.optimizer.load_state_dict(checkpoint.state["optimizer"])
        self.scaler.load_state_dict(checkpoint.state["scaler"])
        self.progress = Progress(**checkpoint.state["progress"])
        set_random_state(checkpoint.state["random"])
        _keep_lines(self.folder / "losses.jsonl", self.progress.step)
        logger.info("Going on from step %s of %s", self.progress.step, self.total_steps)


def _bar(total: int, initial: int, description: str, disable: bool, leave: bool = True) -> tqdm:
    """A progress bar with time left; where nobody watches a terminal, a line every ten seconds."""
    interval = 0.5 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        disable=disable,
        leave=leave,
        mininterval=interval,
        dynamic_ncols=True,
    )


def _keep_lines(path: Path, step: int) -> None:
    """Cut losses.jsonl after `step`: what came later, perhaps half written, is about to be repeated."""
    lines = path.read_text(encoding="utf-8").splitlines()[:step] if path.is_file() else []
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    os.replace(temporary, path)
