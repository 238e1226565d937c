"""The transcripts of an evaluation as a result file of the Open ASR Leaderboard, and their speed.

The leaderboard's scripts (github.com/huggingface/open_asr_leaderboard) score all files of a folder that are named
MODEL_<model>_DATASET_<data set>_<split>.jsonl.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from audiolm_lite.config.errors import UserError
from audiolm_lite.evaluation.metrics.normalisers import make_normaliser
from audiolm_lite.evaluation.runner import PREDICTIONS
from audiolm_lite.storage.atomic import write_text


def leaderboard_rows(lines: Sequence[Mapping[str, Any]], rules: str = "open_asr") -> list[dict[str, Any]]:
    """Convert lines of predictions.jsonl.

    Parameters
    ----------
    lines : sequence of mapping
        Transcripts of one task under one control.
    rules : str
        "open_asr": texts as they are, which today's scripts normalise. "open_asr_2025": the scripts before did not, so
        texts are normalised and rows with an empty reference are left out.

    Returns
    -------
    list of dict
        `audio_filepath`, `duration` (s), `time` (s; None if the encoder was not timed, as with stored features),
        `text`, `pred_text`.

    Examples
    --------
    >>> line = {"audio": "a.wav", "duration": 2.0, "time": 0.5, "encoder": True, "language": "en"}
    >>> leaderboard_rows([{**line, "target": "It's a dog.", "prediction": "a dog"}], rules="open_asr_2025")
    [{'audio_filepath': 'a.wav', 'duration': 2.0, 'time': 0.5, 'text': 'it is a dog', 'pred_text': 'a dog'}]
    """
    rows = []
    for line in lines:
        texts = line["target"], line["prediction"]
        if rules == "open_asr_2025":
            normalise = make_normaliser(rules, line["language"])
            texts = normalise(texts[0]), normalise(texts[1])
            if not texts[0]:
                continue
        time = line["time"] if line["encoder"] else None
        entry = {"audio_filepath": line["audio"], "duration": line["duration"], "time": time}
        rows.append({**entry, "text": texts[0], "pred_text": texts[1]})
    return rows


def real_time_factor(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds of audio per second of transcription (RTFx); None if a duration or time is unknown.

    Examples
    --------
    >>> real_time_factor([{"duration": 2.0, "time": 0.5}, {"duration": 4.0, "time": 1.0}])
    4.0
    """
    durations, times = ([row[name] for row in rows] for name in ("duration", "time"))
    return sum(durations) / sum(times) if rows and all(durations) and all(times) else None


def main(argv: list[str]) -> None:
    """Write the result file of an evaluation next to its predictions, and print its path and RTFx.

    Raises
    ------
    UserError
        The folder has no finished evaluation, or none with transcripts of that task.
    """
    parser = argparse.ArgumentParser(description="An evaluation as a result file of the Open ASR Leaderboard.")
    parser.add_argument("folder", type=Path, help="output_folder of evaluate.py")
    parser.add_argument("--model", required=True, help="name of the model, such as name/model")
    parser.add_argument("--dataset", required=True, help="path and name of the data set on the hub, joined by _")
    parser.add_argument("--split", default="test")
    parser.add_argument("--task", default="asr", help="task of the rows")
    parser.add_argument("--rules", choices=("open_asr", "open_asr_2025"), default="open_asr", help="scripts that score")
    options = parser.parse_args(argv)
    file = options.folder / PREDICTIONS
    if not file.is_file():
        raise UserError(f"{file}: no such file; name the output_folder of a finished evaluation")
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]
    chosen = [line for line in lines if line["control"] == "normal" and line["task"] == options.task]
    if not chosen or "encoder" not in chosen[0]:
        found = sorted({line["task"] for line in lines})
        raise UserError(
            f"{file}: no timed answers of the task {options.task!r}; evaluate again, or set --task to one of "
            f"{', '.join(found)}"
        )
    rows = leaderboard_rows(chosen, options.rules)
    name = f"MODEL_{options.model}_DATASET_{options.dataset}_{options.split}.jsonl".replace("/", "-")
    write_text(options.folder / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    speed = real_time_factor(rows)
    unknown = "unknown: with stored features the encoder is not timed; evaluate with feature_folder: null"
    print(f"{options.folder / name}: {len(rows)} rows, RTFx {unknown if speed is None else f'{speed:.2f}'}")
