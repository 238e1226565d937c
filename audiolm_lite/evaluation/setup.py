"""From checked hyperparameters to the model under test and its test sets, so that evaluate.py stays on one page."""

from collections.abc import Mapping

import torch

from audiolm_lite.data.clip_sources import FeatureSource, WaveformSource
from audiolm_lite.data.dataset import AudioTextDataset
from audiolm_lite.data.prompt_builder import PromptBuilder
from audiolm_lite.data.questions import Questions
from audiolm_lite.data.selected_rows import select_rows
from audiolm_lite.decoding.bundle import ModelBundle
from audiolm_lite.features.store import FeatureStore
from audiolm_lite.hub.load import load_model


def load_bundle(hparams: Mapping, run_opts: Mapping) -> ModelBundle:
    """Load `model_folder` onto the device asked for, by default a GPU where there is one."""
    device = run_opts.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    return load_model(hparams["model_folder"], device)


def control_sets(hparams: Mapping, bundle: ModelBundle) -> dict[str, AudioTextDataset]:
    """Build the test set under each of `controls`; with a feature store, one that this very encoder has made.

    Raises
    ------
    FeatureStoreError
        The store's features are not this encoder's.
    """
    store = None
    if hparams["feature_folder"] is not None:
        store = FeatureStore(hparams["feature_folder"], bundle.model.encoder.identity())
    source = WaveformSource(bundle.model.encoder.num_frames) if store is None else FeatureSource(store)
    manifests, seed, questions = hparams["manifests"], hparams["seed"], None
    if hparams["question_files"] is not None:
        questions = Questions(hparams["question_files"], len(manifests), seed)
    rows = select_rows(manifests, hparams["tasks"], questions=questions)
    prompt = PromptBuilder(bundle.template, bundle.tokenizer, bundle.model.adapter.num_tokens, with_answer=False)
    return {
        control: AudioTextDataset(rows, source, prompt, control=control, seed=seed) for control in hparams["controls"]
    }
