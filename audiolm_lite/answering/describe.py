"""Describe the sounds in audio files: audiolm-lite describe FILE ...

Prints the description, or with several files one line per file: its path, a tab, the description. A long recording is
divided where it is quiet, and each part has its own line, with its times. A file that cannot be read is reported and
skipped; the exit status is then 3.
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
    parser = make_parser("describe", __doc__, transcript=False)
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio file of any format and length")
    options = parser.parse_args(argv)
    return print_answers(options, lambda model: model.bundle.instructions["caption"], joined=False)
