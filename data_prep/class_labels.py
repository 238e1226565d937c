"""Names of the classes that Hugging Face datasets store as numbers (`ClassLabel`)."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep.formats import FormatError

Names = dict[str, list[str]]  # column -> names of its classes


def class_names(folder: Path, file: Path, schema: pa.Schema) -> Names:
    """Names of the classes of each column that has any.

    Parameters
    ----------
    folder, file : Path
        The dataset, and one of its files.
    schema : pa.Schema
        Columns of the file. Its metadata has the names; where they were lost, `dataset_info.json` next to the file or
        the header of the dataset's README.md has them.

    Examples
    --------
    >>> features = {"label": {"names": ["dog", "rain"], "_type": "ClassLabel"}, "n": {"_type": "Value"}}
    >>> schema = pa.schema({"label": pa.int64(), "n": pa.int64()})
    >>> schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    >>> class_names(Path("d"), Path("d/a.parquet"), schema)
    {'label': ['dog', 'rain']}
    """
    text = (schema.metadata or {}).get(b"huggingface")
    if text is not None:
        features = (json.loads(text).get("info") or {}).get("features")
    elif (info := file.with_name("dataset_info.json")).is_file():
        features = json.loads(info.read_bytes()).get("features")
    else:
        features = _features_of_readme(folder, file)
    found = {name: _names(feature) for name, feature in (features or {}).items() if name in schema.names}
    return {name: names for name, names in found.items() if names}


def name_of_class(column: str, value: Any, names: list[str]) -> Any:
    """Name of a class, or the names in a list; None without a class (null, -1). Text stays as it is.

    Raises
    ------
    FormatError
        There is no class of this number.

    Examples
    --------
    >>> [name_of_class("label", value, ["dog", "rain"]) for value in (1, [0, 1], -1, "dog")]
    ['rain', ['dog', 'rain'], None, 'dog']
    """
    if isinstance(value, list):
        return [name_of_class(column, item, names) for item in value]
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if not -1 <= value < len(names):
        raise FormatError(f'field "{column}": {value} is no class; the dataset has names for 0 to {len(names) - 1}')
    return None if value == -1 else names[value]


def _names(feature: Any) -> list[str] | None:
    """Names of a feature that is a class or a list of classes."""
    if isinstance(feature, list):
        return _names(feature[0]) if feature else None
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") == "ClassLabel":
        return feature.get("names")
    return _names(feature.get("feature"))


def _features_of_readme(folder: Path, file: Path) -> dict[str, Any]:
    """Features in the header of README.md, of the configuration whose folder the file is in, or of the first."""
    infos = _read_header(folder / "README.md")
    own = [info for info in infos if info.get("config_name") in file.relative_to(folder).parts]
    features = {}
    for entry in (own or infos or [{}])[0].get("features") or []:
        kind = entry.get("sequence") or entry.get("list") or entry.get("dtype")
        names = kind.get("class_label", {}).get("names") if isinstance(kind, dict) else None
        if isinstance(names, dict):  # {'0': 'dog', '1': 'rain'}
            names = [str(names[key]) for key in sorted(names, key=int)]
        features[entry.get("name")] = {"_type": "ClassLabel", "names": names}
    return features


@lru_cache(maxsize=4)
def _read_header(readme: Path) -> list[dict[str, Any]]:
    """Entries `dataset_info` of a README.md; none if it has no such header."""
    import yaml

    if not readme.is_file():
        return []
    start, separator, rest = readme.read_text(encoding="utf-8").partition("---\n")
    if start.strip() or not separator:
        return []
    try:
        infos = (yaml.safe_load(rest.partition("\n---")[0]) or {}).get("dataset_info") or []
    except (yaml.YAMLError, AttributeError) as error:
        raise FormatError(f"{readme}: its header is not YAML ({error}); download it again") from error
    return infos if isinstance(infos, list) else [infos]
