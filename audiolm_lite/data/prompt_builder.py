"""From a manifest row and the lengths of its clips to token ids, and the number of its text tokens."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from audiolm_lite.data.lengths import text_tokens
from audiolm_lite.data.selected_rows import SelectedRows
from audiolm_lite.features.keys import clips_of
from audiolm_lite.language.prompt import PromptError, PromptTemplate

_COMPARED_ROWS = 500  # rows of each manifest whose questions are compared


@dataclass(frozen=True)
class PromptBuilder:
    """Turn rows into prompts.

    Parameters
    ----------
    template : PromptTemplate
        The prompt.
    tokenizer : PreTrainedTokenizerBase
        The LLM's tokenizer.
    num_tokens : callable
        Audio tokens from encoder frames, as the adapter's `num_tokens`.
    with_answer : bool
        False: prompts end before the answer, to generate from.

    Raises
    ------
    PromptError
        The template has special tokens of another LLM.
    """

    template: PromptTemplate
    tokenizer: PreTrainedTokenizerBase
    num_tokens: Callable[[int], int]
    with_answer: bool = True

    def __post_init__(self) -> None:
        self.template.check_special_tokens(self.tokenizer)

    def encode(
        self, row: Mapping[str, Any], audio_tokens: Sequence[int], cut: tuple[str, int] = ("", 0)
    ) -> tuple[list[int], list[int]]:
        """Return token ids and labels of a row whose clips take this many tokens each; see `PromptTemplate.encode`."""
        return self.template.encode(row, self.tokenizer, audio_tokens, self.with_answer, cut)

    def require_field(self, name: str) -> None:
        """Raise PromptError if rows that are too long cannot be shortened in a field of this name."""
        if name not in (fields := self.template.fields):
            raise PromptError(
                f'dataset: shorten is "{name}", and the prompt has no field "{name}" to cut; it can be '
                f"{', '.join(fields)}, audio or drop."
            )

    def without_audio(self, row: Mapping[str, Any], cut: tuple[str, int] = ("", 0)) -> list[int]:
        """Return the token ids of a row whose clips take no token."""
        return self.encode(row, [0] * len(clips_of(row)), cut)[0]

    def text_tokens(self, rows: SelectedRows, blank: str | None = None) -> np.ndarray:
        """Count the text tokens [N] int32 of each row, with the field `blank` empty.

        A row that draws its question counts with the longest one.

        Raises
        ------
        PromptError
            A row lacks a field of the template, or rows ask different questions and the template has no
            ``{instruction}``.
        """
        self._require_answerable(rows)

        def tokens(text: str) -> int:
            return len(self.tokenizer.encode(text, add_special_tokens=False))

        counts = []
        for manifest, (table, numbers) in enumerate(rows.by_table()):
            question = None if rows.questions is None else max(rows.questions.pools[manifest], key=tokens)

            def count(row: dict[str, Any], question: str | None = question) -> int:
                if row["instruction"] is None:
                    row["instruction"] = question
                if blank is not None:
                    row[blank] = ""
                return len(self.without_audio(row))

            settings = {"template": self.template.template, "with_answer": self.with_answer, "question": question}
            settings |= {} if blank is None else {"blank": blank}
            counts.append(text_tokens(table, numbers, count, self.tokenizer, settings))
        return np.concatenate(counts)

    def _require_answerable(self, rows: SelectedRows) -> None:
        """Refuse rows with different questions, of which the template shows none to the model.

        A part of the rows is compared, each with the first. All questions for a transcript count as one.
        """
        if self.template.asks:
            return
        first: dict[str, Any] | None = None
        for table, numbers in rows.by_table():
            for number in numbers[:: len(numbers) // _COMPARED_ROWS + 1].tolist():
                row = table[number]
                if row["instruction"] is None:  # drawn at random, so that its wording does not matter
                    continue
                first = first or row
                transcripts = all(each["task"].startswith("asr") for each in (first, row))
                if row["instruction"] != first["instruction"] and not transcripts:
                    asked = (
                        f'"{each["instruction"]}" (task {each["task"]}, row "{each["id"]}")' for each in (first, row)
                    )
                    raise PromptError(
                        f"template {self.template.template!r} has no {{instruction}}, and the rows ask different "
                        f"questions: {' and '.join(asked)}. The model cannot know which one to answer: add "
                        "{instruction} to the template, or select the rows of one question with tasks."
                    )
