"""Ask a question about audio files: audiolm-lite ask QUESTION FILE ...

Prints the answer, or with several files one line per file: its path, a tab, the answer. A long recording is divided
where it is quiet, and each part has its own line, with its times. A file that cannot be read is reported and skipped;
the exit status is then 3.
"""

from collections.abc import Sequence

from audiolm_lite.answering.command import make_parser, print_answers


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status.

    Raises
    ------
    UserError
        The model cannot be loaded, or its prompt has no question.
    """
    parser = make_parser("ask", __doc__, transcript=False)
    parser.add_argument("question", metavar="QUESTION", help='for example "Is anyone speaking?"')
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio file of any format and length")
    options = parser.parse_args(argv)
    return print_answers(options, lambda model: options.question, joined=False)
