"""Options of generation, as YAML files, model folders and the arguments of `AudioLM` have them.

====================  =================================================================================================
max_new_tokens        limit of an answer's tokens
tokens_per_second     further limit: so many tokens per second of the item's own audio, plus `token_allowance`; null:
token_allowance       none. The defaults, 25 and 64, are above what speech needs in any language or tokenizer.
silence_level         clips whose loudest 20 ms are below this level, in dB relative to full scale, are not given to the
                      model: a transcript of them is empty, the answer to another question is `silence_answer`. The
                      default, -60, is below speech; null: the model answers.
stop_loops            end answers that repeat themselves (`decoding.repetition`), and cut the repeats; on by default
repetition_penalty    above 1: tokens that the answer already has become less likely
no_repeat_ngram_size  n: no n-gram occurs twice in an answer; 0: off
ctc_weight            above 0: transcripts (rows with task "asr", one clip and no transcript in the prompt) are decoded
                      jointly with the CTC of the adapter, which has this weight, below 1 (`decoding.joint_ctc`); 0: off
beams                 above 1: beam search, with `length_penalty`; alias num_beams
temperature           above 0: sampling (`decoding.Sampling`). Without it and `do_sample`, decoding is greedy, or a beam
                      search, whatever else is set.
do_sample             true: sampling, by default with temperature 1; false: none. A temperature of 0 stays greedy.
top_k, top_p, seed    of sampling; they have no effect without it.
====================  =================================================================================================

An entry that is null counts as not given, except for `tokens_per_second` and `silence_level`.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from audiolm_lite.config.errors import UserError, did_you_mean
from audiolm_lite.config.keys import NULLABLE
from audiolm_lite.decoding.generate import Sampling

DRAWING = ("temperature", "top_k", "top_p", "seed")
ALIASES = {"num_beams": "beams"}


class GenerationError(UserError, ValueError):
    """An option of generation that does not exist, has no meaning, or excludes another one."""


@dataclass(frozen=True)
class Options:
    """Options of generation with their defaults; the fields have the names of the module's table.

    Attributes
    ----------
    drawing : dict
        Those of temperature, top_k, top_p and seed that are given, if answers are sampled; otherwise empty.
    """

    max_new_tokens: int = 200
    tokens_per_second: float | None = 25.0
    token_allowance: int = 64
    silence_level: float | None = -60.0
    silence_answer: str = "nothing is said"
    stop_loops: bool = True
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    ctc_weight: float = 0.0
    beams: int = 1
    length_penalty: float = 1.0
    drawing: dict[str, Any] = field(default_factory=dict)

    def limit(self, seconds: float) -> int:
        """Return the limit of tokens of an answer about so many seconds of audio; 0: an unknown duration.

        Examples
        --------
        >>> options = Options(max_new_tokens=200, tokens_per_second=10, token_allowance=20)
        >>> options.limit(2.5), options.limit(60.0), options.limit(0)
        (45, 200, 200)
        """
        if self.tokens_per_second is None or not seconds:
            return self.max_new_tokens
        return min(self.max_new_tokens, max(1, self.token_allowance + math.ceil(self.tokens_per_second * seconds)))

    def is_silent(self, level: float | None) -> bool:
        """Whether audio of this level (dB relative to full scale; None: unknown) is not given to the model.

        Examples
        --------
        >>> Options().is_silent(-75.0), Options().is_silent(-40.0), Options(silence_level=None).is_silent(-75.0)
        (True, False, False)
        """
        return level is not None and self.silence_level is not None and level < self.silence_level

    def search(self, ids: Sequence[str]) -> dict[str, Any]:
        """Return the further arguments of `generate` or `beam_search` for the items with these ids.

        Examples
        --------
        >>> Options().search(["clip"])
        {'stop_loops': True, 'sampling': None}
        >>> Options(repetition_penalty=1.2).search(["clip"])["sampling"].temperature
        0
        >>> Options(beams=4).search(["clip"])["beams"]
        4
        """
        guards: dict[str, Any] = {
            "repetition_penalty": self.repetition_penalty,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
        }
        if self.beams > 1:
            search = {"beams": self.beams, "length_penalty": self.length_penalty}
            return {"stop_loops": self.stop_loops, **guards, **search}
        if self.drawing:
            drawing = dict(self.drawing)
            seed = drawing.pop("seed", 0)
            seeds = [seed + zlib.crc32(name.encode()) for name in ids]
            return {"stop_loops": self.stop_loops, "sampling": Sampling(**drawing, **guards, seed=seeds)}
        greedy = guards == {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
        return {"stop_loops": self.stop_loops, "sampling": None if greedy else Sampling(temperature=0, **guards)}


def read_options(generation: Mapping[str, Any]) -> Options:
    """Check options of generation.

    Parameters
    ----------
    generation : mapping
        Entries of the module's table.

    Raises
    ------
    GenerationError
        An unknown option, a value that has no meaning, or options that exclude each other.

    Examples
    --------
    >>> read_options({"num_beams": 4, "max_new_tokens": 9}).beams
    4
    >>> read_options({"temperature": 0.7}).drawing, read_options({"top_p": 0.9, "seed": 3}).drawing
    ({'temperature': 0.7}, {})
    >>> read_options({"max_tokens": 9})
    Traceback (most recent call last):
    audiolm_lite.decoding.options.GenerationError: generation: unknown option 'max_tokens'...
    """
    given = {name: value for name, value in _own_names(generation).items() if value is not None or name in NULLABLE}
    do_sample = given.pop("do_sample", None)
    drawing = {name: given.pop(name) for name in DRAWING if name in given}
    known = [entry.name for entry in fields(Options) if entry.name != "drawing"]
    if unknown := [name for name in given if name not in known]:
        names = ", ".join([*known, *DRAWING, "num_beams", "do_sample"])
        raise GenerationError(
            f"generation: unknown option {unknown[0]!r}{did_you_mean(unknown[0], known)}; known are {names}"
        )
    drawing = _sampling(drawing, do_sample)
    options = Options(**given, drawing=drawing)
    whole = {"max_new_tokens": 1, "token_allowance": 0, "no_repeat_ngram_size": 0, "beams": 1}
    for name, least in whole.items():
        value = getattr(options, name)
        if type(value) is not int or value < least:
            raise GenerationError(f"generation: {name} is {value!r}; write a whole number of at least {least}")
    rate = options.tokens_per_second
    if rate is not None and not (isinstance(rate, (int, float)) and rate >= 0):
        raise GenerationError(f"generation: tokens_per_second is {rate!r}; write a number of at least 0, or null")
    quiet = options.silence_level
    if quiet is not None and not (type(quiet) in (int, float) and quiet <= 0):
        raise GenerationError(f"generation: silence_level is {quiet!r}; write decibels of at most 0, or null")
    if not isinstance(options.silence_answer, str):
        raise GenerationError(f"generation: silence_answer is {options.silence_answer!r}; write a text")
    if type(options.stop_loops) is not bool:
        raise GenerationError(f"generation: stop_loops is {options.stop_loops!r}; write true or false")
    if not isinstance(options.repetition_penalty, (int, float)) or options.repetition_penalty <= 0:
        raise GenerationError(
            f"generation: repetition_penalty is {options.repetition_penalty!r}; write a number above 0 (1: none)"
        )
    weight = options.ctc_weight
    if type(weight) not in (int, float) or not 0 <= weight < 1:
        raise GenerationError(
            f"generation: ctc_weight is {weight!r}; write a number of at least 0 (0: without CTC) and below 1"
        )
    if weight and (others := not_greedy(options)):
        raise GenerationError(
            f"generation: ctc_weight {weight} and {', '.join(others)} cannot be combined; remove one of them, or set "
            "ctc_weight to 0"
        )
    if options.beams > 1 and drawing:
        raise GenerationError(
            f"generation: beams {options.beams} and {', '.join(drawing)} cannot be combined; remove one of them"
        )
    return options


def replace_options(generation: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Replace entries of options of generation by others, under whichever of its names an option is given.

    A temperature without `do_sample` decides alone, so it also replaces a `do_sample`. Another search or penalty also
    replaces a `ctc_weight`, which it excludes.

    Raises
    ------
    GenerationError
        `given` has options that cannot be used.

    Examples
    --------
    >>> replace_options({"num_beams": 4, "do_sample": False}, {"beams": 1, "temperature": 0.7})
    {'beams': 1, 'temperature': 0.7}
    """
    before, after = _own_names(generation), _own_names(given)
    if after.get("temperature") is not None and after.get("do_sample") is None:
        before.pop("do_sample", None)
    if "ctc_weight" not in after and not_greedy(read_options(given)):
        before.pop("ctc_weight", None)
    return before | after


