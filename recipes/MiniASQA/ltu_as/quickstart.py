"""The whole recipe in one process: data, features, stages 1 to 3, evaluation, latency, report, two sample clips.

Started by ../../../quickstart.sh. What is finished is used again. The last line of standard output is one JSON object
with the results.
"""

import json
import shutil
import sys
import time
from pathlib import Path

import evaluate
import latency
import prepare
import train

from audiolm_lite.api import AudioLM
from audiolm_lite.evaluation.report import markdown_table, write_report
from audiolm_lite.evaluation.runner import PREDICTIONS

EVALUATION = Path("results/evaluation")
STAGES = (1, 2, 3)


def main(argv: list[str]) -> None:
    """Run everything; `--fresh` deletes earlier results first, further arguments go to every script."""
    started = time.monotonic()
    if "--fresh" in argv:
        argv = [a for a in argv if a != "--fresh"]
        for folder in ("data", "results"):
            shutil.rmtree(folder, ignore_errors=True)
    heading("1/5  making MiniASQA and its features")
    prepare.main(["hparams/prepare.yaml", *argv])
    for stage in STAGES:
        heading(f"2/5  training stage {stage} of {len(STAGES)}")
        train.main([f"hparams/stage_{stage}.yaml", *argv])
    heading("3/5  answering the test set, hearing it and not")
    metrics = evaluate.main(["hparams/evaluate.yaml", *argv])
    heading("4/5  latency")
    timing = earlier_latency(metrics) or latency.main(["hparams/evaluate.yaml", *argv])
    heading("5/5  two clips, report and results")
    for line in samples():
        print(line)
    result = results(metrics, timing) | {"seconds": round(time.monotonic() - started, 1)}
    write_report(
        "results/report.html",
        metrics,
        EVALUATION / PREDICTIONS,
        title="MiniASQA quick start",
        notes=["Synthetic speech and sounds: these figures show that the path from audio to answer works, no more."],
        latency=[timing],
    )
    print(f"\n{markdown_table(metrics)}\n")
    print(f"time to first token {timing['ttft_ms']:.0f} ms, then {timing['tpot_ms']:.1f} ms a token with ", end="")
    print(f"{timing['backend']} ({timing['tpot_ms_eager']:.1f} ms eager, {timing['token_match']:.0%} of tokens equal)")
    print(f"report: {Path('results/report.html').resolve()}")
    print("next: the same curriculum on real audio (recipes/RealASQA/ltu_as), your own data (README.md), or")
    print('      python -c "from audiolm_lite import AudioLM; ', end="")
    print("print(AudioLM.from_pretrained('results/stage_3').ask('clip.wav', 'what can be heard?'))\"")
    print(json.dumps(result))


def heading(text: str) -> None:
    """Print a section's title at once, whatever standard output is."""
    print(f"\n=== {text}", flush=True)


def earlier_latency(metrics: dict) -> dict | None:
    """The latency measured for this very model, where there is one."""
    path, mark = EVALUATION / "latency.json", EVALUATION / "latency_of.txt"
    if path.is_file() and mark.is_file() and mark.read_text() == metrics["model"]:
        return json.loads(path.read_text())
    mark.write_text(metrics["model"])
    path.unlink(missing_ok=True)
    return None


def samples() -> list[str]:
    """Transcribe one test clip of speech and describe one of sound."""
    rows = [json.loads(line) for line in Path("data/test.jsonl").read_text().splitlines()]
    speech = next(row for row in rows if row["task"] == "asr" and row["kind"] == "speech")
    sound = next(row for row in rows if row["task"] == "caption" and row["kind"] == "sound")
    model = AudioLM.from_pretrained("results/stage_3")
    said, heard = model.transcribe(Path("data", speech["audio"])), model.caption(Path("data", sound["audio"]))
    return [
        f"{speech['audio']}\n  transcribed: {said}\n  reference:   {speech['target']}",
        f"{sound['audio']}\n  described:   {heard}\n  reference:   {sound['target']}",
    ]


def results(metrics: dict, timing: dict) -> dict:
    """The figures of the quick start; a missing one is null."""
    heard, unheard = metrics["controls"]["normal"], metrics["controls"]["zeros"]
    out = {}
    for name, task, key in (
        ("wer", "asr", "wer"),
        ("cer", "asr", "cer"),
        ("sound_accuracy", "sound_class", "accuracy"),
        ("gender_accuracy", "gender", "accuracy"),
        ("emotion_accuracy", "emotion", "accuracy"),
        ("qa_accuracy", "qa", "accuracy"),
        ("age_mae", "age", "mae"),
        ("cider_d", "caption", "cider_d"),
    ):
        out[name] = number(heard[task].get(key))
        out[f"{name}_no_audio"] = number(unheard[task].get(key))
    keys = ("ttft_ms", "tpot_ms", "tpot_ms_eager", "token_match", "peak_memory_mb", "backend")
    return out | {key: number(timing[key]) for key in keys}


def number(value):
    """Rounded for reading; None where a metric is missing (it then says why)."""
    if isinstance(value, dict) or value is None:
        return None
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main(sys.argv[1:])
