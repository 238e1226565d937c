"""Selects the parameters that train, assigns their learning rates, and describes both in a table.

Parameters are selected by glob patterns on their full names, e.g. `adapter.projection.*`, `llm.*lora_*`, `encoder.*`.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from audiolm_lite.config.errors import ConfigError, did_you_mean
from audiolm_lite.config.keys import SCHEDULES

OPTIMIZER_BYTES = 8  # AdamW stores two float32 moments per parameter
LEAST_SIMILARITY = 0.3  # of a suggested name: a pattern differs from the names that it matches, too


def select_trainable(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Make the parameters that match a pattern trainable, and freeze all others.

    A module may have a list `never_trained` of names of its parameters that are fixed, or get no gradient: these are
    frozen too, whatever matches.

    Returns
    -------
    list of str
        Names of the trainable parameters.

    Raises
    ------
    ConfigError
        A pattern matches nothing, or nothing that can train, or a quantised weight, which cannot have a gradient.

    Examples
    --------
    >>> from torch import nn
    >>> model = nn.ModuleDict({"adapter": nn.Linear(2, 2), "llm": nn.Linear(2, 2)})
    >>> select_trainable(model, ["adapter.*"])
    ['adapter.weight', 'adapter.bias']
    """
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        if not _matching(parameters, pattern):
            raise ConfigError(
                f"trainable: pattern {pattern!r} matches no parameter"
                + did_you_mean(pattern, parameters, LEAST_SIMILARITY)
            )
    fixed = {
        f"{where}.{name}".lstrip(".")
        for where, module in model.named_modules()
        for name in getattr(module, "never_trained", ())
    }
    for pattern in patterns:
        if fixed.issuperset(matching := _matching(parameters, pattern)):
            raise ConfigError(
                f"trainable: pattern {pattern!r} matches only parameters that are fixed or get no gradient, such as "
                f"{matching[0]}: remove it"
            )
    for name, parameter in parameters.items():
        train = name not in fixed and any(fnmatchcase(name, pattern) for pattern in patterns)
        if train and not parameter.is_floating_point():
            raise ConfigError(f"trainable: {name} is stored as {parameter.dtype} and cannot train; train a LoRA on it")
        parameter.requires_grad_(train)
        parameter.grad = None
    return trainable_names(model)


def trainable_names(model: nn.Module) -> list[str]:
    """Names of the trainable parameters, in the model's order.

    Examples
    --------
    >>> model = nn.ModuleDict({"adapter": nn.Linear(2, 2), "llm": nn.Linear(2, 2).requires_grad_(False)})
    >>> trainable_names(model)
    ['adapter.weight', 'adapter.bias']
    """
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def parameter_groups(
    model: nn.Module, learning_rates: Mapping[str, float | Mapping], defaults: Mapping[str, object]
) -> list[dict]:
    """Group the trainable parameters for the optimiser, by the first pattern that they match.

    Vectors (biases, norms) are in groups of their own, without weight decay.

    Parameters
    ----------
    model : nn.Module
    learning_rates : mapping
        Pattern -> peak learning rate, or `{lr, weight_decay, schedule, warmup_steps}`, of which only `lr` is required.
    defaults : mapping
        `weight_decay`, `schedule` and `warmup_steps` of the patterns that do not set them.

    Returns
    -------
    list of dict
        `pattern`, `params`, `names`, `lr`, `initial_lr` (the peak learning rate), `weight_decay`, `schedule` and
        `warmup_steps`.

    Raises
    ------
    ConfigError
        A trainable parameter matches no pattern, a pattern is the first match of no parameter, or an entry of a pattern
        is unknown or wrong.

    Examples
    --------
    >>> model = nn.ModuleDict({"adapter": nn.Linear(2, 2)})
    >>> defaults = {"weight_decay": 0.01, "schedule": "cosine", "warmup_steps": 10}
    >>> for group in parameter_groups(model, {"adapter.*": 1e-4}, defaults):
    ...     print(group["names"], group["lr"], group["weight_decay"])
    ['adapter.weight'] 0.0001 0.01
    ['adapter.bias'] 0.0001 0.0
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
                f"learning_rates: {pattern!r} is the first match of no trainable parameter: remove it, or train some"
                + did_you_mean(pattern, trainable_names(model), LEAST_SIMILARITY)
            )
    return list(groups.values())


def _rate(pattern: str, value: float | Mapping, defaults: Mapping[str, object]) -> dict:
    """Complete and check the entries of a pattern."""
    given = dict(value) if isinstance(value, Mapping) else {"lr": value}
    unknown = [name for name in given if name not in ("lr", *defaults)]
    if unknown or "lr" not in given:
        wrong = f"unknown entry {unknown[0]!r}" if unknown else "lr is missing"
        raise ConfigError(f"learning_rates, {pattern!r}: {wrong}; its entries are lr, {', '.join(defaults)}")
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


def parameter_table(model: nn.Module, groups: Sequence[Mapping]) -> str:
    """Describe the parts of a model in a table: part | parameters | trainable | lr | dtype | memory.

    Memory is that of weights, gradients and AdamW's moments, without activations.

    Examples
    --------
    >>> model = nn.ModuleDict({"encoder": nn.Linear(1024, 1024).requires_grad_(False), "llm": nn.Linear(1024, 1024)})
    >>> print(parameter_table(model, [{"names": ["llm.weight", "llm.bias"], "initial_lr": 1e-4}]))
    part     parameters  trainable  lr      dtype    memory
    -------------------------------------------------------
    encoder  1,049,600   0          -       float32  4.0 MiB
    llm      1,049,600   1,049,600  0.0001  float32  16.0 MiB
    total    2,099,200   1,049,600  0.0001  float32  20.0 MiB
    """
    rates = {name: group["initial_lr"] for group in groups for name in group["names"]}
    rows: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        rows.setdefault(_part(name), []).append((name, parameter))
    table = [("part", "parameters", "trainable", "lr", "dtype", "memory")]
    for part, members in [*rows.items(), ("total", [pair for pairs in rows.values() for pair in pairs])]:
        training = [parameter for _, parameter in members if parameter.requires_grad]
        size = sum(p.numel() * p.element_size() for _, p in members)
        size += sum(p.numel() * (p.element_size() + OPTIMIZER_BYTES) for p in training)
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
    """Audio tokens per second of a clip of `seconds`, whose frames have a duration of `frame_seconds`.

    Examples
    --------
    >>> from audiolm_lite.adapters.build import build_adapter
    >>> block = {"type": "linear", "stride": 5, "hidden_dim": 8}
    >>> adapter = build_adapter(block, feature_dim=4, num_layers=1, llm_dim=8)
    >>> audio_token_rate(adapter, frame_seconds=0.02)
    10.0
    """
    return adapter.num_tokens(round(seconds / frame_seconds)) / seconds


def _part(name: str) -> str:
    """Name of a parameter's part: the adapter's blocks and the LoRA of the LLM are parts of their own."""
    top, _, rest = name.partition(".")
    if "lora_" in name:
        return f"{top} LoRA"
    return f"{top}.{rest.split('.')[0]}" if top == "adapter" else top


def _matching(names: Mapping[str, object], pattern: str) -> list[str]:
    return [name for name in names if fnmatchcase(name, pattern)]
