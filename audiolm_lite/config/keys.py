"""Every key that the YAML files of training and evaluation may have, with its help, type and default."""

from typing import Any, NamedTuple

REQUIRED = object()

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
        Whether another value may give another model; such a change refuses to resume or reuse a run.
    """

    help: str
    kind: Any
    default: Any = REQUIRED
    result: bool = True


MODEL_KEYS = {
    "seed": Key("Seed of initialisation, sampling and dropout.", int, 1986),
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
    "output_root": Key("Folder of the whole curriculum; stages are sub-folders of it.", str, result=False),
    "output_folder": Key("Folder of this run: checkpoints, logs, the exported model.", str, result=False),
    "manifests": Key(
        "Lists of manifest files (JSON lines) under train, valid and test; in train also {path: ..., weight: ...}, the "
        "weight being the manifest's share of an epoch relative to the others.",
        dict,
        result=False,
    ),
    "question_files": Key(
        "Lists of files under train, valid and test, one question a line, for rows without an instruction. As many "
        "files as manifests: one each; else drawn from all; []: a default question; null: every row has its own.",
        dict,
        None,
        result=False,
    ),
    "feature_folder": Key(
        "Feature store written by prepare.py; not needed with train_encoder.", str, None, result=False
    ),
    "tasks": Key("Tasks to keep (manifest field task); null keeps all.", list, None),
    "max_tokens": Key("Most audio + text tokens of a row; more is an error, unless shorten is set.", int, None),
    "shorten": Key("What gives way in longer rows: a field of the template, e.g. transcript; audio; drop.", str, None),
    "batch_tokens": Key("Padded audio + text tokens in a batch, per device.", int, 4096),
    "num_workers": Key("Processes that load data; 0 loads in the main process.", int, 0, result=False),
}

TRAINING_KEYS = {
    **MODEL_KEYS,
    **DATA_KEYS,
    "stage": Key("Number of this stage; stage N starts from stage N-1 of output_root.", int),
    "brain": Key("The training loop: !name:audiolm_lite.training.brain.AudioLMBrain or a subclass.", object),
    "previous_stage": Key(
        "Stage to start from, or a model's folder, e.g. a converted checkpoint; null: <output_root>/stage_<stage - 1>.",
        str,
        None,
    ),
    "alignment_init": Key("Closed-form start of adapter.projection: {ridge, clips}; null: random.", dict, None),
    "trainable": Key("Glob patterns of the parameters that train; each must match something.", list),
    "learning_rates": Key(
        "Glob pattern -> peak learning rate or {lr, weight_decay, schedule, warmup_steps}; the first match counts.",
        dict,
    ),
    "optimizer": Key("AdamW in 32 bits or, by bitsandbytes on a GPU, in 8 bits, paged, or both.", OPTIMIZERS, "adamw"),
    "weight_decay": Key("AdamW weight decay of matrices; vectors (norms, biases) have none.", float, 0.0),
    "betas": Key("AdamW momentum terms.", list, [0.9, 0.999]),
    "schedule": Key("Learning rate after warm-up, per optimiser step.", SCHEDULES, "linear"),
    "warmup_steps": Key("Optimiser steps of linear warm-up.", int, 100),
    "mixing_temperature": Key(
        "Mixes the manifests of train in shares of rows ** (1 / temperature): 1 keeps their sizes' shares, more evens "
        "them out; null: no mixing, every row once an epoch.",
        float,
        None,
    ),
    "epochs": Key("Passes over the training set.", int, 1),
    "grad_accumulation_factor": Key("Batches in one optimiser step; the mean is over all their answer tokens.", int, 1),
    "max_grad_norm": Key("Norm over all groups to which gradients are clipped.", float, 1.0),
    "augmentation": Key(
        "Changes to clips of training: stored features {time_masks, time_share, layer_mask}, live audio {speeds, "
        "time_masks, frequency_masks}; {} takes the defaults, null changes nothing.",
        dict,
        None,
    ),
    "distillation": Key(
        "Learn the LLM's own answers to the text in a clip's place: {text: manifest field, weight: 1, temperature: 2}.",
        dict,
        None,
    ),
    "precision": Key("Autocast precision of training.", ("fp32", "bf16", "fp16"), "fp32"),
    "loss_chunk": Key("Positions whose logits exist at a time; 0: as many as fit in 256 MB.", int, 0, False),
    "loss_kernel": Key(
        "Loss of training steps: computed in chunks, or by the fused kernel of torch 2.13.",
        LOSS_KERNELS,
        "chunked",
        False,
    ),
    "gradient_checkpointing": Key(
        "Recompute the activations of every n-th block in the backward pass; 1: of all, 0: of none.", int, 0, False
    ),
    "packing": Key(
        "Batches without padding: all items in one row; for flash_attention_2, since other kernels compare all tokens.",
        bool,
        False,
    ),
    "attention": Key(
        "The LLM's attention in training; null: transformers' choice.",
        ("sdpa", "flash_attention_2", "flex_attention", "eager"),
        None,
        False,
    ),
    "compile": Key("Compile the blocks of LLM and encoder with torch.compile.", bool, False, False),
    "parallel": Key(
        "With several processes: the whole model in each (ddp) or shares of it (fsdp, deepspeed).",
        ("ddp", "fsdp", "deepspeed"),
        "ddp",
        False,
    ),
    "deepspeed_config": Key(
        "With deepspeed: its JSON file, e.g. hparams/deepspeed/zero2.json; what a key here says must not be in it.",
        str,
        None,
        False,
    ),
    "cpu_offload": Key("With fsdp: keep what is not in use in the host's memory.", bool, False, False),
    "nonfinite_patience": Key(
        "Steps with a non-finite loss or gradient skipped in an epoch before stopping.", int, 3, False
    ),
    "valid_metric": Key(
        "Metric that picks the best checkpoint: loss, accuracy, or any of validation as min:<name> or max:<name>.",
        str,
        "loss",
    ),
    "valid_answers": Key(
        "Real answers to a part of the validation set, scored: {metrics: as in evaluation (task -> {type: asr, ...}), "
        "items: 100, every: 1 (epochs), generation: {beams: 1}}; gives metrics such as asr/wer. null: none.",
        dict,
        None,
    ),
    "patience": Key("Validations in a row without a better valid_metric after which training stops.", int, None),
    "wandb": Key("Also show the run on Weights & Biases: {project, ...}, arguments of wandb.init.", dict, None, False),
    "ckpt_interval_minutes": Key("Minutes between checkpoints within an epoch.", float, 15.0, result=False),
}

EVALUATION_KEYS = {
    "seed": Key("Seed of the controls' permutation of clips.", int, 1986),
    "data_folder": DATA_KEYS["data_folder"],
    "model_folder": Key("Finished stage or saved model to evaluate.", str, result=False),
    "output_folder": Key("Where predictions.jsonl, metrics.json, latency.json and report.html go.", str, result=False),
    "manifests": Key("Manifest files (JSON lines) to evaluate on.", list, result=False),
    "question_files": Key(
        "Files with one question a line, for rows without an instruction (see training); null: every row has one.",
        list,
        None,
        result=False,
    ),
    "feature_folder": Key("Feature store; null: the model's encoder hears the audio.", str, None, result=False),
    "tasks": DATA_KEYS["tasks"],
    "metrics": Key("Task -> how it is scored: {type: asr|classification|regression|captioning, ...}.", dict),
    "controls": Key(
        "What the model hears: normal, zeros (nothing), shuffled (another clip).", list, ["normal", "zeros"]
    ),
    "batch_tokens": DATA_KEYS["batch_tokens"],
    "num_workers": DATA_KEYS["num_workers"],
    "generation": Key("Replaces entries of the model's generation settings.", dict, None),
    "title": Key("Heading of report.html.", str, "Evaluation"),
    "notes": Key("Paragraphs below it: what model, what data.", list, []),
    "backend": Key("For latency.py: eager, inductor or aoti; best: the fastest that works here.", str, "best"),
    "latency_clips": Key("Clips whose answers are timed, one at a time.", int, 10),
    "latency_tokens": Key("Tokens of each timed answer.", int, 32),
    "latency_runs": Key("Timed answers.", int, 100),
}

RUN_OPTIONS = {
    "device": ("DEVICE", "Where to run, e.g. cpu or cuda:0 (default: a GPU where there is one)."),
    "debug": ("", "Two batches, two epochs: shows that everything runs."),
}

# Of train.py alone (see `stages`).
STAGES_OPTION = {
    "stages": ("FIRST-LAST", "Several stages one after the other: the file's neighbours whose names end so."),
}
