"""Transcribe, describe and ask with a trained model: python 01_transcribe.py MODEL AUDIO... [--question TEXT]

MODEL is the output folder of a stage, such as ../recipes/MiniASQA/ltu_as/results/stage_3, or a name on the Hugging Face
hub. AUDIO are files that libsndfile reads: WAV, FLAC, MP3, Ogg.
"""

import argparse

from audiolm_lite import AudioLM


def main(argv: list[str] | None = None) -> list[str]:
    """Print one line per file, and return the answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("audio", nargs="+")
    parser.add_argument("--question", help="ask this in place of a transcript")
    options = parser.parse_args(argv)

    model = AudioLM.from_pretrained(options.model)
    if options.question:
        answers = model.ask(options.audio, options.question)
    else:
        answers = model.transcribe(options.audio)
    for file, answer in zip(options.audio, answers, strict=True):
        print(f"{file}: {answer}")
    return list(answers)


if __name__ == "__main__":
    main()
