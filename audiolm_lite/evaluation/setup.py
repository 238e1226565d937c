"""The model and the test sets of an evaluation, from its hyperparameters."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from audiolm_lite.data.clip_sources import FeatureSource, WaveformSource
from audiolm_lite.data.dataset import AudioTextDataset
from audiolm_lite.data.prompt_builder import PromptBuilder
from audiolm_lite.data.questions import Questions
from audiolm_lite.data.selected_rows import SelectedRows, select_rows
from audiolm_lite.decoding.bundle import ModelBundle
from audiolm_lite.evaluation.runner import ADAPTER_ALONE, EvaluationError
from audiolm_lite.features.store import FeatureStore
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
    bundle = load_model(hparams["model_folder"], device)
    bundle.prepare(hparams["dtype"])
    return bundle


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
        Control -> test set, whose items end before their answers. That of "adapter_alone" has the rows of tasks of
        type "asr" only.

    Raises
    ------
    FeatureStoreError
        The features in `feature_folder` are not of this encoder.
    DatasetError
        Rows that cannot be used.
    EvaluationError
        The control "adapter_alone" for a model without CTC head, or without a task of type "asr".
    """
    store, encoder = None, cast(nn.Module, bundle.model.encoder)
    if hparams["feature_folder"] is not None:
        store = FeatureStore(hparams["feature_folder"], encoder.identity())
    source = WaveformSource(encoder.num_frames) if store is None else FeatureSource(store)
    manifests, seed, questions = hparams["manifests"], hparams["seed"], None
    if hparams["question_files"] is not None:
        questions = Questions(hparams["question_files"], len(manifests), seed)
    rows = select_rows(manifests, hparams["tasks"], questions=questions)
    prompt = PromptBuilder(bundle.template, bundle.tokenizer, bundle.model.adapter.num_tokens, with_answer=False)
    test_sets = {}
    for control in hparams["controls"]:
        audio, chosen = control, rows
        if control == ADAPTER_ALONE:
            audio, chosen = "normal", _transcription_rows(rows, hparams["metrics"], bundle, hparams["model_folder"])
        test_sets[control] = AudioTextDataset(chosen, source, prompt, control=audio, seed=seed)
    return test_sets


def _transcription_rows(
    rows: SelectedRows, metrics: Mapping[str, Mapping[str, Any]], bundle: ModelBundle, folder: str
) -> SelectedRows:
    """Rows that the adapter alone can answer: those of tasks scored as transcripts."""
    if bundle.ctc_head is None:
        raise EvaluationError(
            f"controls: {folder} has no {CTC_HEAD_FILE}, which {ADAPTER_ALONE} needs; train a stage with ctc_start, "
            f"or remove {ADAPTER_ALONE}"
        )
    tasks = {task for task, entry in metrics.items() if entry.get("type") == "asr"}
    scored = np.array([row["task"] in tasks for row in rows])
    if not scored.any():
        raise EvaluationError(f"controls: {ADAPTER_ALONE} needs a task of type asr in metrics; remove {ADAPTER_ALONE}")
    return rows.keep(scored)
