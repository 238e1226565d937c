"""Every key that the YAML files of training and evaluation may have, with its help, type and default."""

from collections.abc import Callable
from typing import Any, NamedTuple

REQUIRED = object()

LONG_AUDIO = ("reject", "crop", "random_crop", "chunk")
LOSS_KERNELS = ("chunked", "torch")
OPTIMIZERS = ("adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit")
SCHEDULES = ("linear", "cosine", "constant")


class Key(NamedTuple):
    """One documented YAML key.

    Attributes
    ----------
    help : str
        One sentence for `--help`.
    kind : type or tuple of str
        Type of the value, or the values allowed.
    default : object
        Value where the file has none; REQUIRED: the file or the command line must give it.
    result : bool
        Whether the value can change the model. If so, a run with another value is not resumed or reused.
    least : float, optional
        Smallest number allowed.
    entries : type, optional
        Type of the entries of a list.
    """

    help: str
    kind: Any
    default: Any = REQUIRED
    result: bool = True
    least: float | None = None
    entries: Any = None


MODEL_KEYS = {
    "seed": Key("Seed of initialisation, sampling and dropout.", int, 1986, least=0),
    "encoder": Key("Audio encoder block (hparams/encoders/*.yaml): type, source, padding, layers, pool ...", dict),
    "adapter": Key("Adapter block (hparams/adapters/*.yaml): type and the arguments of that adapter.", dict),
    "llm": Key("Language model block (hparams/llms/*.yaml): source, dtype, quantization, lora.", dict),
    "template": Key("Prompt with slots {bos} {audio} {instruction} {answer} {eos} and any manifest field.", str),
    "generation": Key("Generation settings written into the exported model: max_new_tokens ...", dict, None, False),
    "instructions": Key("Questions of AudioLM.transcribe and .caption: {transcribe, caption}.", dict, None, False),
    "train_encoder": Key(
        "Run (and possibly train) the encoder on live waveforms instead of stored features.", bool, False
    ),
}

DATA_KEYS = {
    "data_folder": Key("Folder with the prepared data.", str, result=False),
    "output_root": Key("Folder of the curriculum; stages are sub-folders of it.", str, result=False),
    "output_folder": Key("Folder of this run: checkpoints, logs, the exported model.", str, result=False),
    "manifests": Key(
        "Lists of manifest files (JSON lines) under train, valid and test. An entry of train can be "
        "{path: ..., weight: ...}, with the relative share of the manifest in an epoch.",
        dict,
        result=False,
    ),
    "question_files": Key(
        "Lists of files under train, valid and test, with one question per line, for rows without an instruction. As "
        "many files as manifests: one per manifest; otherwise questions are drawn from all files. []: a default "
        "question; null: every row has its own.",
        dict,
        None,
        result=False,
    ),
    "feature_folder": Key(
        "Feature store written by prepare.py; not needed with train_encoder.", str, None, result=False
    ),
    "tasks": Key("Tasks to keep (manifest field task); null keeps all.", list, None, entries=str),
    "max_tokens": Key(
        "Most audio and text tokens of a row; a longer row is an error, unless shorten is set.", int, None, least=1
    ),
    "shorten": Key(
        "What is truncated in longer rows: a field of the template (transcript), audio; drop: the row is left out.",
        str,
        None,
    ),
    "batch_tokens": Key("Most audio and text tokens in a batch, padding included, per device.", int, 4096, least=1),
    "long_audio": Key(
        "Clips longer than the encoder accepts, for live audio (train_encoder); null: reject, or with stored features "
        "the rule of the store.",
        LONG_AUDIO,
        None,
    ),
    "num_workers": Key("Processes that load data; 0: the main process loads it.", int, 0, result=False, least=0),
}

