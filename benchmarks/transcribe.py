"""Transcription by a trained model: load time, real-time factor, peak memory, in a process of its own.

    python benchmarks/transcribe.py CLIP [CLIP ...] [--model tiny] [--threads 1]

Each clip is transcribed alone, from the audio, and with Whisper's own transcript in the prompt; the reference is
Whisper's transcript itself, of the same encoder pass. The clips are measured in turn, three times, after one that does
not count. The real-time factor is the median time of all clips divided by their duration. The last line of standard
output is one JSON object: times in seconds, memory in MB.
"""

import time

STARTED = time.perf_counter(), time.process_time()

import argparse  # noqa: E402
import json  # noqa: E402
import resource  # noqa: E402
from statistics import median  # noqa: E402

import torch  # noqa: E402

from audiolm_lite import AudioLM  # noqa: E402
from audiolm_lite.audio.reading import SAMPLE_RATE, read_audio  # noqa: E402

RUNS = 3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", help="audio files of at most 30 s")
    parser.add_argument("--model", default="tiny", help="model folder or released model; default: %(default)s")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    imported = time.perf_counter(), time.process_time()
    model = AudioLM.from_pretrained(options.model, device="cpu")
    loaded = time.perf_counter(), time.process_time()
    clips = [read_audio(name) for name in options.clips]
    encoder = model.bundle.model.encoder

    def whisper(clip: torch.Tensor) -> None:
        with torch.no_grad():
            encoder.recognize(clip[None], torch.tensor([len(clip)]))

    systems = {
        "audio_alone": lambda clip: model.transcribe(clip, transcript=False),
        "with_transcript": lambda clip: model.transcribe(clip, transcript=True),
        "whisper": whisper,
    }
    totals: dict[str, list[float]] = {name: [] for name in systems}
    for run in range(RUNS + 1):
        measured = clips if run else clips[:1]
        for name, transcribe in systems.items():
            began = time.perf_counter()
            for clip in measured:
                transcribe(clip)
            if run:
                totals[name].append(time.perf_counter() - began)
    duration = sum(map(len, clips)) / SAMPLE_RATE
    result = {f"rtf_{name}": round(median(times) / duration, 4) for name, times in totals.items()}
    result |= {"import_s": round(imported[0] - STARTED[0], 2), "load_s": round(loaded[0] - imported[0], 2)}
    result |= {"import_cpu_s": round(imported[1] - STARTED[1], 2), "load_cpu_s": round(loaded[1] - imported[1], 2)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result |= {"peak_mb": round(peak), "clips": len(clips), "audio_s": round(duration, 1), "threads": options.threads}
    for name, value in result.items():
        print(f"{name:>24} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
