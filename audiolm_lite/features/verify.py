"""Check a feature store for damage: audiolm-lite verify FOLDER"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from audiolm_lite.features.key_table import FILE, open_key_table
from audiolm_lite.features.store_format import find_damage, read_header, read_index


def verify(folder: str | Path) -> dict[str, str]:
    """Read every shard of a store, and make the table of its keys again.

    Returns
    -------
    dict
        Damaged shards and what is wrong with each; the next extraction computes their clips again.

    Raises
    ------
    FeatureStoreError
        There is no store in the folder, or one of another format.

    Examples
    --------
    >>> import torch
    >>> from audiolm_lite.features.writer import FeatureWriter
    >>> folder = getfixture("tmp_path")
    >>> with FeatureWriter(folder, {"type": "example"}) as writer:
    ...     writer.add("a.flac", torch.ones(2, 50, 8))
    >>> verify(folder)
    {}
    >>> (folder / "features-00-00000.safetensors").unlink()
    >>> verify(folder)
    {'features-00-00000.safetensors': 'is missing'}
    """
    folder = Path(folder)
    read_header(folder)
    lines = read_index(folder)
    faults = {line["shard"]: find_damage(folder, line, contents=True) for line in lines}
    (folder / FILE).unlink(missing_ok=True)
    open_key_table(folder, [line for line in lines if not faults[line["shard"]]])
    return {shard: fault for shard, fault in faults.items() if fault}


def main(argv: Sequence[str]) -> int:
    """Print the damaged shards of a store; the exit status is 1 if there are any."""
    parser = argparse.ArgumentParser(prog="audiolm-lite verify", description=__doc__)
    parser.add_argument("folder", type=Path, help="feature store, the feature_folder of a recipe")
    folder = parser.parse_args(argv).folder
    damaged = verify(folder)
    for shard, fault in damaged.items():
        print(f"{shard}: {fault}")
    result = f"{len(damaged)} shards are damaged; run the extraction again" if damaged else "no damage"
    print(f"{folder}: {result}")
    return int(bool(damaged))
