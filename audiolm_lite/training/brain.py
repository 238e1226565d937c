"""The training loop of one stage: SpeechBrain's Brain, with exact accumulation, skipped bad steps and exact resume.

What SpeechBrain's own `fit` does otherwise, and why it is not used: it drops the last incomplete accumulation window,
averages windows by batch instead of by token, clips the first parameter group only, back-propagates a NaN, validates
the whole set in every process, and its mid-epoch checkpoints hold no random number state.
"""

import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.utils.autocast import AMPConfig, TorchAutocast
from torch import Tensor, nn
from torch.utils.data import Dataset

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.settings import settings
from audiolm_lite.distributed import processes
from audiolm_lite.evaluation.validation import AnswerValidation
from audiolm_lite.hub.save import save_model
from audiolm_lite.modeling.audio_language_model import Loss
from audiolm_lite.modeling.batch import Batch
from audiolm_lite.modeling.transformer_blocks import checkpoint_activations, compile_blocks, set_attention
from audiolm_lite.training import handover
from audiolm_lite.training.checkpoint import Checkpoint, copy_tensors, random_state, seed_process, set_random_state
from audiolm_lite.training.data_loader import Feed
from audiolm_lite.training.distillation import Distillation, require_frozen_llm
from audiolm_lite.training.engines import sharding, zero
from audiolm_lite.training.logging.training_log import TrainingLog, progress_bar
from audiolm_lite.training.optimizer import build_optimizer, set_learning_rates
from audiolm_lite.training.optimizer_step import Progress, amounts, average_and_clip, count_bad_step
from audiolm_lite.training.signals import Stopped, StopSignals
from audiolm_lite.training.trainable import parameter_groups, parts_table, select_trainable

logger = logging.getLogger(__name__)


