"""Word and character error rates with a named text normaliser."""

from collections.abc import Callable, Sequence
from typing import Any

from audiolm_lite.evaluation.metrics.family import Column, MetricFamily, check_lengths
from audiolm_lite.evaluation.metrics.intervals import ratio_interval

NORMALISERS = ("whisper_english", "basic", "none")


def make_normaliser(name: str) -> Callable[[str], str]:
    """Return the text normaliser of that name.

    Parameters
    ----------
    name : str
        "whisper_english": Whisper's English rules (spelling, contractions, numbers; Radford et al. 2022, appendix C);
        "basic": Whisper's rules for any language (lower case, no punctuation or brackets); "none": the unchanged text.
        Scores under different normalisers cannot be compared.

    Raises
    ------
    ValueError
        Unknown name.

    Examples
    --------
    >>> make_normaliser("basic")("Hello, World!").strip()
    'hello world'
    """
    if name == "none":
        return str
    if name not in NORMALISERS:
        raise ValueError(f'normaliser "{name}" is unknown; choose one of {", ".join(NORMALISERS)}')
    from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

    return EnglishTextNormalizer() if name == "whisper_english" else BasicTextNormalizer()


def score_asr(targets: Sequence[str], answers: Sequence[str], normaliser: str = "whisper_english") -> dict[str, Any]:
    """Score transcripts.

    Parameters
    ----------
    targets : sequence of str
        Reference transcript of each utterance. An empty one can only add insertions.
    answers : sequence of str
        The model's transcripts. An empty one counts as deletions.
    normaliser : str
        Applied to both, see `make_normaliser`.

    Returns
    -------
    dict
        `wer` and `cer` as fractions (0.05 is 5 %; both can exceed 1), word counts `substitutions`, `insertions`,
        `deletions`, `words` (in the references), `utterances`, `normaliser`, `interval` {"wer": [low, high]}. Spaces
        count as characters in `cer`, as in jiwer.

    Raises
    ------
    ValueError
        Differing numbers of targets and answers, or no word in any target.

    Examples
    --------
    >>> scores = score_asr(["a b c d", "e f"], ["a x c", "e f g"], normaliser="none")
    >>> scores["wer"], scores["substitutions"], scores["deletions"], scores["insertions"]
    (0.5, 1, 1, 1)
    """
    import jiwer

    check_lengths("score_asr", targets, answers)
    normalise = make_normaliser(normaliser)
    references = [normalise(text) for text in targets]
    hypotheses = [normalise(text) for text in answers]
    if not any(text.split() for text in references):
        raise ValueError(f'score_asr: no target contains a word after the normaliser "{normaliser}"')
    words = jiwer.process_words(references, hypotheses)
    errors, lengths = [], []
    for reference, alignment in zip(words.references, words.alignments):
        spans = (
            (c.ref_end_idx - c.ref_start_idx, c.hyp_end_idx - c.hyp_start_idx) for c in alignment if c.type != "equal"
        )
        errors.append(sum(max(span) for span in spans))
        lengths.append(len(reference))
    return {
        "wer": words.wer,
        "cer": jiwer.process_characters(references, hypotheses).cer,
        "substitutions": words.substitutions,
        "insertions": words.insertions,
        "deletions": words.deletions,
        "words": sum(lengths),
        "utterances": len(references),
        "normaliser": normaliser,
        "interval": {"wer": ratio_interval(errors, lengths)},
    }


def score_rows(rows: Sequence[dict], answers: Sequence[str], normaliser: str = "whisper_english") -> dict[str, Any]:
    """Score answers to rows whose field `target` is the transcript.

    Examples
    --------
    >>> scores = score_rows([{"target": "Four cats."}, {"target": "a dog"}], ["4 cats", "the dog"])
    >>> scores["wer"], scores["substitutions"]
    (0.25, 1)
    """
    return score_asr([row["target"] for row in rows], answers, normaliser)


FAMILY = MetricFamily(
    score_rows,
    columns=(Column("wer", "WER", True, "↓"), Column("cer", "CER", True, "↓")),
    choices={"normaliser": NORMALISERS},
)
