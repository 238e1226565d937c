"""All steps of the recipe in one process: data, features, stages 1 to 3, evaluation, latency, report, sample clips.

quickstart.sh --synthetic runs it. Finished steps are not repeated. The last line of standard output is a JSON object
with the results.
"""

import json
import shutil
import time
from pathlib import Path

import evaluate
import latency
import prepare
import train

from audiolm_lite.api import AudioLM
from audiolm_lite.config.errors import run_command
from audiolm_lite.deploy.summary import heading, latency_once, print_summary, results
from audiolm_lite.evaluation.report import write_report
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
    timing = latency_once(metrics, EVALUATION, lambda: latency.main(["hparams/evaluate.yaml", *argv]))
    heading("5/5  two sample clips, report, results")
    for line in samples():
        print(line)
    result = results(metrics, timing) | {"real": False, "seconds": round(time.monotonic() - started, 1)}
    write_report(
        "results/report.html",
        metrics,
        EVALUATION / PREDICTIONS,
        title="MiniASQA quick start",
        notes=["Synthetic speech and sounds: the results show that all steps work, and say nothing about real audio."],
        latency=[timing],
    )
    print_summary(metrics, timing, "results/report.html")
    print("next: real speech and sounds (./quickstart.sh), your own data (README.md), or")
    print('      python -c "from audiolm_lite import AudioLM; ', end="")
    print("print(AudioLM.from_pretrained('results/stage_3').ask('clip.wav', 'what can be heard?'))\"")
    print(json.dumps(result))


def samples() -> list[str]:
    """Transcribe a test clip of speech and caption one of sound."""
    rows = [json.loads(line) for line in Path("data/test.jsonl").read_text(encoding="utf-8").splitlines()]
    speech = next(row for row in rows if row["task"] == "asr" and row["kind"] == "speech")
    sound = next(row for row in rows if row["task"] == "caption" and row["kind"] == "sound")
    model = AudioLM.from_pretrained("results/stage_3")
    transcript, caption = model.transcribe(Path("data", speech["audio"])), model.caption(Path("data", sound["audio"]))
    return [
        f"{speech['audio']}\n  transcript: {transcript}\n  reference:  {speech['target']}",
        f"{sound['audio']}\n  caption:    {caption}\n  reference:  {sound['target']}",
    ]


if __name__ == "__main__":
    run_command(main)
