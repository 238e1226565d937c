"""The model and the test sets of an evaluation, from its hyperparameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from audiolm_lite.audio.long_audio import LongAudio
from audiolm_lite.data.clip_sources import FeatureSource, WaveformSource
from audiolm_lite.data.controls import TRANSCRIPT
from audiolm_lite.data.dataset import AudioTextDataset
from audiolm_lite.data.prompt_builder import PromptBuilder
from audiolm_lite.data.questions import Questions
from audiolm_lite.data.selected_rows import SelectedRows, select_rows
from audiolm_lite.decoding.bundle import ModelBundle
from audiolm_lite.evaluation.runner import ADAPTER_ALONE, EvaluationError
from audiolm_lite.features.store import FeatureStore
from audiolm_lite.features.store_format import read_header
from audiolm_lite.hub.folder import CTC_HEAD_FILE
from audiolm_lite.hub.load import load_model


def load_bundle(hparams: Mapping[str, Any], run_opts: Mapping[str, Any]) -> ModelBundle:
    """Load `model_folder` onto the requested device, by default a GPU, and prepare its LLM in `dtype`.

    Raises
    ------
    ModelFolderError, ConfigError
        As in `hub.load.load_model`.
    """
    device = run_opts.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    bundle = load_model(hparams["model_folder"], device, merge=True)
    bundle.prepare(hparams["dtype"])
    return bundle


def evaluation_inputs(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """What answers depend on besides the model and the rows: seed of the controls, and how features were stored.

    Examples
    --------
    >>> evaluation_inputs({"seed": 1986, "feature_folder": None})
    {'seed': 1986, 'features': 'live'}
    """
    folder = hparams["feature_folder"]
    header = None if folder is None else read_header(Path(folder))
    stored = "live" if header is None else {name: header.get(name) for name in ("dtype", "long_audio")}
    return {"seed": hparams["seed"], "features": stored}


def build_test_sets(hparams: Mapping[str, Any], bundle: ModelBundle) -> dict[str, AudioTextDataset]:
    """Build the test set under each of `controls`.

    Parameters
    ----------
    hparams : mapping
        `manifests`, `tasks`, `question_files`, `controls`, `metrics`, `model_folder`, `seed` and `feature_folder`;
        without the latter, items have waveforms.
    bundle : ModelBundle
        The model under test.

    Returns
    -------
    dict
        Control -> test set, whose items end before their answers. Rows whose audio cannot be used are in its `omitted`.
        Those of "adapter_alone" and "transcript" have the
        rows of tasks of type "asr" only.

    Raises
    ------
    FeatureStoreError
        The features in `feature_folder` are not of this encoder.
    DatasetError
        Rows that cannot be used.
    EvaluationError
        The control "adapter_alone" for a model without CTC head, "transcript" for rows without transcripts, or either
        without a task of type "asr".
    """
    store, encoder = None, cast(nn.Module, bundle.model.encoder)
    if hparams["feature_folder"] is not None:
        store = FeatureStore(hparams["feature_folder"], encoder.identity())
    rule: LongAudio = bundle.model.long_audio
    source = WaveformSource(rule.num_frames, rule) if store is None else FeatureSource(store)
    manifests, seed, questions = hparams["manifests"], hparams["seed"], None
    if hparams["question_files"] is not None:
        questions = Questions(hparams["question_files"], len(manifests), seed)
    rows = select_rows(manifests, hparams["tasks"], questions=questions)
    prompt = PromptBuilder(bundle.template, bundle.tokenizer, bundle.model.adapter.num_tokens, with_answer=False)
    test_sets = {}
    for control in hparams["controls"]:
        audio, chosen = control, rows
        if control in (ADAPTER_ALONE, TRANSCRIPT):
            audio, chosen = "normal", _transcription_rows(rows, hparams["metrics"], control)
        if control == ADAPTER_ALONE and bundle.ctc_head is None:
            raise EvaluationError(
                f"controls: {hparams['model_folder']} has no {CTC_HEAD_FILE}, which {ADAPTER_ALONE} needs; train a "
                f"stage with ctc_start, or remove {ADAPTER_ALONE}"
            )
        test_sets[control] = AudioTextDataset(chosen, source, prompt, control=audio, seed=seed, leave_out=True)
    return test_sets


def _transcription_rows(rows: SelectedRows, metrics: Mapping[str, Mapping[str, Any]], control: str) -> SelectedRows:
    """Rows that a transcript answers: those of tasks scored as transcripts."""
    tasks = {task for task, entry in metrics.items() if entry.get("type") == "asr"}
    scored = np.array([row["task"] in tasks for row in rows])
    if not scored.any():
        raise EvaluationError(f"controls: {control} needs a task of type asr in metrics; remove {control}")
    chosen = rows.keep(scored)
    without = [row["id"] for row in chosen if row.get(TRANSCRIPT) is None] if control == TRANSCRIPT else []
    if without:
        raise EvaluationError(
            f"controls: {control} needs a transcript in every row of its tasks; {len(without)} rows, the first is "
            f'"{without[0]}", have none: use a manifest written by audiolm-lite transcripts, or remove {control}'
        )
    return chosen
