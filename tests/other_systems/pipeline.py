"""Extraction, training, evaluation and answers of tiny models: python -m tests.other_systems.pipeline FOLDER."""

import subprocess
import sys
from pathlib import Path

from audiolm_lite import AudioLM
from audiolm_lite.evaluation.run import main as evaluate
from audiolm_lite.features.store_format import FeatureStoreError
from audiolm_lite.features.writer import FeatureWriter
from audiolm_lite.training.run import main as train
from tests.training.test_build import make_corpus

EVALUATION = """
data_folder: {root}
model_folder: {root}/results/stage_2
output_folder: {root}/evaluation
manifests: [{root}/valid.jsonl]
feature_folder: null
metrics: {{sound_class: {{type: classification}}}}
controls: [normal, zeros]
generation: {{max_new_tokens: 4}}
dtype: float32
"""


def run(root: Path, workers: int) -> str:
    """Run every step in `root`, with two stages; returns the answer to a clip."""
    make_corpus(root)
    command = [str(root / "stage.yaml"), "--output_root", str(root / "results"), "--device", "cpu"]
    command += ["--num_workers", str(workers), "--ckpt_interval_minutes", "1e-9", "--patience", "9"]
    train([*command, "--epochs", "1"])
    train([*command, "--epochs", "1", "--stage", "2", "--trainable", "['adapter.*', 'llm.*lora_*']"])
    (root / "evaluate.yaml").write_text(EVALUATION.format(root=root), encoding="utf-8")
    evaluate([str(root / "evaluate.yaml"), "--device", "cpu"])
    return AudioLM.from_pretrained(root / "results/stage_2", device="cpu").ask(root / "1.wav", "what is heard ?")


def main() -> None:
    root = Path(sys.argv[1])
    if len(sys.argv) == 3:  # a second writer
        try:
            FeatureWriter(root / "locked", {})
        except FeatureStoreError as error:
            print(error)
        return
    print(repr(run(root, workers=1)))
    with FeatureWriter(root / "locked", {}):
        command = [sys.executable, "-m", "tests.other_systems.pipeline", str(root), "second"]
        refused = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
        assert "another process is writing" in refused.stdout, refused.stdout + refused.stderr


if __name__ == "__main__":
    main()
