"""Transcribe speech in audio files: audiolm-lite transcribe FILE ...

Prints the transcript, or with several files one line per file: its path, a tab, the transcript. A long recording is
divided where it is quiet, and its transcripts are joined. A file that cannot be read is reported and skipped; the exit
status is then 3.
"""

from collections.abc import Sequence

from audiolm_lite.answering.command import make_parser, print_answers


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status.

    Raises
    ------
    UserError
        The model cannot be loaded.
    """
    parser = make_parser("transcribe", __doc__, transcript=True)
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio file of any format and length")
    options = parser.parse_args(argv)
    return print_answers(options, lambda model: model.bundle.instructions["transcribe"], joined=True)
