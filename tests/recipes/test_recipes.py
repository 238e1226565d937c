"""The commands of every recipe on a few clips, and the keys of every recipe's YAML files.

A CSV file in this folder lists the commands of a recipe in order: folder in recipes/, script, YAML file (or `-m module`
without a file), flags that make the run small ({tmp}: the test's folder, {real}: selections of real corpora, {mini}:
miniatures of corpora, {tiny}: tiny random models), and checks of the results in {tmp}, separated by spaces: a file that
must exist, or `file.json:key.key<value` with one of == < > >=.

The tests run recipes as they are: no test compares a recipe with a copy, so recipes can be edited freely.
"""

import csv
import importlib.util
import json
import operator
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from audiolm_lite.config import experiment
from audiolm_lite.config.errors import ConfigError
from tests.data_prep import miniatures

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
TABLES = {table.stem: list(csv.DictReader(table.open())) for table in sorted(Path(__file__).parent.glob("*.csv"))}
ROWS = {f"{row['recipe']}/{row['script']}-{row['hparams']}": row for rows in TABLES.values() for row in rows}
ROWS = {name: row for name, row in ROWS.items() if row["hparams"]}  # without modules
IN_ONE_PROCESS = """
import json, os, runpy, sys
for folder, sys.argv in json.loads(sys.argv[1]):
    os.chdir(folder)
    script, module = sys.argv[0], sys.argv[0].removeprefix("-m ")
    try:
        (runpy.run_path if script == module else runpy.run_module)(module, run_name="__main__")
    except SystemExit as end:
        if end.code not in (None, 0, 3):  # 3: some clips were rejected, as in miniatures
            raise
"""
PUBLISHED = "published"  # in place of models that are downloaded
COMPARE = {"==": operator.eq, "<": operator.lt, ">": operator.gt, ">=": operator.ge}


def flags_of(row: dict, **folders: Path) -> list[str]:
    return shlex.split(row["debug_flags"].format(**folders))


@pytest.mark.parametrize("name", TABLES)
def test_recipe_runs(name, tmp_path, request):
    """The commands of a README in order; each uses the results of those before."""
    rows = TABLES[name]
    folders = {"tmp": tmp_path, "mini": tmp_path / "mini"}
    flags = " ".join(row["debug_flags"] for row in rows)
    for corpus in set(re.findall(r"{mini}/(\w+)", flags)):
        getattr(miniatures, corpus)(folders["mini"] / corpus)
    if "{real}" in flags:
        folders["real"] = request.getfixturevalue("real_data")
    if "{tiny}" in flags:
        folders["tiny"] = request.getfixturevalue("tiny")
    if "{tiny}/bert" in flags:
        pytest.importorskip("sentence_transformers", reason='needs pip install "audiolm_lite[captioning]"')
    commands = [
        [row["script"], *([row["hparams"], "--debug"] if row["hparams"] else []), *flags_of(row, **folders)]
        for row in rows
    ]
    in_one_process = "{real}" in flags or "{mini}" in flags
    if in_one_process:
        # Imports take most of such a command's time.
        recipe_folders = [str(RECIPES / row["recipe"]) for row in rows]
        run(rows[0]["recipe"], "-c", IN_ONE_PROCESS, json.dumps(list(zip(recipe_folders, commands))))
    for row, command in zip(rows, commands):
        if not in_one_process:
            run(row["recipe"], *command)
        for check in row["checks"].split():
            assert_check(tmp_path, check, f"{name}.csv, {row['script']} {row['hparams']}")


def run(recipe: str, *arguments: str) -> None:
    """Start Python in the recipe's folder: one thread, the tree under test, no network."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=RECIPES / recipe, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def assert_check(folder: Path, check: str, where: str) -> None:
    match = re.fullmatch(r"([^:]+)(?::([\w.]+)(==|<|>=?)(.+))?", check)
    assert match, f"{where}: {check!r} is neither a file nor file.json:key.key<value"
    file, key, sign, expected = match.groups()
    assert (folder / file).is_file(), f"{where}: no {file}"
    if key:
        value = json.loads((folder / file).read_text(encoding="utf-8"))
        for part in key.split("."):
            assert part in value, f"{where}: {file} has no {part!r} of {key}, but {', '.join(value)}"
            value = value[part]
        assert COMPARE[sign](value, json.loads(expected)), f"{where}: {check}, but it is {value}"


def test_every_yaml_file_of_a_recipe_is_in_a_table():
    listed = {RECIPES / row["recipe"] / row["hparams"] for row in ROWS.values()}
    shipped = {*RECIPES.glob("*/hparams/*.yaml"), *RECIPES.glob("*/*/hparams/*.yaml")}
    assert shipped, "no recipes found"
    assert shipped == listed, f"not in a table: {shipped - listed}; not in recipes/: {listed - shipped}"


@pytest.fixture
def script_of(monkeypatch):
    """Return a function that imports the script of a row."""

    def load(row: dict) -> ModuleType:
        path = RECIPES / row["recipe"] / row["script"]
        monkeypatch.syspath_prepend(path.parent)
        spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_yaml_file_has_the_keys_of_its_script(row, script_of, tmp_path, monkeypatch):
    """No key is missing, unknown or of a wrong type, and the backbones in the file are part of the recipe."""

    class Parsed(Exception):
        pass

    script, checked = script_of(row), experiment._checked

    def only_parse(*arguments):
        raise Parsed(checked(*arguments))

    monkeypatch.setattr(experiment, "_checked", only_parse)  # the end of load_experiment, whoever calls it
    monkeypatch.chdir(RECIPES / row["recipe"])
    with pytest.raises(Parsed) as parsed:
        folders = {name: tmp_path / name for name in ("tmp", "real", "mini")}
        script.main([row["hparams"], *flags_of(row, **folders, tiny=PUBLISHED)])
    hparams = parsed.value.args[0]
    for block in ("encoder", "llm"):
        source = (hparams.get(block) or {}).get("source")
        if source and not source.startswith(PUBLISHED):
            assert (Path(source) / "config.json").is_file(), f"{block} source {source} is not part of the recipe"


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_misspelt_key_is_refused(row, script_of, tmp_path):
    """In the file and on the command line, with a suggestion, before anything is written."""
    main = script_of(row).main
    source = RECIPES / row["recipe"] / row["hparams"]
    text = source.read_text(encoding="utf-8")
    key = re.search(r"^([a-z]\w+):", text, re.MULTILINE).group(1)
    wrong = key[:-1] + "_" + key[-1]
    misspelt = tmp_path / source.name
    misspelt.write_text(text.replace(f"{key}:", f"{wrong}:", 1), encoding="utf-8")
    with pytest.raises(ConfigError, match=f"{source.name}: unknown key '{wrong}'; did you mean '{key}'"):
        main([str(misspelt)])
    with pytest.raises(ConfigError, match=f"unknown option --{wrong}; did you mean '{key}'"):
        main([str(source), f"--{wrong}", "1"])
    assert list(tmp_path.iterdir()) == [misspelt]
