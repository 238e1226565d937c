"""Word and character error rates with a named text normaliser."""

from collections.abc import Callable, Sequence

from audiolm_lite.evaluation.metrics.intervals import ratio_interval

NORMALISERS = ("whisper_english", "basic", "none")


def make_normaliser(name: str) -> Callable[[str], str]:
    """Return the text normaliser of that name.

    Parameters
    ----------
    name : str
        "whisper_english": Whisper's English rules (spelling, contractions, numbers; Radford et al. 2022, appendix C);
        "basic": Whisper's rules for any language (lower case, no punctuation or brackets); "none": the text as it is.
        Figures under different normalisers cannot be compared.

    Raises
    ------
    ValueError
        Unknown name.
    """
    if name == "none":
        return str
    if name not in NORMALISERS:
        raise ValueError(f'normaliser "{name}" is unknown: choose one of {", ".join(NORMALISERS)}')
    from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

    return EnglishTextNormalizer() if name == "whisper_english" else BasicTextNormalizer()


def score_asr(references: Sequence[str], hypotheses: Sequence[str], normaliser: str = "whisper_english") -> dict:
    """Score transcripts.

    Parameters
    ----------
    references, hypotheses : sequence of str
        One entry an utterance, in the same order. An empty hypothesis counts as deletions, an empty reference can only
        earn insertions.
    normaliser : str
        Applied to both sides, see `make_normaliser`.

    Returns
    -------
    dict
        `wer` and `cer` as fractions (0.05 is 5 %; both can exceed 1), word counts `substitutions`, `insertions`,
        `deletions`, `words` (in the references), `utterances`, `normaliser`, `interval` {"wer": [low, high]}. Spaces
        count as characters in `cer`, as in jiwer.

    Raises
    ------
    ValueError
        Differing numbers of references and hypotheses, or no word in any reference.
    """
    import jiwer

    if len(references) != len(hypotheses):
        raise ValueError(f"score_asr: {len(references)} references but {len(hypotheses)} hypotheses")
    normalise = make_normaliser(normaliser)
    references = [normalise(text) for text in references]
    hypotheses = [normalise(text) for text in hypotheses]
    if not any(text.split() for text in references):
        raise ValueError(f'score_asr: no reference holds a word after the normaliser "{normaliser}"')
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
