"""Tests of the weights of tasks in the loss, against a sum over tokens written out."""

import pytest
import speechbrain as sb
import torch
import torch.nn.functional as F

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.data.batching import Item, collate, pack
from audiolm_lite.modeling.batch import AUDIO_SLOT, IGNORE
from audiolm_lite.training.task_weights import TaskWeights
from tests.training.toy import DIM, LAYERS, ToyData, make_brain, make_model

TASKS = ["asr", "gender", "age"]


def make_batch():
    items = []
    for number, task in enumerate(TASKS):
        answer = [5 + number, 6, 7][: number + 1]
        ids = [1, AUDIO_SLOT, AUDIO_SLOT, 4, *answer]
        labels = [IGNORE] * 4 + answer
        features = torch.randn(LAYERS, 2, DIM, generator=torch.Generator().manual_seed(number))
        items.append(Item({"id": task, "task": task}, ids, labels, features=features))
    return collate(items)


@pytest.mark.parametrize("chunk", [0, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_every_token_has_the_weight_of_its_task(chunk, packed):
    model, batch = make_model(dropout=0.0), make_batch()
    model.loss_chunk = chunk
    hidden, targets = model.supervised(batch)
    losses = F.cross_entropy(model.head(hidden), targets, reduction="none")
    expected = 1 * losses[0] + 8 * losses[1:3].sum() + 0.5 * losses[3:].sum()
    loss = model(pack(batch) if packed else batch, TaskWeights({"gender": 8, "age": 0.5}, TASKS))
    torch.testing.assert_close(loss.total, expected)
    assert loss.tokens == 6
    (gradient,) = torch.autograd.grad(loss.total, [model.adapter.projection.weight])
    (expected_gradient,) = torch.autograd.grad(expected, [model.adapter.projection.weight])
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


def test_weights_of_one_change_nothing():
    model, batch = make_model(dropout=0.0), make_batch()
    loss, weighted = model(batch), model(batch, TaskWeights({"gender": 1}, TASKS))
    torch.testing.assert_close(weighted.total, loss.total)
    assert weighted.correct == loss.correct


class _Rows:
    def tasks(self):
        return {"asr", "gender"}


def _toy(items, seed=0):
    data = ToyData(items, seed)
    data.rows = _Rows()
    for number, item in enumerate(data.items):
        item.row["task"] = ["asr", "gender"][number % 2]
    return data


def test_training_is_weighted_and_validation_is_not(tmp_path):
    results = {}
    for name, weights in {"plain": None, "weighted": {"gender": 4}}.items():
        torch.manual_seed(1)
        brain = make_brain(tmp_path / name, model=make_model(dropout=0.0), task_weights=weights, epochs=1)
        brain.fit_stage(_toy(20), _toy(6, seed=1))
        results[name] = brain
    assert results["plain"].objective is None
    batch = collate(_toy(2).items)
    brain = results["weighted"]
    brain.model.eval()
    train, valid = (brain.compute_forward(batch, stage).total for stage in (sb.Stage.TRAIN, sb.Stage.VALID))
    parts = [brain.compute_forward(collate([item]), sb.Stage.VALID).total for item in _toy(2).items]
    torch.testing.assert_close(valid, parts[0] + parts[1])
    torch.testing.assert_close(train, parts[0] + 4 * parts[1])


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), "8", True, None])
def test_a_weight_is_a_number_above_zero(weight):
    with pytest.raises(ConfigError, match="gender is .*, it must be a number above 0"):
        TaskWeights({"gender": weight}, TASKS)
