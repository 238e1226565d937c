"""From a folder of audio and a table of transcripts to a trained model and its word error rate.

python 02_your_own_data.py --audio FOLDER --table texts.csv --output my_model

The table has the columns `file` (relative to FOLDER) and `text`. One file in ten is held out for validation. After an
interruption the same command continues. Further options go to training: --epochs 20 --llm.source ...
"""

import argparse
import csv
import hashlib
import os
from pathlib import Path

from audiolm_lite import AudioLM
from audiolm_lite.config.errors import UserError, run_command
from audiolm_lite.data.manifest import read_manifest, write_manifest
from audiolm_lite.evaluation.metrics.asr import score_asr
from audiolm_lite.training.run import train_stage

HERE = Path(__file__).parent
INSTRUCTION = "transcribe the speech."  # the small LLM of MiniASQA knows lower case only


def main(argv: list[str]) -> None:
    """Write manifests, train, and print the word error rate on the held-out files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options, training = parser.parse_known_args(argv)
    audio, output = options.audio.resolve(), options.output.resolve()

    rows = read_table(options.table, audio)
    for split in ("train", "valid"):
        write_manifest(output / f"{split}.jsonl", [row for row in rows if row["split"] == split])

    os.chdir(HERE)  # the sources in the YAML file are relative to this folder
    train_stage(["hparams/own_data.yaml", "--data_folder", str(output), *training])

    model = AudioLM.from_pretrained(output / "results/stage_1")
    valid = read_manifest(output / "valid.jsonl")
    answers = model.transcribe([row["audio"] for row in valid])
    for row, answer in zip(valid[:5], answers):
        print(f"{Path(row['audio']).name}\n  reference:   {row['target']}\n  transcribed: {answer}")
    score = score_asr([row["target"] for row in valid], list(answers))
    print(f"word error rate on {len(valid)} held-out files: {score['wer']:.1%}")
    print(f"model: {output / 'results/stage_1'}")


def read_table(table: Path, audio: Path) -> list[dict]:
    """Manifest rows of the table, with one file in ten in the split "valid"."""
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if missing := {"file", "text"} - set(reader.fieldnames or ()):
            raise UserError(f"{table}: no column {', '.join(sorted(missing))}; the first line must name file and text")
        entries = [(line["file"], line["text"].strip().lower()) for line in reader]
    if len(entries) < 2:
        raise UserError(f"{table}: {len(entries)} rows; at least two are needed, one to train and one to validate")
    # The files with the smallest hashes are held out: the same ones in every run, whatever the order of the table.
    by_hash = sorted(entries, key=lambda entry: hashlib.sha256(entry[0].encode()).hexdigest())
    held_out = {name for name, _ in by_hash[: max(1, len(entries) // 10)]}
    return [
        {
            "id": name,
            "audio": str(audio / name),
            "task": "asr",
            "instruction": INSTRUCTION,
            "target": text,
            "dataset": audio.name,
            "split": "valid" if name in held_out else "train",
        }
        for name, text in entries
    ]


if __name__ == "__main__":
    run_command(main)
