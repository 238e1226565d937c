"""Tests of checkpoint folders: which are kept, which is the best, and restoring the random number generators."""

import json
import random

import numpy as np
import pytest
import torch

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.training.checkpoint import CheckpointFolder, copy_tensors, random_state, set_random_state


def save(folder, step, **metrics):
    tensors = {"weight": torch.full((2,), float(step))}
    return folder.save(tensors, {"random": random_state()}, {"step": step, "metrics": metrics or None})


@pytest.mark.parametrize(("metric", "best"), [("loss", 2), ("accuracy", 4)])
def test_the_best_and_the_two_newest_are_kept(tmp_path, metric, best):
    folder = CheckpointFolder(tmp_path, metric)
    values = {2: 0.5, 4: 0.9, 6: 0.7, 8: float("nan"), 10: 0.6}
    for step, value in values.items():
        save(folder, step - 1)
        save(folder, step, **{metric: value})
    assert folder.best().info["step"] == best
    assert torch.equal(folder.best().tensors["weight"], torch.full((2,), float(best)))
    kept = [f"step_{best:08d}_valid", "step_00000009", "step_00000010_valid"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept


def test_the_second_best_is_used_if_the_best_is_damaged(tmp_path):
    folder = CheckpointFolder(tmp_path, "loss")
    save(folder, 1, loss=0.5)
    save(folder, 2, loss=0.6)
    (tmp_path / "step_00000001_valid" / "state.pt").unlink()
    assert folder.best().info["step"] == 2
    assert (tmp_path / "damaged-step_00000001_valid").is_dir()


def test_a_truncated_checkpoint_is_not_used(tmp_path):
    folder = CheckpointFolder(tmp_path, "loss")
    assert folder.newest() is None and folder.best() is None
    save(folder, 1)
    path = save(folder, 2)
    (path / "checkpoint.json").write_text(json.dumps({"step": 2})[:-3])
    assert folder.newest().info["step"] == 1


def test_a_step_can_be_saved_again(tmp_path):
    """As at the end of an epoch without a ranked validation, after its last step was saved already."""
    folder = CheckpointFolder(tmp_path, "loss")
    save(folder, 1)
    folder.save({"weight": torch.zeros(2)}, {}, {"step": 1, "metrics": None})
    assert not folder.newest().tensors["weight"].any()
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_random_number_generators_are_restored(tmp_path):
    folder = CheckpointFolder(tmp_path, "loss")
    save(folder, 1)

    def draw():
        return random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist(), random.gauss(0, 1)

    first = draw()
    draw()
    set_random_state(folder.newest().state["random"])
    assert draw() == first


def test_all_tensors_are_checked_before_any_is_copied():
    model = torch.nn.Linear(2, 2)
    before = model.bias.clone()
    with pytest.raises(ConfigError, match=r"stage_1 contains weight of shape \[3\], and this model has \[2, 2\]"):
        copy_tensors(model, {"bias": torch.zeros(2), "weight": torch.zeros(3)}, "stage_1")
    with pytest.raises(ConfigError, match="stage_1 contains scale, which this model does not have"):
        copy_tensors(model, {"bias": torch.zeros(2), "scale": torch.zeros(3)}, "stage_1")
    assert torch.equal(model.bias, before)
