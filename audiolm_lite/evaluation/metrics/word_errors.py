"""Edit operations between a reference and an answer, on words or characters."""

from collections.abc import Sequence
from typing import NamedTuple


class Errors(NamedTuple):
    """Edit operations of one pair, and the length of its reference.

    Attributes
    ----------
    substitutions, insertions, deletions : int
        The fewest operations that turn the reference into the answer.
    length : int
        Words or characters of the reference.
    """

    substitutions: int
    insertions: int
    deletions: int
    length: int

    @property
    def total(self) -> int:
        """Number of operations."""
        return self.substitutions + self.insertions + self.deletions


def count_errors(references: Sequence[str], answers: Sequence[str], unit: str = "word") -> list[Errors]:
    """Count the edit operations of each pair with jiwer.

    Parameters
    ----------
    references, answers : sequence of str
        Normalised texts; empty ones are allowed.
    unit : str
        "word", or "character", where spaces count as characters.

    Examples
    --------
    >>> count_errors(["a b c d"], ["a x c"])
    [Errors(substitutions=1, insertions=0, deletions=1, length=4)]
    """
    import jiwer

    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    result = process(list(references), list(answers))
    counts = []
    for reference, alignment in zip(result.references, result.alignments):
        found = {"substitute": 0, "insert": 0, "delete": 0, "equal": 0}
        for c in alignment:
            found[c.type] += max(c.ref_end_idx - c.ref_start_idx, c.hyp_end_idx - c.hyp_start_idx)
        counts.append(Errors(found["substitute"], found["insert"], found["delete"], len(reference)))
    return counts


def count_errors_joining(reference: str, answer: str) -> Errors:
    """Count the edit operations on words, where two words equal a word that they form ("white paper", "whitepaper").

    Examples
    --------
    >>> count_errors_joining("the white paper is out", "the whitepaper was out").total
    1
    """
    first, second = reference.split(), answer.split()
    # best[i][j]: (operations, substitutions, insertions, deletions) of the first i and j words
    best = [[(0, 0, 0, 0)] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i in range(len(first) + 1):
        for j in range(len(second) + 1):
            options = [(0, 0, 0, 0)] if i == j == 0 else []
            if i and j:
                total, sub, ins, dels = best[i - 1][j - 1]
                wrong = int(first[i - 1] != second[j - 1])
                options.append((total + wrong, sub + wrong, ins, dels))
            if j:
                total, sub, ins, dels = best[i][j - 1]
                options.append((total + 1, sub, ins + 1, dels))
            if i:
                total, sub, ins, dels = best[i - 1][j]
                options.append((total + 1, sub, ins, dels + 1))
            if i > 1 and j and first[i - 2] + first[i - 1] == second[j - 1]:
                options.append(best[i - 2][j - 1])
            if j > 1 and i and second[j - 2] + second[j - 1] == first[i - 1]:
                options.append(best[i - 1][j - 2])
            best[i][j] = min(options, key=lambda option: option[0])
    _, substitutions, insertions, deletions = best[-1][-1]
    return Errors(substitutions, insertions, deletions, len(first))
