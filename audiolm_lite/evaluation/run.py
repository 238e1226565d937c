"""The evaluate command: answer the test set with and without audio, score the answers, and write a report.

Writes predictions.jsonl, metrics.json and report.html, and prints a table. After an interruption the same command
continues where it stopped.
"""

from pathlib import Path

from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import EVALUATION_KEYS
from audiolm_lite.config.start import start_run
from audiolm_lite.evaluation.report import markdown_table, write_report
from audiolm_lite.evaluation.runner import PREDICTIONS, evaluate
from audiolm_lite.evaluation.setup import control_sets, load_bundle


def main(argv: list[str]) -> dict:
    """Evaluate and return what metrics.json holds."""
    hparams, run_opts, resolved = load_experiment(argv, EVALUATION_KEYS)
    start_run(hparams, resolved)
    output = Path(hparams["output_folder"])
    bundle = load_bundle(hparams, run_opts)
    metrics = evaluate(
        bundle,
        control_sets(hparams, bundle),
        hparams["metrics"],
        output,
        batch_tokens=hparams["batch_tokens"],
        generation=hparams["generation"],
        num_workers=hparams["num_workers"],
    )
    write_report(output / "report.html", metrics, output / PREDICTIONS, title=hparams["title"], notes=hparams["notes"])
    print(markdown_table(metrics))
    return metrics
