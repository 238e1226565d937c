"""The evaluate command: answer the test set with and without audio, score the answers, and write a report.

Writes predictions.jsonl, metrics.json and report.html, and prints a table. After an interruption the same command
continues where it stopped.
"""

import importlib
from pathlib import Path
from typing import Any

from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import EVALUATION_KEYS
from audiolm_lite.config.start import start_run
from audiolm_lite.evaluation.report import left_out_rows, markdown_table, prompt_notes, stopped_answers, write_report
from audiolm_lite.evaluation.runner import PREDICTIONS, evaluate
from audiolm_lite.evaluation.setup import build_test_sets, evaluation_inputs, load_bundle


def main(argv: list[str]) -> dict[str, Any]:
    """Evaluate a model.

    Parameters
    ----------
    argv : list of str
        YAML file and overrides, see `config.keys.EVALUATION_KEYS`.

    Returns
    -------
    dict
        Content of metrics.json.

    Raises
    ------
    UserError
        The configuration, the model or the test set cannot be used.
    SystemExit
        Status 3, after all files are written: rows were left out, and `allow_left_out` is false.
    """
    hparams, run_opts, resolved = load_experiment(argv, EVALUATION_KEYS)
    start_run(hparams, resolved)
    output = Path(hparams["output_folder"])
    bundle = load_bundle(hparams, run_opts)
    backend = None
    if hparams["answer_backend"] != "eager":
        # By name, as encoders are built: `deploy` is above this package.
        make_backend = importlib.import_module("audiolm_lite.deploy.backends").make_backend
        backend = make_backend(hparams["answer_backend"], bundle.model.llm, batch_size=1, max_length=1)
    metrics = evaluate(
        bundle,
        build_test_sets(hparams, bundle),
        hparams["metrics"],
        output,
        batch_tokens=hparams["batch_tokens"],
        generation=hparams["generation"],
        backend=backend,
        num_workers=hparams["num_workers"],
        inputs=evaluation_inputs(hparams),
    )
    write_report(output / "report.html", metrics, output / PREDICTIONS, title=hparams["title"], notes=hparams["notes"])
    notes = [*prompt_notes(metrics), *stopped_answers(metrics), *left_out_rows(metrics)]
    print("\n".join([markdown_table(metrics), *notes]))
    if not hparams["allow_left_out"] and any(entry["count"] for entry in metrics["left_out"].values()):
        print("Exit status 3, since rows were left out; --allow_left_out true accepts that.")
        raise SystemExit(3)
    return metrics
