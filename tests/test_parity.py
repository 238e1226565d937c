"""Numerical parity with the published systems, from reference files with their weights, inputs and outputs.

A subset of the files is in `tests/parity/data`. `AUDIOLM_LITE_PARITY_DIR` names a folder of further files, which may
have any names, sizes and seeds: `config["case"]` in their metadata chooses the check. The converters of
`audiolm_lite.convert` read the weights.
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


SUBSET = Path(__file__).parent / "parity" / "data"
# Checks of which no file is in the subset, to keep it below 2 MB.
NOT_IN_SUBSET = {
    "slam_linear",
    "salmonn_qformer",
    "whisper_pooled",
    "splice_slam",
    "splice_ltu_as",
    "splice_ltu_as_original",
}


def reference_files() -> list[Path]:
    folders = [SUBSET, Path(os.environ.get("AUDIOLM_LITE_PARITY_DIR") or "/nonexistent")]
    return [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]


def test_the_folder_has_reference_files(parity_dir):
    assert list(parity_dir.glob("*.safetensors")), f"{parity_dir} contains no .safetensors file"


def test_the_subset_is_small_and_complete():
    files = list(SUBSET.glob("*.safetensors"))
    assert {read_reference(path).config["case"] for path in files} == CHECKS.keys() - NOT_IN_SUBSET
    assert sum(path.stat().st_size for path in files) < 2e6


@pytest.mark.parametrize("path", reference_files(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_parity(path):
    reference = read_reference(path)
    with torch.no_grad():
        CHECKS[reference.config["case"]](reference)