def _own_names(generation: Mapping[str, Any]) -> dict[str, Any]:
    return {ALIASES.get(name, name): value for name, value in generation.items()}


def _sampling(drawing: dict[str, Any], do_sample: Any) -> dict[str, Any]:
    """Check the options of sampling, and return them if answers are sampled."""
    if do_sample not in (None, True, False):
        raise GenerationError(f"generation: do_sample is {do_sample!r}; write true or false")
    try:
        Sampling(**drawing)
    except (TypeError, ValueError) as error:
        raise GenerationError(f"generation: {error}") from error
    if type(drawing.get("seed", 0)) is not int:
        raise GenerationError(f"generation: seed is {drawing['seed']!r}; write a whole number")
    temperature = drawing.get("temperature", 1.0 if do_sample else 0)
    return {**drawing, "temperature": temperature} if do_sample is not False and temperature > 0 else {}


def not_greedy(options: Options) -> list[str]:
    """Return the names of the options by which decoding is not plainly greedy.

    Examples
    --------
    >>> not_greedy(Options(beams=4, drawing={"temperature": 0.7}))
    ['beams', 'temperature']
    """
    neutral = {"beams": 1, "repetition_penalty": 1, "no_repeat_ngram_size": 0}
    return [*(name for name, value in neutral.items() if getattr(options, name) != value), *options.drawing]