class AudioLMBrain(sb.Brain):
    """Trains one stage of an audio language model, in one process or in all that the launcher has started.

    Parameters
    ----------
    model : nn.Module
        AudioLanguageModel; exactly the parameters named by `trainable` are made trainable.
    hparams : dict
        Every key of `keys.TRAINING_KEYS`.
    run_opts : dict, optional
        `device`, `debug` and others of SpeechBrain's run options.
    """

    def __init__(self, model: nn.Module, hparams: dict, run_opts: dict | None = None):
        select_trainable(model, hparams["trainable"])
        self.experiment, self.run_opts = hparams, dict(run_opts or {})
        # a model that is to be shared out stays where it is until each process takes its part
        self.deepspeed = zero.read_config(hparams) if hparams["parallel"] == "deepspeed" else None
        self.sharded = self.deepspeed is not None or (processes.world_size() > 1 and hparams["parallel"] == "fsdp")
        modules = {} if self.sharded else {"model": model}
        super().__init__(modules=modules, hparams=hparams, run_opts=self.run_opts)
        # no cache: autocast would keep a copy of every trained weight, also of FSDP's, until a forward pass ends
        dtype = AMPConfig.from_name(self.precision).dtype
        self.training_ctx = TorchAutocast(device_type=self.device_type, dtype=dtype, cache_enabled=False)
        self.evaluation_ctx = self.training_ctx
        self.model = model
        defaults = {name: hparams[name] for name in ("weight_decay", "schedule", "warmup_steps")}
        groups = parameter_groups(model, hparams["learning_rates"], defaults)
        self.patterns = [group["pattern"] for group in groups]
        if self.sharded and hparams["optimizer"] != "adamw":
            raise ConfigError(
                f"optimizer {hparams['optimizer']} cannot share out its state: use adamw, or parallel ddp"
            )
        self.optimizer = build_optimizer(hparams["optimizer"], groups, hparams["betas"])
        self.optimizers_dict = {"optimizer": self.optimizer}
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if self.scaler.is_enabled() and any(p.dtype == torch.float16 for p in self.trained.values()):
            raise ConfigError("precision fp16 trains float32 parameters: set the llm's dtype to float32, or use bf16")
        if hparams["attention"] is not None:
            set_attention(model.llm, hparams["attention"])
        for part in filter(None, (model.encoder, model.llm)):
            if hparams["compile"]:
                compile_blocks(part)
            if hparams["gradient_checkpointing"]:
                checkpoint_activations(part, hparams["gradient_checkpointing"])
        if hparams["patience"] is not None and hparams["patience"] < 1:
            raise ConfigError(f"patience is {hparams['patience']}; write 1 at least, or null to train all epochs")
        self.folder = Path(hparams["output_folder"])
        self.folder.mkdir(parents=True, exist_ok=True)
        self.progress, self.saved_step = Progress(), 0
        self.signals = StopSignals()
        self.zero: zero.Zero | None = None
        self.distillation: Distillation | None = None
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
        return self.modules.model(batch, self.distillation if stage == sb.Stage.TRAIN else None)

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
        Stopped
            A signal asked for it (see `stopping`); the run is saved.
        """
        began = time.monotonic()
        if self.hparams.distillation is not None:
            require_frozen_llm(self.model)
            self.distillation = Distillation(train.template, train.tokenizer, **self.hparams.distillation)
        epochs = min(self.hparams.epochs, self.debug_epochs) if self.debug else self.hparams.epochs
        self.items = len(train)
        asked = {**self._settings(), "items": self.items}
        self.checkpoints, checkpoint = handover.open_checkpoints(self.folder, self.hparams.valid_metric, asked)
        self.ranks = checkpoint.state["ranks"] if checkpoint else processes.world_size()
        feed = self._feed(train, shuffle=True)
        self.total_steps = sum(len(feed.windows(epoch)) for epoch in range(1, epochs + 1))
        self._begin(checkpoint)
        answers = None
        if self.hparams.valid_answers is not None:
            limit = self.debug_batches if self.debug else None
            answers = AnswerValidation(self.model, valid, self.experiment, self.sharded, limit)
        place = (self.folder, self.progress, self.total_steps, f"stage {self.hparams.stage}")
        options = {"quiet": self.noprogressbar, "wandb": self.hparams.wandb, "settings": self._settings()}
        with self.signals, TrainingLog(*place, **options, active=processes.is_main()) as log:
            while self.progress.epoch <= epochs and not self._stale:
                self._run_epoch(feed, valid, answers, log, last=self.progress.epoch == epochs)
            if self._stale:
                count, metric = self.progress.stale, self.hparams.valid_metric
                logger.info("Stopped early: %d validations in a row without a better %s", count, metric)
            log.draw()
        best = self.checkpoints.best()
        if self.sharded:  # what is handed over is whole again
            sharding.unshard_parameters(self.model, handover.handed_over_names(self.model, self.carried))
        copy_tensors(self.model, best.tensors, self.checkpoints.folder)
        self.summary = {name: best.info[name] for name in ("step", "metrics")}
        self.summary["seconds"] = round(time.monotonic() - began, 1)
        logger.info("Best checkpoint: step %s of %s, %s", best.info["step"], self.total_steps, best.info["metrics"])

    def fit_batch(self, window: list[Batch]) -> dict:
        """Take one optimiser step on the mean loss over all answer tokens of an accumulation window.

        Nothing is updated when the loss or the gradient is not finite, in any process. One host synchronisation a step.

        Returns
        -------
        dict
            step, epoch, loss (mean per token, nats), lr (the largest), grad_norm (before clipping), tokens (of
            answers), samples, audio_seconds, input_tokens (audio and text), padding (share of the batches' places), and
            `groups`: lr and grad_norm of each pattern of `learning_rates`. Over all processes.
        """
        set_learning_rates(self.optimizer.param_groups, self.progress.step, self.total_steps)
        if self.zero:
            self.zero.begin(window)
        sums = []
        for index, batch in enumerate(window):
            batch, last = batch.to(self.device), index == len(window) - 1
            with sharding.gradient_sync(self.modules.model, last):
                with self.training_ctx:
                    loss = self.compute_forward(batch, sb.Stage.TRAIN)
                    objective = self.compute_objectives(loss, batch, sb.Stage.TRAIN)
                if self.zero:
                    self.zero.backward(objective, last)
                else:
                    self.scaler.scale(objective).backward()
            sums.append(torch.stack([objective.detach(), loss.tokens]))
        sums = torch.stack(sums)  # [W, 2] float32
        everything = processes.sum_over_processes(torch.cat([sums.sum(dim=0), sums.new_tensor(amounts(window))]))
        if self.zero:
            norms = self.zero.step(everything[1])
        else:
            self.scaler.unscale_(self.optimizer)
            groups: dict[str, list[Tensor]] = {pattern: [] for pattern in self.patterns}
            for pattern, group in zip(self.patterns, self.optimizer.param_groups):
                groups[pattern] += group["params"]
            norms = average_and_clip(list(groups.values()), everything[1], self.max_grad_norm)
        total, tokens, samples, seconds, filled, places, norm, *norms = torch.cat([everything, norms]).tolist()
        # With fp16 an overflowing gradient is the scaler's daily business: it skips the step and lowers its scale.
        overflow = self.scaler.is_enabled() and math.isfinite(total) and self.scaler.get_scale() > 1
        finite = math.isfinite(total) and math.isfinite(norm)
        if not self.zero:
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
            count_bad_step(self.progress, window, sums[:, 0].tolist(), self.nonfinite_patience)
        rates = {pattern: group["lr"] for pattern, group in zip(self.patterns, self.optimizer.param_groups)}
        norms_of = [{"grad_norm": value} for value in norms] or [{}] * len(rates)  # DeepSpeed tells that of all alone
        return {
            "step": self.progress.step,
            "epoch": self.progress.epoch,
            "loss": total / tokens if tokens else math.nan,
            "lr": max(rates.values()),
            "grad_norm": norm,
            "tokens": int(tokens),
            "samples": int(samples),
            "audio_seconds": round(seconds, 2),
            "input_tokens": int(filled),
            "padding": round(1 - filled / places, 4),
            "groups": {name: {"lr": rates[name], **entry} for name, entry in zip(rates, norms_of)},
        }

    @torch.no_grad()
    def validate(self, dataset: Dataset) -> dict[str, float]:
        """Teacher-forced loss (nats per answer token) and token accuracy over a whole dataset, shared by all processes.

        Raises
        ------
        Stopped
            A signal asked for it; the checkpoint lies before this validation.
        """
        self.modules.eval()
        feed = self._feed(dataset, shuffle=False)
        windows = len(feed.windows(epoch=0))
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        with progress_bar(windows, 0, "validation", self.noprogressbar or not processes.is_main(), leave=False) as bar:
            for window in self._windows(feed, 0, 0):
                for batch in window:
                    batch = batch.to(self.device)
                    with self.evaluation_ctx:
                        loss = self.compute_forward(batch, sb.Stage.VALID)
                    sums += torch.stack([loss.total, loss.tokens, loss.correct])
                bar.update()
                self._save_and_stop_if_asked()
        total, tokens, correct = processes.sum_over_processes(sums).tolist()
        return {"loss": total / tokens, "accuracy": correct / tokens}

    def export(self, folder: str | Path) -> None:
        """Write the model's folder (see `hub`) for users to `folder`, then mark the stage finished for the next one."""
        error = None
        if processes.is_main():
            try:
                save_model(self.model, self.experiment, folder, trained=self.carried)
                handover.save_stage(self.model, self.experiment, self.run_opts, self.carried, self.summary)
            except Exception as raised:
                error = raised
        processes.any_rank(error)

    @property
    def _stale(self) -> bool:
        """Whether validation has not been better for so long that training stops."""
        return self.hparams.patience is not None and self.progress.stale >= self.hparams.patience

    def _run_epoch(
        self, feed: Feed, valid: Dataset, answers: AnswerValidation | None, log: TrainingLog, last: bool
    ) -> None:
        """Train what is left of an epoch, validate and save."""
        epoch = self.progress.epoch
        self.on_stage_start(sb.Stage.TRAIN, epoch)
        log.start_epoch()
        for record in self._train_epoch(feed):
            log.step(record)
        train_stats = {"loss": self.progress.loss_sum / max(1.0, self.progress.tokens)}
        train_stats["skipped steps"] = self.progress.skipped
        self.on_stage_end(sb.Stage.TRAIN, train_stats["loss"], epoch)
        self.on_stage_start(sb.Stage.VALID, epoch)
        metrics = self.validate(valid)
        answering = answers is not None and (last or epoch % answers.every == 0)
        if answering:
            scores, samples = answers.run(self._save_and_stop_if_asked)
            metrics |= scores
            log.samples(self.progress.step, samples)
        self.on_stage_end(sb.Stage.VALID, metrics["loss"], epoch)
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        log.epoch({"epoch": epoch, "step": self.progress.step, "lr": rate}, train_stats, metrics)
        # an epoch without answers cannot be the best by a metric of theirs
        ranked = metrics if answers is None or answering or self.checkpoints.metric in metrics else None
        self.progress = self.progress.next_epoch(self.checkpoints.cost(ranked) if ranked else None)
        self._save(ranked)

    def _train_epoch(self, feed: Feed) -> Iterator[dict]:
        """Take the epoch's remaining optimiser steps, yielding each one's record and saving in between."""
        self.modules.train()
        if not self.zero:
            self.optimizer.zero_grad(set_to_none=True)
        saved = time.monotonic()
        for window in self._windows(feed, self.progress.epoch, self.progress.window):
            yield self.fit_batch(window)
            due = 0 < self.ckpt_interval_minutes * 60 < time.monotonic() - saved
            if self._save_and_stop_if_asked(due):
                saved = time.monotonic()

    def _windows(self, feed: Feed, epoch: int, first: int) -> Iterator[list[Batch]]:
        """Read the windows of an epoch; what cannot be read in one process is an error in all of them."""
        windows = feed.batches(epoch, first)
        while True:
            window, error = None, None
            try:
                window = next(windows, None)
            except Exception as raised:
                error = raised
            processes.any_rank(error)
            if window is None:
                return
            yield window

    def _save_and_stop_if_asked(self, save: bool = False) -> bool:
        """Save where any process wants to, and end the run where a signal came to any of them."""
        flags = processes.any_rank(save=save, stop=bool(self.signals.requested))
        if any(flags.values()) and self.saved_step != self.progress.step:
            self._save()
        if flags["stop"]:
            logger.warning(
                "Stopped by %s at step %s of %s; the same command goes on from there",
                self.signals.requested or "another process",
                self.progress.step,
                self.total_steps,
            )
            raise Stopped
        return flags["save"]

    def _feed(self, dataset: Dataset, shuffle: bool) -> Feed:
        """Batches of training, or of validation in the order of their length."""
        planned = {"accumulation": self.grad_accumulation_factor, "ranks": self.ranks}
        return Feed(
            dataset,
            self.hparams.batch_tokens,
            **planned if shuffle else {"accumulation": processes.world_size()},
            shuffle=shuffle,
            seed=self.hparams.seed,
            limit=self.debug_batches if self.debug else None,
            num_workers=self.hparams.num_workers,
            pin_memory=self.device_type == "cuda",
            packed=self.hparams.packing,
        )

    def _settings(self) -> dict:
        return {**settings(self.experiment), "debug": bool(self.debug)}

    def _save(self, metrics: Mapping | None = None) -> None:
        """Write a checkpoint; only called between optimiser steps, so there are no partial gradients to keep."""
        if self.zero:
            self.zero.save(self.checkpoints.shards(self.progress.step))
        state = {
            "optimizer": None if self.zero else sharding.full_optimizer_state(self.optimizer),
            "deepspeed": self.zero and self.zero.layout,
            "scaler": self.scaler.state_dict(),
            "progress": asdict(self.progress),
            "ranks": self.ranks,
            "random": processes.gather(random_state()),
        }
        info = {"step": self.progress.step, "epoch": self.progress.epoch, "metrics": metrics}
        # statistics of an adapter's batch norms change in training, too
        statistics = {name: buffer for name, buffer in self.model.named_buffers() if name.startswith("adapter.")}
        tensors = {name: sharding.full_tensor(tensor) for name, tensor in {**self.trained, **statistics}.items()}
        error = None
        if processes.is_main():
            try:
                self.checkpoints.save(tensors, state, {**info, "items": self.items, "settings": self._settings()})
            except Exception as raised:
                error = raised
        processes.any_rank(error)
        self.saved_step = self.progress.step

    def _begin(self, checkpoint: Checkpoint | None) -> None:
        """Share the model out and, where there is a checkpoint, go on from it."""
        if checkpoint:
            copy_tensors(self.model, checkpoint.tensors, self.checkpoints.folder)
            self.progress = Progress(**checkpoint.state["progress"])
            self.saved_step = self.progress.step
            logger.info("Going on from step %s of %s", self.progress.step, self.total_steps)
        if self.deepspeed:
            self.zero = zero.Zero(self.model, self.optimizer, self.deepspeed, torch.device(self.device))
            self.modules["model"], self.optimizer = self.zero.engine, self.zero.optimizer
        else:
            self.modules["model"] = sharding.shard_model(
                self.model, self.hparams.parallel, self.device, self.hparams.cpu_offload
            )
            sharding.rebind_parameters(self.optimizer, self.model)
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        random = checkpoint.state["random"] if checkpoint else []
        if checkpoint:
            zero.require_layout(checkpoint.state.get("deepspeed"), self.zero and self.zero.layout, checkpoint.folder)
            if self.zero:
                self.zero.load(checkpoint.folder)
            else:
                sharding.load_full_optimizer_state(self.optimizer, checkpoint.state["optimizer"])
            self.scaler.load_state_dict(checkpoint.state["scaler"])
        if len(random) == processes.world_size():
            set_random_state(random[processes.rank()])
        elif checkpoint or processes.world_size() > 1:
            # each process draws its own dropout; with another number of them the old draws cannot go on
            seed_process(self.hparams.seed, self.progress.step, processes.rank())
