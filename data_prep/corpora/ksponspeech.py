"""KsponSpeech (Bang et al. 2020, doi 10.3390/app10196936): 969 hours of spontaneous Korean dialogue from AI Hub."""

from collections.abc import Iterator
from pathlib import Path

from audiolm_lite.config.keys import Key
from data_prep.clips import Clip, CorpusError, read_lines, require

SOURCE = "https://aihub.or.kr (한국어 음성, dataset 123; a Korean account is needed)"
KEYS = {
    "data_folder": Key("Folder with KsponSpeech_01 ... KsponSpeech_05, _eval and _scripts.", str, result=False),
}
PARTS = {"train": "train", "dev": "valid", "eval_clean": "test", "eval_other": "test"}


def read_ksponspeech(data_folder: str | Path, parts: tuple[str, ...] = tuple(PARTS)) -> Iterator[Clip]:
    """Read the publisher's lists of utterances.

    Parameters
    ----------
    data_folder : str or Path
        Contains KsponSpeech_01 ... KsponSpeech_05, KsponSpeech_eval and KsponSpeech_scripts/<part>.trn, whose lines are
        "KsponSpeech_01/KsponSpeech_0001/KsponSpeech_000001.pcm :: transcript". The archives of the lists and of the
        evaluation audio have no top folder, so <part>.trn, eval_clean/ and eval_other/ may also be in the folder
        itself. Audio is headerless PCM: 16 kHz, 16 bit, little endian. Copies converted to .wav or .flac are not read.
    parts : tuple of str
        One or more of train, dev, eval_clean, eval_other.

    Yields
    ------
    Clip
        With the transcript as published: spelling and pronunciation as (3시)/(세 시), marks of breath and noise (b/ n/
        l/ o/ u/), of fillers (/), repetition (+) and doubt (*). The normalisation steps in the recipe's YAML file
        convert it to plain text. The corpus names no speakers: the publisher's split is kept, and each file is a group.

    Raises
    ------
    CorpusError
        A list is missing or a line is not in its format.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> line = "KsponSpeech_05/KsponSpeech_0620/KsponSpeech_620001.pcm :: b/ 아/ (3시)/(세 시)"
    >>> _ = (folder / "dev.trn").write_text(line, encoding="utf-8")
    >>> [(clip.dataset, clip.id, clip.split, clip.text) for clip in read_ksponspeech(folder, ("dev",))]
    [('KsponSpeech-dev', 'KsponSpeech_620001', 'valid', 'b/ 아/ (3시)/(세 시)')]
    """
    folder = Path(data_folder)
    lists = "" if any((folder / f"{part}.trn").exists() for part in parts) else "KsponSpeech_scripts/"
    require(folder, [f"{lists}{part}.trn" for part in parts], "KsponSpeech", SOURCE)
    bare_eval = not (folder / "KsponSpeech_eval").is_dir()
    for part in parts:
        for path, text in _lines(folder / f"{lists}{part}.trn"):
            yield Clip(
                dataset=f"KsponSpeech-{part}",
                id=Path(path).stem,
                audio=folder / (path.removeprefix("KsponSpeech_eval/") if bare_eval else path),
                split=PARTS[part],
                group=Path(path).stem,
                language="ko",
                text=text,
            )


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yield (path, transcript) of each line; copies of the lists are in UTF-8 or in the encoding of Korean Windows."""
    for number, line in read_lines(file, "utf-8-sig", "cp949"):
        path, mark, text = line.partition(" :: ")
        if not mark:
            raise CorpusError(f'{file}, line {number}: no " :: " between path and text; download it again')
        yield path.strip(), text.strip()
