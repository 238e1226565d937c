"""All steps of the recipe in one process: data, features, stages 1 to 3, evaluation, latency, report, sample clips.

quickstart.sh runs it. Finished steps are not repeated. The last line of standard output is a JSON object with the
results.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import evaluate
import latency
import prepare
import train

from audiolm_lite.api import AudioLM
from audiolm_lite.config.errors import run_command
from audiolm_lite.evaluation.report import markdown_table, write_report
from audiolm_lite.evaluation.runner import PREDICTIONS

EVALUATION = Path("results/evaluation")
STAGES = (1, 2, 3)


def main(argv: list[str]) -> None:
    """Run all steps; `--fresh` deletes earlier results first, and other arguments are passed to every step."""
    started = time.monotonic()
    if "--fresh" in argv:
        argv = [argument for argument in argv if argument != "--fresh"]
        for folder in ("data", "results"):
            shutil.rmtree(folder, ignore_errors=True)
    heading("1/5  MiniASQA: synthetic audio and features")
    prepare.main(["hparams/prepare.yaml", *argv])
    for stage in STAGES:
        heading(f"2/5  training, stage {stage} of {len(STAGES)}")
        train.main([f"hparams/stage_{stage}.yaml", *argv])
    heading("3/5  evaluation on the test set, with and without audio")
    metrics = evaluate.main(["hparams/evaluate.yaml", *argv])
    heading("4/5  latency")
    timing = earlier_latency(metrics) or latency.main(["hparams/evaluate.yaml", *argv])
    heading("5/5  two sample clips, report, results")
    for line in samples():
        print(line)
    result = results(metrics, timing) | {"seconds": round(time.monotonic() - started, 1)}
    write_report(
        "results/report.html",
        metrics,
        EVALUATION / PREDICTIONS,
        title="MiniASQA quick start",
        notes=["Synthetic speech and sounds: the results show that all steps work, and say nothing about real audio."],
        latency=[timing],
    )
    print(f"\n{markdown_table(metrics)}\n")
    print(
        f"latency: {timing['ttft_ms']:.0f} ms to the first token, then {timing['tpot_ms']:.1f} ms per token with ",
        end="",
    )
    print(f"{timing['backend']} ({timing['tpot_ms_eager']:.1f} ms eager, {timing['token_match']:.0%} of tokens equal)")
    print(f"report: {Path('results/report.html').resolve()}")
    print("next: the same curriculum on real audio (recipes/RealASQA/ltu_as), your own data (README.md), or")
    print('      python -c "from audiolm_lite import AudioLM; ', end="")
    print("print(AudioLM.from_pretrained('results/stage_3').ask('clip.wav', 'what can be heard?'))\"")
    print(json.dumps(result))


def heading(text: str) -> None:
    """Print the title of a step, also if standard output is not a terminal."""
    print(f"\n=== {text}", flush=True)


def earlier_latency(metrics: dict) -> dict | None:
    """Latency that was measured for the same model, if there is one."""
    path, mark = EVALUATION / "latency.json", EVALUATION / "latency_of.txt"
    if path.is_file() and mark.is_file() and mark.read_text() == metrics["model"]:
        return json.loads(path.read_text())
    mark.write_text(metrics["model"])
    path.unlink(missing_ok=True)
    return None


def samples() -> list[str]:
    """Transcribe a test clip of speech and caption one of sound."""
    rows = [json.loads(line) for line in Path("data/test.jsonl").read_text().splitlines()]
    speech = next(row for row in rows if row["task"] == "asr" and row["kind"] == "speech")
    sound = next(row for row in rows if row["task"] == "caption" and row["kind"] == "sound")
    model = AudioLM.from_pretrained("results/stage_3")
    transcript, caption = model.transcribe(Path("data", speech["audio"])), model.caption(Path("data", sound["audio"]))
    return [
        f"{speech['audio']}\n  transcript: {transcript}\n  reference:  {speech['target']}",
        f"{sound['audio']}\n  caption:    {caption}\n  reference:  {sound['target']}",
    ]


def results(metrics: dict, timing: dict) -> dict:
    """Results of the quick start; missing ones are null."""
    normal, no_audio = metrics["controls"]["normal"], metrics["controls"]["zeros"]
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
        out[name] = number(normal[task].get(key))
        out[f"{name}_no_audio"] = number(no_audio[task].get(key))
    keys = ("ttft_ms", "tpot_ms", "tpot_ms_eager", "token_match", "peak_memory_mb", "backend")
    return out | {key: number(timing[key]) for key in keys}


def number(value: Any) -> Any:
    """Round for reading; None for a missing metric, whose value is a mapping with the reason."""
    if isinstance(value, dict) or value is None:
        return None
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    run_command(main)
