"""Which parameters train, at which rate, and the table that says so before the first step.

Parameters are named by glob patterns over their full names, e.g. `adapter.projection.*`, `llm.*lora_*`, `encoder.*`.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.keys import SCHEDULES

# AdamW keeps two float32 moments a parameter.
OPTIMISER_BYTES = 8


def select_trainable(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Make exactly the parameters that match a pattern trainable, and freeze the others.

    Returns
    -------
    list of str
        Names of the trainable parameters.

    Raises
    ------
    ConfigError
        A pattern matches nothing, or it matches a parameter that cannot have a gradient (a quantised weight).
    """
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        if not _matching(parameters, pattern):
            raise ConfigError(f"trainable: pattern {pattern!r} matches no parameter{_nearest(pattern, parameters)}")
    for name, parameter in parameters.items():
        train = any(fnmatchcase(name, pattern) for pattern in patterns)
        if train and not parameter.is_floating_point():
            raise ConfigError(f"trainable: {name} is stored as {parameter.dtype} and cannot train; use LoRA on it")
        parameter.requires_grad_(train)
        parameter.grad = None
    return trainable_names(model)


def trainable_names(model: nn.Module) -> list[str]:
    """Names of the trainable parameters, in the model's order."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def parameter_groups(
    model: nn.Module, learning_rates: Mapping[str, float | Mapping], defaults: Mapping[str, object]
) -> list[dict]:
    """Optimiser groups: a parameter takes the rate of the first pattern it matches; vectors have no weight decay.

    Parameters
    ----------
    model : nn.Module
    learning_rates : mapping
        Pattern -> peak learning rate, or `{lr, weight_decay, schedule, warmup_steps}` of which all but `lr` may be left
        out.
    defaults : mapping
        `weight_decay`, `schedule` and `warmup_steps` of the patterns that do not give them.

    Returns
    -------
    list of dict
        `pattern`, `params`, `names`, `lr`, `initial_lr` (the peak, which the schedule scales), `weight_decay`,
        `schedule` and `warmup_steps`.

    Raises
    ------
    ConfigError
        A trainable parameter matches no pattern, a pattern is the first match of none, or its entries are not those
        above.
    """
    rates = {pattern: _rate(pattern, value, defaults) for pattern, value in learning_rates.items()}
    groups: dict[tuple[str, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        pattern = next((pattern for pattern in rates if fnmatchcase(name, pattern)), None)
        if pattern is None:
            raise ConfigError(f"learning_rates: no pattern matches {name}, which is trainable: give it a rate")
        decays, rate = parameter.dim() > 1, rates[pattern]
        group = groups.setdefault(
            (pattern, decays),
            {
                "pattern": pattern,
                "params": [],
                "names": [],
                **rate,
                "initial_lr": rate["lr"],
                "weight_decay": rate["weight_decay"] if decays else 0.0,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    for pattern in rates:
        if not any(used == pattern for used, _ in groups):
            raise ConfigError(
                f"learning_rates: pattern {pattern!r} applies to no trainable parameter"
                f"{_nearest(pattern, trainable_names(model))}; remove it, or add it to trainable"
            )
    return list(groups.values())


def _rate(pattern: str, value: float | Mapping, defaults: Mapping[str, object]) -> dict:
    """Entries of one pattern's groups, checked."""
    given = dict(value) if isinstance(value, Mapping) else {"lr": value}
    unknown = [name for name in given if name not in ("lr", *defaults)]
    if unknown or "lr" not in given:
        wrong = f"unknown entry {unknown[0]!r}" if unknown else "lr is missing"
        raise ConfigError(f"learning_rates, {pattern!r}: {wrong}; it takes lr, {', '.join(defaults)}")
    rate = {**defaults, **given}
    if rate["schedule"] not in SCHEDULES:
        raise ConfigError(
            f"learning_rates, {pattern!r}: schedule is {rate['schedule']!r}; choose one of {', '.join(SCHEDULES)}"
        )
    try:  # YAML 1.1 reads 1e-4 as a string
        return {
            **rate,
            "lr": float(rate["lr"]),
            "weight_decay": float(rate["weight_decay"]),
            "warmup_steps": int(rate["warmup_steps"]),
        }
    except (TypeError, ValueError) as error:
        raise ConfigError(f"learning_rates, {pattern!r}: {error}; write numbers") from error


def parts_table(model: nn.Module, groups: Sequence[Mapping]) -> str:
    """Describe the model before training: part | parameters | trainable | lr | dtype | memory.

    Memory is that of weights, gradients and AdamW's moments; activations come on top.
    """
    rates = {name: group["initial_lr"] for group in groups for name in group["names"]}
    rows: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        rows.setdefault(_part(name), []).append((name, parameter))
    table = [("part", "parameters", "trainable", "lr", "dtype", "memory")]
    for part, members in [*rows.items(), ("total", [pair for pairs in rows.values() for pair in pairs])]:
        training = [parameter for _, parameter in members if parameter.requires_grad]
        size = sum(p.numel() * p.element_size() for _, p in members)
        size += sum(p.numel() * (p.element_size() + OPTIMISER_BYTES) for p in training)
        table.append(
            (
                part,
                f"{sum(p.numel() for _, p in members):,}",
                f"{sum(p.numel() for p in training):,}",
                ", ".join(f"{rate:g}" for rate in sorted({rates[n] for n, p in members if p.requires_grad})) or "-",
                ", ".join(sorted({str(p.dtype).removeprefix("torch.") for _, p in members})),
                f"{size / 2**20:,.1f} MiB",
            )
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def audio_token_rate(adapter: nn.Module, frame_seconds: float, seconds: float = 10.0) -> float:
    """Audio tokens that the LLM reads for each second of a clip of `seconds`, whose frames last `frame_seconds`."""
    return adapter.num_tokens(round(seconds / frame_seconds)) / seconds


def _part(name: str) -> str:
    """Row of the table: the adapter by its blocks, the LLM with its LoRA apart."""
    top, _, rest = name.partition(".")
    if "lora_" in name:
        return f"{top} LoRA"
    return f"{top}.{rest.split('.')[0]}" if top == "adapter" else top


def _matching(names: Mapping[str, object], pattern: str) -> list[str]:
    return [name for name in names if fnmatchcase(name, pattern)]


def _nearest(pattern: str, names: Sequence[str] | Mapping) -> str:
    match = get_close_matches(pattern, list(names), n=1, cutoff=0.3)
    return f"; the nearest name is {match[0]!r}" if match else ""
