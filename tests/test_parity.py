"""Numerical parity with the published systems: every reference file of a folder, by what its metadata says.

`AUDIOLM_LITE_PARITY_DIR` names the folder. Its files may have any names, sizes and seeds; `config["case"]` in the
metadata chooses the module. Weights come in through the converters of `audiolm_lite.convert`.
"""

import os
from pathlib import Path

import pytest
import torch

from tests.parity.adapters import check_nemo, check_salmonn, check_slam_linear, check_slam_qformer, check_tltr
from tests.parity.reference import read_reference
from tests.parity.splice import check_ltu_as, check_ltu_as_original, check_salmonn_splice, check_slam
from tests.parity.voxtral import check_voxtral
from tests.parity.whisper import check_log_mel, check_pooled

CHECKS = {
    "ltu_tltr": check_tltr,
    "slam_linear": check_slam_linear,
    "slam_cov1d": check_slam_linear,
    "slam_qformer": check_slam_qformer,
    "salmonn_qformer": check_salmonn,
    "nemo_adapter": check_nemo,
    "whisper_logmel": check_log_mel,
    "whisper_pooled": check_pooled,
    "splice_slam": check_slam,
    "splice_salmonn": check_salmonn_splice,
    "splice_ltu_as": check_ltu_as,
    "splice_ltu_as_original": check_ltu_as_original,
    "voxtral": check_voxtral,
}


def reference_files() -> list[Path]:
    return sorted(Path(os.environ.get("AUDIOLM_LITE_PARITY_DIR") or "/nonexistent").glob("*.safetensors"))


def test_there_are_references(parity_dir):
    assert reference_files(), f"{parity_dir} holds no .safetensors"


@pytest.mark.parametrize("path", reference_files(), ids=lambda path: path.stem)
def test_parity(path):
    reference = read_reference(path)
    with torch.no_grad():
        CHECKS[reference.config["case"]](reference)
