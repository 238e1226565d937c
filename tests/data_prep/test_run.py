"""The prepare command: its YAML file names the corpus reader, whose options are further keys."""

from pathlib import Path

import pytest

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.data.manifest import read_manifest
from data_prep import prepare, run
from tests.data_prep import miniatures


def yaml_file(folder: Path, *lines: str) -> str:
    miniatures.write_lines(folder / "prepare.yaml", "seed: 1", f"output_folder: {folder}/out", *lines)
    return str(folder / "prepare.yaml")


FEATURES = ("feature_folder: features", "encoder: null")
FSD50K = "corpus: !name:data_prep.corpora.fsd50k.read_fsd50k"


def test_the_reader_of_the_file_is_used(tmp_path):
    folder = miniatures.fsd50k(tmp_path / "corpus")
    assert run.main([yaml_file(tmp_path, FSD50K, *FEATURES), "--data_folder", str(folder)]) == 0
    assert {row["dataset"] for row in read_manifest(tmp_path / "out/train.jsonl")} == {"FSD50K"}


def test_a_reader_of_ones_own_gets_its_keys_by_name(tmp_path, monkeypatch):
    lines = [
        "from pathlib import Path",
        "from audiolm_lite.config.keys import Key",
        "from data_prep.clips import Clip",
        'KEYS = {"folder": Key("Folder of the clips.", str), "speaker": Key("Name.", str, "unknown")}',
        "def read(folder, speaker, seed, suffix='.wav'):",
        "    for split in ('train', 'valid', 'test'):",
        "        file = Path(folder) / f'{split}{suffix}'",
        "        yield Clip('Mine', split, file, split, split, speaker=speaker, text=f'seed {seed}')",
    ]
    miniatures.write_lines(tmp_path / "my_corpus.py", *lines)
    for split in prepare.SPLITS:
        miniatures.write_audio(tmp_path / f"{split}.wav")
    monkeypatch.syspath_prepend(tmp_path)
    file = yaml_file(tmp_path, "corpus: !name:my_corpus.read", *FEATURES)
    assert run.main([file, "--folder", str(tmp_path)]) == 0
    (row,) = read_manifest(tmp_path / "out/test.jsonl")
    assert (row["speaker"], row["target"]) == ("unknown", "seed 1")
    with pytest.raises(ConfigError, match="unknown option --suffix"):
        run.main([file, "--folder", str(tmp_path), "--suffix", ".flac"])
    miniatures.write_lines(tmp_path / "no_keys.py", "def read(folder): ...")
    with pytest.raises(ConfigError, match="argument 'folder' of the reader has no key"):
        run.main([yaml_file(tmp_path, "corpus: !name:no_keys.read", *FEATURES)])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("data_folder: x", 'prepare.yaml: no key "corpus", which names the reader'),
        ("corpus: !name:data_prep.corpora.fsd51k.read_fsd51k", "corpus: cannot import data_prep.corpora.fsd51k"),
        ("corpus: !name:data_prep.corpora.fsd50k.read_fsd51k", "read_fsd51k"),
        (f"{FSD50K}\nsubset: small", "unknown key 'subset'"),
        (f"{FSD50K}\nfilters: 3", "filters is 3"),
        (FSD50K, "key 'data_folder' is missing"),
    ],
)
def test_mistakes_in_the_file_are_errors_that_name_it(tmp_path, line, message):
    with pytest.raises(ConfigError, match=message):
        run.main([yaml_file(tmp_path, line, *FEATURES)])
    assert not (tmp_path / "out").exists()


def test_help_lists_the_keys_of_the_corpus(tmp_path, capsys):
    file = yaml_file(tmp_path, "corpus: !name:data_prep.corpora.fma.read_fma", *FEATURES)
    for argv, listed in (([file, "--help"], True), (["--help"], False)):
        with pytest.raises(SystemExit) as end:
            run.main(argv)
        shown = capsys.readouterr().out
        assert end.value.code == 0 and "--max_rejects" in shown
        assert ("--subset small|medium|large|full" in shown) == listed


def test_a_command_without_a_file_is_an_error():
    with pytest.raises(ConfigError, match="no YAML file given"):
        run.main([])
