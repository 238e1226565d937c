"""Text normalisation of transcripts."""

import re

# Sphinx transcripts: sentence marks, noises such as ++BREATH++ or [noise], and "THE(2)" for a second pronunciation.
_SPHINX_MARKS = re.compile(r"</?s>|</?sil>|\+\+\w+\+\+|\[\w+\]|(?<=\w)\(\d+\)")


def plain_transcript(text: str) -> str:
    """Lower-case an all-capitals transcript, drop Sphinx marks, and leave single spaces.

    Capitals carry nothing in corpora that are written in them throughout, and language models know lower case best.
    """
    return " ".join(_SPHINX_MARKS.sub(" ", text).lower().split())
