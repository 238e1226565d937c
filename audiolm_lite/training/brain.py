"""The training loop of one stage: SpeechBrain's Brain with exact accumulation, skipped bad steps and exact resume.

SpeechBrain's own `fit` is not used. It drops the last incomplete accumulation window, averages windows by batch instead
of by token, clips the first parameter group only, back-propagates a NaN, validates the complete set in each process,
and saves no state of the random number generators within an epoch.
"""

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain.utils.autocast import AMPConfig, TorchAutocast
from torch import Tensor, nn

from audiolm_lite.config.errors import ConfigError, errors_about
from audiolm_lite.config.precision import training_precision
from audiolm_lite.data.dataset import UNREADABLE, AudioTextDataset
from audiolm_lite.data.readable import Unreadable
from audiolm_lite.data.selected_rows import DatasetError
from audiolm_lite.distributed import processes
from audiolm_lite.evaluation.validation import AnswerValidation, check_validation
from audiolm_lite.hub.save import save_model
from audiolm_lite.modeling.audio_language_model import Loss
from audiolm_lite.modeling.batch import Batch
from audiolm_lite.training import handover
from audiolm_lite.training.bad_audio import BadAudio
from audiolm_lite.training.build import configure_model, rule_for_long_audio
from audiolm_lite.training.checkpoint import DamagedCheckpointError, copy_tensors
from audiolm_lite.training.data_loader import WindowLoader, read_in_all_processes
from audiolm_lite.training.distillation import Distillation, require_frozen_llm
from audiolm_lite.training.engines import sharding
from audiolm_lite.training.engines.torch_engine import TorchEngine
from audiolm_lite.training.engines.zero import ZeroEngine
from audiolm_lite.training.logging.training_log import TrainingLog, progress_bar
from audiolm_lite.training.optimizer import build_optimizer, require_peak, set_learning_rates
from audiolm_lite.training.optimizer_step import count_step, report_skipped_step, step_record, sum_window
from audiolm_lite.training.progress import Progress
from audiolm_lite.training.run_identity import run_settings
from audiolm_lite.training.run_state import ACCEPTED, RunState
from audiolm_lite.training.signals import Stopped, StopSignals
from audiolm_lite.training.task_weights import TaskWeights
from audiolm_lite.training.trainable import parameter_groups, parameter_table

logger = logging.getLogger(__name__)


