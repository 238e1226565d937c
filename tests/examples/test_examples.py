"""Each example runs from start to end on a few short clips; what it prints is what its docstring promises."""

import csv
import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = ["--debug", "--device", "cpu"]


def load(name):
    """Import an example's module, whose file name begins with a number."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A folder with 12 tones and a table of texts, as a user has them."""
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "audio").mkdir()
    with (folder / "texts.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "text"])
        for number in range(12):
            time = np.arange(12_000 + 800 * number) / 16_000
            tone = 0.3 * np.sin(2 * np.pi * (200 + 60 * number) * time)
            soundfile.write(folder / "audio" / f"{number:02}.wav", tone, 16_000)
            table.writerow([f"{number:02}.wav", "Red River" if number % 2 else "green tree"])
    return folder


@pytest.fixture(scope="module")
def trained(recordings):
    """The output of the second example, which the others start from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(recordings)
        arguments = ["--audio", "audio", "--table", "texts.csv", "--output", "out", *SHORT]
        load("02_your_own_data").main(arguments)
    return recordings / "out"


def test_your_own_data_becomes_manifests_and_a_model(trained):
    rows = [json.loads(line) for line in (trained / "train.jsonl").read_text().splitlines()]
    valid = [json.loads(line) for line in (trained / "valid.jsonl").read_text().splitlines()]
    assert len(rows) == 11 and len(valid) == 1 and {row["target"] for row in rows} == {"red river", "green tree"}
    assert len((trained / "results/stage_1/losses.jsonl").read_text().splitlines()) == 2
    assert (trained / "results/stage_1/audiolm_lite.json").is_file()


def test_a_wrong_table_is_named(recordings, tmp_path):
    (tmp_path / "wrong.csv").write_text("name,text\na.wav,hello\n")
    example = load("02_your_own_data")
    with pytest.raises(example.UserError, match=r"wrong.csv: no column file"):
        example.main(["--audio", str(recordings / "audio"), "--table", str(tmp_path / "wrong.csv"), "--output", "x"])


@pytest.mark.parametrize("question", [[], ["--question", "what can be heard?"]])
def test_transcribe_prints_a_line_per_file(trained, recordings, capsys, question):
    files = [str(file) for file in sorted((recordings / "audio").iterdir())[:2]]
    answers = load("01_transcribe").main([str(trained / "results/stage_1"), *files, *question])
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == [f"{file}: {answer}" for file, answer in zip(files, answers, strict=True)]


def test_custom_adapter_trains(trained, capsys, monkeypatch):
    monkeypatch.chdir(EXAMPLES)
    load("03_custom_adapter").main([str(trained), *SHORT])
    loss = float(re.search(r"validation after training: {'loss': ([\d.]+)", capsys.readouterr().out)[1])
    assert 0 < loss < 12


def test_custom_brain_trains_to_other_weights(trained, capsys, monkeypatch):
    monkeypatch.chdir(EXAMPLES)
    load("04_custom_brain").main([str(trained), *SHORT])
    losses = dict(re.findall(r"(plain|dropping): {'loss': ([\d.]+)", capsys.readouterr().out))
    assert set(losses) == {"plain", "dropping"} and losses["plain"] != losses["dropping"]


def test_the_notebook_runs(monkeypatch):
    """Every code cell in order, as a notebook server runs them; a clip becomes a list of one answer."""
    monkeypatch.chdir(EXAMPLES)
    cells = json.loads((EXAMPLES / "05_tour.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "clear the outputs before committing"
            exec("".join(cell["source"]), names)
    assert len(names["answers"]) == 1 and names["tokens"].shape[1] == int(names["counts"])
