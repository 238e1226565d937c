"""Answer the test set, with and without hearing it: python evaluate.py hparams/evaluate.yaml

Writes predictions.jsonl, metrics.json and report.html, and prints a table. Interrupted, it goes on where it stopped.
"""

import sys
from pathlib import Path

from audiolm_lite.evaluation.report import markdown_table, write_report
from audiolm_lite.evaluation.runner import PREDICTIONS, evaluate
from audiolm_lite.evaluation.setup import control_sets, load_bundle
from audiolm_lite.training.experiment import load_experiment
from audiolm_lite.training.keys import EVALUATION_KEYS


def main(argv: list[str]) -> dict:
    """Evaluate and return what metrics.json holds."""
    hparams, run_opts = load_experiment(argv, EVALUATION_KEYS)
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


if __name__ == "__main__":
    main(sys.argv[1:])