TRAINING_KEYS = {
    **MODEL_KEYS,
    **DATA_KEYS,
    "stage": Key("Number of this stage; stage N starts from stage N-1 of output_root.", int, least=0),
    "brain": Key("The training loop: !name:audiolm_lite.training.brain.AudioLMBrain or a subclass.", Callable),
    "previous_stage": Key(
        "Stage, model folder or released model to start from; null: <output_root>/stage_<stage - 1>.",
        str,
        None,
    ),
    "alignment_init": Key("Closed-form initialisation of adapter.projection: {ridge, clips}; null: none.", dict, None),
    "ctc_start": Key(
        "CTC training of the adapter alone, before the stage, on rows with task asr: {passes: 6, learning_rate: "
        "2.0e-3, batch_tokens: 2048 (audio tokens)}. {} takes the defaults; null: none.",
        dict,
        None,
    ),
    "trainable": Key("Glob patterns of the parameters that train; each must match something.", list, entries=str),
    "learning_rates": Key(
        "Glob pattern -> peak learning rate or {lr, weight_decay, schedule, warmup_steps}; the first match counts.",
        dict,
    ),
    "optimizer": Key("AdamW; with bitsandbytes on a GPU also with 8-bit moments, paged, or both.", OPTIMIZERS, "adamw"),
    "weight_decay": Key("Weight decay of matrices; vectors (norms, biases) have none.", float, 0.0, least=0),
    "betas": Key("AdamW momentum terms.", list, [0.9, 0.999], entries=(int, float)),
    "schedule": Key("Learning rate after warm-up, per optimiser step.", SCHEDULES, "linear"),
    "warmup_steps": Key("Optimiser steps of linear warm-up.", int, 100, least=0),
    "mixing_temperature": Key(
        "Mixes the manifests of train in proportion to rows ** (1 / temperature): 1 is proportional to their sizes, "
        "larger values are more even. null: no mixing, every row once per epoch.",
        float,
        None,
    ),
    "epochs": Key("Passes over the training set.", int, 1, least=1),
    "grad_accumulation_factor": Key(
        "Batches per optimiser step; the loss is the mean over their answer tokens.", int, 1, least=1
    ),
    "max_grad_norm": Key("Largest gradient norm over all groups; larger gradients are scaled down.", float, 1.0),
    "augmentation": Key(
        "Augmentation of training clips: of stored features {time_masks, time_share, layer_mask}, of live audio "
        "{speeds, time_masks, frequency_masks}. {} takes the defaults; null: none.",
        dict,
        None,
    ),
    "distillation": Key(
        "Distillation from the LLM's own answers when it reads a text instead of the clip: {text: manifest field, "
        "weight: 1, temperature: 2}.",
        dict,
        None,
    ),
    "task_weights": Key("Task -> weight of its answer tokens in the training loss; 1 where none is given.", dict, None),
    "precision": Key(
        "Autocast precision of training; auto: bf16 where the device multiplies it, otherwise fp32.",
        ("auto", "fp32", "bf16", "fp16"),
        "auto",
    ),
    "loss_chunk": Key(
        "Positions whose logits are in memory at a time; 0: as many as fit in 256 MB.", int, 0, False, least=0
    ),
    "loss_kernel": Key(
        "Loss of training steps: computed in chunks, or by the fused kernel of torch 2.13.",
        LOSS_KERNELS,
        "chunked",
        False,
    ),
    "gradient_checkpointing": Key(
        "Recompute the activations of every n-th block in the backward pass; 1: all blocks, 0: none.",
        int,
        0,
        False,
        least=0,
    ),
    "packing": Key(
        "Batches without padding, all items in one row. For flash_attention_2: other kernels compare all tokens.",
        bool,
        False,
    ),
    "attention": Key(
        "The LLM's attention in training; null: matmul on CPUs in bf16, elsewhere transformers' choice.",
        ("sdpa", "flash_attention_2", "flex_attention", "eager", "matmul"),
        None,
        False,
    ),
    "compile": Key("Compile the blocks of LLM and encoder with torch.compile.", bool, False, False),
    "parallel": Key(
        "With several processes: a full copy of the model in each (ddp), or shards of it (fsdp, deepspeed).",
        ("ddp", "fsdp", "deepspeed"),
        "ddp",
        False,
    ),
    "deepspeed_config": Key(
        "With deepspeed: its JSON file, e.g. hparams/deepspeed/zero2.json, without settings that have a key here.",
        str,
        None,
        False,
    ),
    "cpu_offload": Key("With fsdp: keep shards that are not in use in host memory.", bool, False, False),
    "max_bad_audio": Key(
        "Most audio files that may be unreadable where training reads audio; their rows are set aside and listed in "
        "bad_audio.jsonl.",
        int,
        10,
        result=False,
        least=0,
    ),
    "accept_changed_data": Key(
        "Continue a run although manifests, question files or audio files have changed; rows that were set aside are "
        "tried again.",
        bool,
        False,
        result=False,
    ),
    "nonfinite_patience": Key(
        "Steps with a non-finite loss or gradient skipped in an epoch before stopping.", int, 3, False, least=0
    ),
    "valid_metric": Key(
        "Metric that selects the best checkpoint: loss, accuracy, or another as min:<name> or max:<name>.",
        str,
        "loss",
    ),
    "valid_answers": Key(
        "Generate and score answers to part of the validation set: {metrics: as in evaluation (task -> {type: asr, "
        "...}), items: 100, every: 1 (epochs), generation: {beams: 1}}. Adds metrics such as asr/wer. null: none.",
        dict,
        None,
    ),
    "patience": Key(
        "Number of validations without a better valid_metric after which training stops; null: never.", int, None
    ),
    "wandb": Key("Log to Weights & Biases too: {project, ...}, arguments of wandb.init; null: no.", dict, None, False),
    "ckpt_interval_minutes": Key("Minutes between checkpoints within an epoch.", float, 15.0, result=False, least=0),
}