class AudioLMBrain(sb.Brain):
    """Trains one stage of an audio language model, in one process or in all that the launcher has started.

    Parameters
    ----------
    model : nn.Module
        AudioLanguageModel; exactly the parameters named by `trainable` are made trainable.
    hparams : dict
        All keys of `config.keys.TRAINING_KEYS`.
    run_opts : dict, optional
        `device`, `debug` and other run options of SpeechBrain.

    Attributes
    ----------
    model : nn.Module
        The model; `modules.model` is what to call in place of it.
    engine : TorchEngine or ZeroEngine
        Accumulates gradients and takes the optimiser step.
    progress : Progress
        Position of the run.
    total_steps : int
        Optimiser steps of the stage, over which the learning rates decay.
    bad_audio : BadAudio
        Rows that are set aside because their audio cannot be read, the same in all processes.
    ctc_head : mapping or None
        Tensors of the CTC head of this stage's or an earlier one's `ctc_start`, which the exported model keeps.
    summary : dict
        Step, metrics and training time of the best checkpoint, once the stage is trained.

    Raises
    ------
    ConfigError
        Settings exclude each other, or the machine or the model does not support them.
    """

    def __init__(self, model: nn.Module, hparams: dict[str, Any], run_opts: dict[str, Any] | None = None):
        if hparams["patience"] is not None and hparams["patience"] < 1:
            raise ConfigError(f"patience is {hparams['patience']}; write 1 at least, or null to train all epochs")
        self.run_opts = dict(run_opts or {})
        hparams = {**hparams, "precision": training_precision(hparams["precision"], self.run_opts.get("device"))}
        self.experiment = hparams
        device = self.run_opts.get("device") or "cpu"
        if hparams["precision"] == "fp16" and hparams["loss_kernel"] == "torch":
            raise ConfigError("loss_kernel torch loses small gradients in precision fp16: use chunked or bf16")
        if hparams["precision"] == "fp16" and torch.device(device).type != "cuda":  # no scaling of the loss
            raise ConfigError("precision fp16 needs a GPU with CUDA: use --precision bf16 or --precision fp32")
        configure_model(model, hparams, device)
        # a model that will be sharded is not moved: each process moves its shard
        modules = {} if sharding.is_sharded_run(hparams["parallel"]) else {"model": model}
        super().__init__(modules=modules, hparams=hparams, run_opts=self.run_opts)
        # no cache: autocast would keep a copy of each trained weight, also of FSDP's, until a forward pass ends
        dtype = AMPConfig.from_name(self.precision).dtype
        self.training_ctx = TorchAutocast(device_type=self.device_type, dtype=dtype, cache_enabled=False)
        self.evaluation_ctx = self.training_ctx
        self.model = model
        self.engine = self._build_engine()
        self.progress, self.total_steps = Progress(), 1
        self.folder = Path(hparams["output_folder"])
        self.folder.mkdir(parents=True, exist_ok=True)
        self.bad_audio = BadAudio(hparams["max_bad_audio"], self.folder)
        self.signals = StopSignals()
        self.state: RunState
        self.objective: Distillation | TaskWeights | None = None
        self.inherited: list[str] = []
        self.ctc_head: Mapping[str, Tensor] | None = None
        self.summary: dict[str, Any] = {}

    # --- the loop -----------------------------------------------------------------------------------------------------

    def fit_stage(self, train: AudioTextDataset, valid: AudioTextDataset) -> None:
        """Train all epochs, continuing from the newest checkpoint; the model then has the best checkpoint's tensors.

        Raises
        ------
        ConfigError
            The output folder contains checkpoints of a run with other settings.
        NonFiniteError
            Too many steps of an epoch were skipped.
        BadAudioError
            More audio files than `max_bad_audio` cannot be read.
        Stopped
            The process has received a signal (see `signals`); a checkpoint is saved.
        """
        began = time.monotonic()
        epochs = min(self.hparams.epochs, self.debug_epochs) if self.debug else self.hparams.epochs
        loader, answers = self._prepare(train, valid, epochs)
        with self.signals, self._open_log() as log:
            while not self.progress.is_finished(epochs, self.hparams.patience):
                epoch = self.progress.epoch
                self.on_stage_start(sb.Stage.TRAIN, epoch)
                log.start_epoch()
                self.modules.train()
                first = self.progress.window
                for window in read_in_all_processes(loader, epoch, first, where="train", bad_audio=self.bad_audio):
                    log.step(self.fit_batch(window))
                    self._save_if_needed(due=self.state.is_due())
                self.on_stage_end(sb.Stage.TRAIN, self.progress.mean_loss, epoch)

                self.on_stage_start(sb.Stage.VALID, epoch)
                metrics = self.validate(valid)
                if answers_due := answers is not None and (epoch == epochs or epoch % answers.every == 0):
                    metrics |= self._score_answers(answers, log)
                self.on_stage_end(sb.Stage.VALID, metrics["loss"], epoch)

                self._log_epoch(log, metrics)
                self._save_epoch(metrics, ranked=answers is None or answers_due or self.state.metric in metrics)
            log.draw()
        self._load_best(began)

    def fit_batch(self, window: list[Batch]) -> dict[str, Any]:
        """Take one optimiser step on the mean loss over all answer tokens of an accumulation window.

        The step is skipped where the loss or the gradient is not finite in any process.

        Returns
        -------
        dict
            The step's line of losses.jsonl (see `step_record`).
        """
        set_learning_rates(self.optimizer.param_groups, self.progress.step, self.total_steps)
        self.engine.start_window(window)
        batch_sums = []
        for number, batch in enumerate(window, start=1):
            batch = batch.to(self.device)
            with self.engine.accumulate(last=number == len(window)):
                with self.training_ctx:
                    loss = self.compute_forward(batch, sb.Stage.TRAIN)
                    objective = self.compute_objectives(loss, batch, sb.Stage.TRAIN)
                self.engine.backward(objective)
            batch_sums.append(torch.stack([objective.detach(), loss.tokens]))
        sums = torch.stack(batch_sums)  # [W, 2] float32
        result = self.engine.step(sum_window(sums, window))
        count_step(self.progress, result)
        if result.tokens and not result.finite and not result.overflow:
            report_skipped_step(self.progress, window, sums[:, 0].tolist(), self.nonfinite_patience)
        return step_record(self.progress, result, self.optimizer.param_groups)

    def compute_forward(self, batch: Batch, stage: sb.Stage) -> Loss:
        """Sums of the loss, of the answer tokens and of those predicted correctly, over a batch."""
        return self.modules.model(batch, self.objective if stage == sb.Stage.TRAIN else None)

    def compute_objectives(self, predictions: Loss, batch: Batch, stage: sb.Stage) -> Tensor:
        """Sum of the losses of a batch, of which `fit_batch` takes the mean over a window."""
        return predictions.total

    @torch.no_grad()
    def validate(self, dataset: AudioTextDataset) -> dict[str, float]:
        """Compute the teacher-forced loss (nats per answer token) and token accuracy of a dataset in all processes.

        Raises
        ------
        Stopped
            The process has received a signal; the checkpoint is from before the validation.
        """
        self.modules.eval()
        loader = self._loader(dataset, training=False)
        windows = len(loader.windows(epoch=0))
        sums = []
        with progress_bar(windows, 0, "validation", self.noprogressbar or not processes.is_main(), leave=False) as bar:
            for window in read_in_all_processes(loader, epoch=0, where="valid", bad_audio=self.bad_audio):
                for batch in window:
                    batch = batch.to(self.device)
                    with self.evaluation_ctx:
                        loss = self.compute_forward(batch, sb.Stage.VALID)
                    assert loss.correct is not None  # only a `loss_kernel` of training steps does not count them
                    sums.append(torch.stack([loss.total, loss.tokens, loss.correct]))
                bar.update()
                self._save_if_needed()
        # Summed on the host in double precision, which not every device has.
        own = torch.stack(sums).tolist() if sums else [[0.0] * 3]
        total, tokens, correct = processes.sum_numbers([math.fsum(column) for column in zip(*own)])
        if not tokens:
            raise DatasetError("dataset: no row of the validation set has audio that can be read")
        return {"loss": total / tokens, "accuracy": correct / tokens}

    # --- before and after ---------------------------------------------------------------------------------------------

    def print_parts(self) -> None:
        """Log the table part | parameters | trainable | lr | dtype | memory."""
        table = parameter_table(self.model, self.optimizer.param_groups)
        logger.info("Stage %s on %s\n%s", self.hparams.stage, self.device, table)

    def load_previous_stage(self) -> None:
        """Load the tensors that the previous stage has trained (see `handover.load_previous_stage`)."""
        self.inherited = handover.load_previous_stage(self.model, self.experiment)
        self.ctc_head = handover.previous_ctc_head(self.experiment)

    def export(self, folder: str | Path) -> None:
        """Write the model folder (see `hub`) to `folder`, then mark the stage as finished."""
        error = None
        if processes.is_main():
            try:
                experiment = {**self.experiment, "long_audio": rule_for_long_audio(self.experiment)}
                save_model(self.model, experiment, folder, trained=self.inherited, ctc_head=self.ctc_head)
                handover.save_stage(self.model, self.experiment, self.run_opts, self.inherited, self.summary)
            except Exception as raised:
                error = raised
        processes.any_rank(error)

    def check_validation(self, valid: AudioTextDataset) -> None:
        """Refuse a `valid_metric` that validation cannot compute (see `evaluation.validation.check_validation`)."""
        own = type(self).validate is not AudioLMBrain.validate
        check_validation(valid, self.experiment, self.debug_batches if self.debug else None, others=own)

    # --- details ------------------------------------------------------------------------------------------------------

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser, whose groups are those of `parameter_groups`."""
        return self.engine.optimizer

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def _build_engine(self) -> TorchEngine | ZeroEngine:
        hparams, device = self.experiment, torch.device(self.device)
        if sharding.is_sharded_run(hparams["parallel"]) and hparams["optimizer"] != "adamw":
            raise ConfigError(f"optimizer {hparams['optimizer']} cannot shard its state: use adamw, or parallel ddp")
        if self.scaler.is_enabled() and any(p.dtype == torch.float16 for p in self.trained.values()):
            raise ConfigError("precision fp16 trains float32 parameters: set the llm's dtype to float32, or use bf16")
        defaults = {name: hparams[name] for name in ("weight_decay", "schedule", "warmup_steps")}
        groups = parameter_groups(self.model, hparams["learning_rates"], defaults)
        optimizer = build_optimizer(hparams["optimizer"], groups, hparams["betas"])
        if hparams["parallel"] == "deepspeed":
            return ZeroEngine(self.model, optimizer, hparams, device)
        return TorchEngine(self.model, optimizer, hparams, device, self.scaler)

    def _prepare(
        self, train: AudioTextDataset, valid: AudioTextDataset, epochs: int
    ) -> tuple[WindowLoader, AnswerValidation | None]:
        """Restore the newest checkpoint and distribute the model; build the loader and the validation by answers."""
        if self.hparams.distillation is not None:
            require_frozen_llm(self.model)
            prompt = train.prompt
            with errors_about(f"distillation {dict(self.hparams.distillation)}"):
                self.objective = Distillation(prompt.template, prompt.tokenizer, **self.hparams.distillation)
        if self.hparams.task_weights is not None:
            tasks = train.rows.tasks().union(self.hparams.tasks or [])
            self.objective = TaskWeights(self.hparams.task_weights, tasks)
        self.check_validation(valid)
        hparams = self.hparams
        self.state = RunState(
            self.model,
            self.engine,
            self.folder,
            settings=self._settings(),
            items=len(train),
            lengths=train.lengths,
            metric=hparams.valid_metric,
            interval_minutes=self.ckpt_interval_minutes,
            bad_audio=self.bad_audio,
            accept_data=hparams.accept_changed_data,
        )
        loader = self._loader(train, training=True)
        self.total_steps = sum(len(loader.windows(epoch)) for epoch in range(1, epochs + 1))
        if not self.debug:
            require_peak(self.optimizer.param_groups, self.total_steps)
        self.progress = self.state.restore(hparams.seed)
        for where, dataset in (("train", train), ("valid", valid)):
            left_out = [row for row in getattr(dataset, "omitted", ()) if row.kind == UNREADABLE]
            self.bad_audio.add(where, [Unreadable(-1, row.id, row.reason, row.reason) for row in left_out])
        self.modules["model"] = self.engine.module
        if self.progress.step:
            logger.info("Continuing from step %s of %s", self.progress.step, self.total_steps)
        answers = None
        if hparams.valid_answers is not None:
            limit = self.debug_batches if self.debug else None
            sharded = sharding.is_sharded_run(hparams.parallel)
            answers = AnswerValidation(self.model, valid, self.experiment, sharded, limit, self.ctc_head)
        return loader, answers

    def _loader(self, dataset: AudioTextDataset, training: bool) -> WindowLoader:
        """Load shuffled batches for training, or batches sorted by length for validation."""
        accumulation, ranks = processes.world_size(), 1
        if training:
            accumulation, ranks = self.grad_accumulation_factor, self.state.ranks
        return WindowLoader(
            dataset,
            self.hparams.batch_tokens,
            accumulation=accumulation,
            ranks=ranks,
            shuffle=training,
            seed=self.hparams.seed,
            limit=self.debug_batches if self.debug else None,
            num_workers=self.hparams.num_workers,
            pin_memory=self.device_type == "cuda",
            packed=self.hparams.packing,
        )

    def _open_log(self) -> TrainingLog:
        return TrainingLog(
            self.folder,
            self.progress,
            self.total_steps,
            title=f"stage {self.hparams.stage}",
            quiet=self.noprogressbar,
            wandb=self.hparams.wandb,
            settings=self._settings(),
            active=processes.is_main(),
        )

    def _settings(self) -> dict[str, Any]:
        return {**run_settings(self.experiment), "debug": bool(self.debug)}

    def _save_if_needed(self, due: bool = False) -> None:
        """Save a checkpoint where it is due in any process; where any has received a signal, save and end the run."""
        flags = processes.any_rank(save=due, stop=bool(self.signals.requested))
        if any(flags.values()) and self.state.saved_step != self.progress.step:
            self.state.save(self.progress)
        if flags["stop"]:
            signal = self.signals.requested or "a signal to another process"
            position = f"step {self.progress.step} of {self.total_steps}"
            logger.warning("Stopped by %s at %s; the same command continues from there", signal, position)
            raise Stopped

    def _score_answers(self, answers: AnswerValidation, log: TrainingLog) -> dict[str, float]:
        scores, samples = answers.run(self._save_if_needed, self.bad_audio.known("valid"))
        self.bad_audio.add("valid", answers.unreadable)  # the same in all processes
        log.samples(self.progress.step, samples)
        return scores

    def _log_epoch(self, log: TrainingLog, metrics: Mapping[str, float]) -> None:
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        position = {"epoch": self.progress.epoch, "step": self.progress.step, "lr": rate}
        log.epoch(position, {"loss": self.progress.mean_loss, "skipped steps": self.progress.skipped}, metrics)

    def _save_epoch(self, metrics: Mapping[str, float], ranked: bool) -> None:
        """Count the epoch and save; without its answers, an epoch cannot be the best one by a metric of the answers."""
        cost = self.state.checkpoints.cost(metrics) if ranked else None
        self.progress = self.progress.next_epoch(cost)
        self.state.save(self.progress, metrics if ranked else None)

    def _load_best(self, began: float) -> None:
        """Unshard the model and copy the tensors of the best checkpoint into it."""
        if self.progress.stops_early(self.hparams.patience):
            count, metric = self.progress.stale, self.hparams.valid_metric
            logger.info("Stopped early: %d validations in a row without a better %s", count, metric)
        best = self.state.checkpoints.best()
        if best is None:
            raise DamagedCheckpointError(f"{self.state.checkpoints.folder}: no validated checkpoint can be read")
        sharding.unshard_parameters(self.model, handover.handed_over_names(self.model, self.inherited))
        copy_tensors(self.model, best.tensors, self.state.checkpoints.folder)
        self.summary = {name: best.info[name] for name in ("step", "metrics")}
        self.summary["seconds"] = round(time.monotonic() - began, 1)
        self.summary["bad_audio"] = self.bad_audio.files
        self.summary[ACCEPTED] = self.state.info.get(ACCEPTED, [])
        logger.info("Best checkpoint: step %s of %s, %s", best.info["step"], self.total_steps, best.info["metrics"])
