"""Build the API reference from the docstrings: python tools/api_reference.py [FOLDER] (default: build/api).

Open FOLDER/index.html afterwards. A warning, such as a module that cannot be imported, ends the build with an error.
"""

import sys
import warnings
from pathlib import Path

import pdoc

ROOT = Path(__file__).resolve().parent.parent


def main(folder: Path) -> None:
    """Write one HTML page per module of the two packages, an index and a search index."""
    sys.path.insert(0, str(ROOT))  # the packages of this working tree, whatever is installed
    warnings.filterwarnings("error", module=r"pdoc\.")
    pdoc.render.configure(docformat="numpy", include_undocumented=False)
    pdoc.pdoc("audiolm_lite", "data_prep", output_directory=folder)
    print(f"API reference: {folder / 'index.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build/api")
