"""The model and the test sets of an evaluation, from its hyperparameters."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from audiolm_lite.data.clip_sources import FeatureSource, WaveformSource
from audiolm_lite.data.dataset import AudioTextDataset
from audiolm_lite.data.prompt_builder import PromptBuilder
from audiolm_lite.data.questions import Questions
from audiolm_lite.data.selected_rows import select_rows
from audiolm_lite.decoding.bundle import ModelBundle
from audiolm_lite.features.store import FeatureStore
from audiolm_lite.hub.load import load_model


def load_bundle(hparams: Mapping[str, Any], run_opts: Mapping[str, Any]) -> ModelBundle:
    """Load `model_folder` onto the requested device, by default a GPU if there is one.

    Raises
    ------
    ModelFolderError, ConfigError
        As in `hub.load.load_model`.
    """
    device = run_opts.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    return load_model(hparams["model_folder"], device)


def build_test_sets(hparams: Mapping[str, Any], bundle: ModelBundle) -> dict[str, AudioTextDataset]:
    """Build the test set under each of `controls`.

    Parameters
    ----------
    hparams : mapping
        `manifests`, `tasks`, `question_files`, `controls`, `seed` and `feature_folder`; without the latter, items have
        waveforms.
    bundle : ModelBundle
        The model under test.

    Returns
    -------
    dict
        Control -> test set, whose items end before their answers.

    Raises
    ------
    FeatureStoreError
        The features in `feature_folder` are not of this encoder.
    DatasetError
        Rows that cannot be used.
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
    return {
        control: AudioTextDataset(rows, source, prompt, control=control, seed=seed) for control in hparams["controls"]
    }