EVALUATION_KEYS = {
    "seed": Key("Seed of the controls' permutation of clips.", int, 1986, least=0),
    "data_folder": DATA_KEYS["data_folder"],
    "model_folder": Key("Finished stage, saved or released model to evaluate.", str, result=False),
    "output_folder": Key("Where predictions.jsonl, metrics.json, latency.json and report.html go.", str, result=False),
    "manifests": Key("Manifest files (JSON lines) to evaluate on.", list, result=False, entries=str),
    "question_files": Key(
        "Files with one question per line, for rows without an instruction; null: every row has one.",
        list,
        None,
        result=False,
    ),
    "feature_folder": Key("Feature store; null: the model's encoder processes the audio.", str, None, result=False),
    "tasks": DATA_KEYS["tasks"],
    "metrics": Key("Task -> how it is scored: {type: asr|classification|regression|captioning, ...}.", dict),
    "controls": Key(
        "Audio that the model receives: normal, zeros (none), shuffled (of another clip); adapter_alone: transcripts "
        "of the adapter without the LLM; transcript: the field transcript of the rows. The last two are for tasks "
        "scored as asr.",
        list,
        ["normal", "zeros"],
        entries=str,
    ),
    "batch_tokens": DATA_KEYS["batch_tokens"],
    "num_workers": DATA_KEYS["num_workers"],
    "generation": Key("Entries that replace those of the model's generation settings.", dict, None),
    "dtype": Key(
        "Dtype of the LLM; auto: that of the model, but bfloat16 in place of float32 where the device multiplies it.",
        ("auto", "float32", "bfloat16", "float16"),
        "auto",
    ),
    "allow_left_out": Key(
        "Exit status 0 although rows were left out, because they have no features or unusable audio; false: 3.",
        bool,
        False,
        result=False,
    ),
    "title": Key("Heading of report.html.", str, "Evaluation"),
    "notes": Key("Paragraphs below the heading, e.g. about model and data.", list, [], entries=str),
    "answer_backend": Key(
        "For evaluate.py: eager; or, on a CPU, cpu (float32's tokens), or cpu-int8 and cpu-int4 with smaller weights.",
        ("eager", "cpu", "cpu-int8", "cpu-int4"),
        "eager",
    ),
    "backend": Key(
        "For latency.py: eager, inductor, aoti; cpu, a C++ step with float32's tokens, or cpu-int8 and cpu-int4 with "
        "smaller weights; best: the fastest of those with eager's tokens, timed over a few tokens.",
        ("eager", "inductor", "aoti", "cpu", "cpu-int8", "cpu-int4", "best"),
        "best",
    ),
    "latency_clips": Key("Clips whose answers are timed, one at a time.", int, 10, least=1),
    "latency_tokens": Key("Tokens of each timed answer.", int, 32, least=2),
    "latency_runs": Key("Timed answers.", int, 100, least=1),
}

# Mappings whose entries are optional, so that null removes one that the file has.
OPTIONAL_ENTRIES = ("learning_rates", "metrics", "generation")
# Options of generation of which null is a value: it turns them off.
NULLABLE = ("tokens_per_second", "silence_level")

RUN_OPTIONS = {
    "device": ("DEVICE", "Device, e.g. cpu, cuda:0 or mps (default: a GPU if there is one)."),
    "debug": ("", "Run two batches and two epochs, to check that everything works."),
}

# Only of train.py (see `training.stages`).
STAGES_OPTION = {
    "stages": ("FIRST-LAST", "Several stages in order: files of the same name with these numbers at the end."),
}
