"""Read sentences aloud with Piper: python synthesise.py sentences.tsv voice.onnx read_text

Needs `pip install piper-tts` (GPL-3; a program of its own and no dependency of this library). Each line of the table
is a book and a sentence, separated by a tab. Sentence n becomes clips/<n>.ogg; files that exist are kept, so an
interrupted run continues. At the end, speech.tsv lists all clips for `read_text_folder` of prepare.py.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from audiolm_lite.audio.reading import SAMPLE_RATE
from audiolm_lite.config.errors import UserError, run_command
from audiolm_lite.distributed.partition import parse_partition
from audiolm_lite.storage.atomic import atomic_path, write_text
from data_prep.clips import read_lines


def main(argv: list[str]) -> None:
    """Synthesise the sentences of a table, or one of several parts of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", type=Path, help="lines with book and sentence, separated by a tab")
    parser.add_argument("voice", type=Path, help="Piper's voice, an .onnx file with an .onnx.json next to it")
    parser.add_argument("folder", type=Path, help="receives clips/ and speech.tsv")
    parser.add_argument("--seed", type=int, default=1986, help="of speed and expression, which vary between sentences")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="only every N-th sentence; one process per part")
    options = parser.parse_args(argv)
    part = parse_partition(options.part)
    rows = [line.split("\t") for _, line in read_lines(options.sentences)]
    if bad := next((number for number, row in enumerate(rows, start=1) if len(row) != 2), None):
        raise UserError(f"{options.sentences}, row {bad}: write a book and a sentence, separated by one tab")
    files = [Path("clips", f"{number:05d}.ogg") for number in range(len(rows))]
    missing = [
        number
        for number in range(part.rank, len(rows), part.world_size)
        if not (options.folder / files[number]).exists()
    ]
    voice = load_voice(options.voice) if missing else None
    for number in tqdm(missing, unit=" sentences"):
        samples = speak(voice, rows[number][1], random.Random(f"{options.seed} {number}"))
        with atomic_path(options.folder / files[number]) as unfinished:
            soundfile.write(unfinished, samples, SAMPLE_RATE, format="OGG", subtype="OPUS")
    lines = [f"{file}\t{book}\t{text}\n" for file, (book, text) in zip(files, rows) if (options.folder / file).exists()]
    write_text(options.folder / "speech.tsv", "".join(lines))
    print(f"{options.folder / 'speech.tsv'}: {len(lines)} of {len(rows)} sentences")


def load_voice(file: Path) -> Any:
    """Load a voice of Piper, for one thread; more threads gain little, several parts do."""
    try:
        import onnxruntime
        import piper
    except ImportError as error:
        raise UserError("synthesise.py needs Piper: pip install piper-tts (GPL-3)") from error
    voice = piper.PiperVoice.load(file)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    voice.session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
    return voice


def speak(voice: Any, sentence: str, rng: random.Random) -> np.ndarray:
    """Samples [S] of a sentence at 16 kHz, at a random speed and with a random amount of variation."""
    from piper import SynthesisConfig

    style = SynthesisConfig(
        length_scale=rng.uniform(0.8, 1.25), noise_scale=rng.uniform(0.5, 0.9), noise_w_scale=rng.uniform(0.6, 1.0)
    )
    samples = np.concatenate([chunk.audio_float_array for chunk in voice.synthesize(sentence, style)])
    samples = soxr.resample(samples, voice.config.sample_rate, SAMPLE_RATE).astype(np.float32)
    return 0.7 * samples / max(1e-3, float(np.abs(samples).max()))


if __name__ == "__main__":
    run_command(main)
