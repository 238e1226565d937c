"""Word and character error rates with a named text normaliser, by the language of each utterance."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from audiolm_lite.evaluation.metrics.family import Column, MetricFamily, check_lengths
from audiolm_lite.evaluation.metrics.intervals import rate_interval
from audiolm_lite.evaluation.metrics.normalisers import (
    NORMALISERS,
    base_language,
    has_word_spaces,
    make_normaliser,
    resolve_normaliser,
)
from audiolm_lite.evaluation.metrics.word_errors import Errors, count_errors, count_errors_joining


def score_asr(
    targets: Sequence[str],
    answers: Sequence[str],
    normaliser: str = "auto",
    languages: str | Sequence[str] = "en",
) -> dict[str, Any]:
    """Score transcripts.

    Parameters
    ----------
    targets : sequence of str
        Reference transcript of each utterance. An empty one can only add insertions.
    answers : sequence of str
        The model's transcripts. An empty one counts as deletions.
    normaliser : str
        Applied to both by the language of the utterance, see `make_normaliser`. With "open_asr", two words equal the
        compound that they form, and both sets of rules of the leaderboard leave out utterances whose normalised
        reference is empty.
    languages : str or sequence of str
        Code of the language, of all utterances or of each.

    Returns
    -------
    dict
        `wer` and `cer` as fractions (0.05 is 5 %; both can exceed 1), word counts `substitutions`, `insertions`,
        `deletions`, `words` (in the references), `characters`, `utterances`, `excluded` (left out by the rules),
        `normaliser` (after the choice by language), `interval` {"wer": [low, high], "cer": ...}, `per_item` [{wer,
        cer}] and, of several languages, `per_language` {code: the same scores}.

        A rate that is undefined is {"missing": reason, "command": remedy}: that of references without a word, and the
        WER of scripts that do not separate words. Spaces count as characters in `cer`, as in jiwer, except in these
        scripts, where they are removed. If languages with and without spaces are mixed, only `per_language` has WERs.

    Raises
    ------
    ValueError
        Differing numbers of targets, answers and languages, or an unknown normaliser.

    Examples
    --------
    >>> scores = score_asr(["a b c d", "e f"], ["a x c", "e f g"], normaliser="none")
    >>> scores["wer"], scores["substitutions"], scores["deletions"], scores["insertions"]
    (0.5, 1, 1, 1)
    >>> scores = score_asr(["สวัสดี"], ["สวัสดิ"], languages="th")
    >>> scores["wer"]["missing"], round(scores["cer"], 3)
    ('th is written without spaces between words.', 0.167)
    """
    check_lengths("score_asr", targets, answers)
    codes = [languages] * len(targets) if isinstance(languages, str) else list(languages)
    if len(codes) != len(targets):
        raise ValueError(f"score_asr: {len(targets)} targets and {len(codes)} languages; give one language per target")
    make_normaliser(normaliser)  # an unknown name is an error before anything is scored
    codes = [base_language(code) for code in codes]
    rules = [resolve_normaliser(normaliser, code, target) for code, target in zip(codes, targets)]
    pairs = [
        tuple(make_normaliser(rule, code)(text) for text in pair)
        for rule, code, pair in zip(rules, codes, zip(targets, answers))
    ]
    scored = [i for i, (reference, _) in enumerate(pairs) if not normaliser.startswith("open_asr") or reference.strip()]
    spaced = {
        code: has_word_spaces([pairs[i][0] for i in range(len(pairs)) if codes[i] == code], code) for code in set(codes)
    }
    words = _word_errors([pairs[i] for i in scored], joining=normaliser == "open_asr")
    without_spaces = [tuple(text if spaced[codes[i]] else "".join(text.split()) for text in pairs[i]) for i in scored]
    characters = count_errors(*_columns(without_spaces), unit="character")
    by_item = {i: (codes[i], rules[i], word, character) for i, word, character in zip(scored, words, characters)}
    result = _rates(list(by_item.values()), spaced)
    result["excluded"] = len(pairs) - len(scored)
    result["per_item"] = [_item(by_item.get(i), spaced[codes[i]]) for i in range(len(pairs))]
    if len(spaced) > 1:
        result["per_language"] = {
            code: _rates([entry for entry in by_item.values() if entry[0] == code], {code: spaced[code]})
            for code in sorted(spaced)
        }
    return result


def _columns(pairs: Sequence[tuple[str, ...]]) -> tuple[list[str], list[str]]:
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _word_errors(pairs: Sequence[tuple[str, ...]], joining: bool) -> list[Errors]:
    counts = count_errors(*_columns(pairs))
    if joining:
        return [count_errors_joining(*pair) if errors.total else errors for pair, errors in zip(pairs, counts)]
    return counts


def _rates(entries: Sequence[tuple[str, str, Errors, Errors]], spaced: dict[str, bool]) -> dict[str, Any]:
    """Scores of utterances (language, normaliser, errors of words, errors of characters)."""
    word_errors = [word for code, _, word, _ in entries if spaced[code]]
    unspaced = sorted(code for code in spaced if not spaced[code])
    why = f"{', '.join(unspaced)} is written without spaces between words." if unspaced else None
    names = Counter(rule for _, rule, _, _ in entries)
    interval: dict[str, list[float]] = {}
    return {
        "wer": {"missing": why, "command": "use the CER."} if why else _rate("wer", word_errors, interval),
        "cer": _rate("cer", [character for *_, character in entries], interval),
        "substitutions": sum(errors.substitutions for errors in word_errors),
        "insertions": sum(errors.insertions for errors in word_errors),
        "deletions": sum(errors.deletions for errors in word_errors),
        "words": sum(errors.length for errors in word_errors),
        "characters": sum(errors.length for *_, errors in entries),
        "utterances": len(entries),
        "normaliser": ", ".join(sorted(names)),
        "interval": interval,
    }


def _rate(name: str, errors: Sequence[Errors], interval: dict[str, list[float]]) -> Any:
    """Errors per unit of the references, whose interval is added to `interval`; missing if there are no units."""
    totals, lengths = [entry.total for entry in errors], [entry.length for entry in errors]
    if not sum(lengths):
        return {"missing": "no reference has any text after the normaliser.", "command": "count the insertions."}
    interval[name] = rate_interval(totals, lengths)
    return sum(totals) / sum(lengths)


def _item(entry: tuple[str, str, Errors, Errors] | None, spaced: bool) -> dict[str, Any]:
    if entry is None:
        return {"wer": None, "cer": None}
    rates = [errors.total / errors.length if errors.length else None for errors in entry[2:]]
    errors = {"word_errors": entry[2].total} if spaced else {}
    return {"wer": rates[0] if spaced else None, "cer": rates[1], **errors, "character_errors": entry[3].total}


def score_rows(rows: Sequence[dict], answers: Sequence[str], normaliser: str = "auto") -> dict[str, Any]:
    """Score answers to rows whose field `target` is the transcript, in the language of their field `language`.

    Examples
    --------
    >>> scores = score_rows([{"target": "Four cats."}, {"target": "a dog"}], ["4 cats", "the dog"])
    >>> scores["wer"], scores["substitutions"]
    (0.25, 1)
    """
    languages = [row.get("language") or "en" for row in rows]
    return score_asr([row["target"] for row in rows], answers, normaliser, languages)


FAMILY = MetricFamily(
    score_rows,
    columns=(Column("wer", "WER", True, "↓"), Column("cer", "CER", True, "↓")),
    choices={"normaliser": NORMALISERS},
)
