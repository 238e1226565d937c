"""Licences of pretrained models: their files, and the identifiers that their model cards state."""

import re
from pathlib import Path

from audiolm_lite.backbones.known import KNOWN

# Words in the names of such files; "?" is any character or none.
_WORDS = (
    *("license", "licence", "notice", "copying", "copyright", "patents", "agreement", "eula"),
    *("use?policy", "usage?policy", "acceptable?use", "terms?of?use"),
)
_LICENCE = re.compile("|".join(word.replace("?", ".?") for word in _WORDS), re.IGNORECASE)
# The same as patterns of the hub's client, which distinguish upper and lower case.
LICENCE_PATTERNS = tuple(
    "*" + "".join("*" if letter == "?" else f"[{letter}{letter.upper()}]" for letter in word) + "*" for word in _WORDS
)
# Endings of files that a library may execute or read as a model; no licence has them.
_NO_TEXT = re.compile(
    r"\.(bin|pth?|pt2|pkl|pickle|ckpt|model|py[cd]?|so|dll|exe|sh|bat|h5|msgpack|gguf|onnx|jinja|ya?ml|json|"
    r"safetensors|np[yz]|zip|tar|gz|whl)$",
    re.IGNORECASE,
)


def is_licence(name: str) -> bool:
    """Whether a file's name is that of a licence, notice or use policy.

    Examples
    --------
    >>> [name for name in ("LICENSE", "Notice.html", "USE_POLICY.md", "license.bin", "vocab.txt") if is_licence(name)]
    ['LICENSE', 'Notice.html', 'USE_POLICY.md']
    """
    return bool(_LICENCE.search(name)) and not _NO_TEXT.search(name)


def licence_of(source: str) -> str | None:
    """Identifier of a pretrained model's licence: of a backbone known by name, or from the model card's metadata.

    Parameters
    ----------
    source : str
        Name of a backbone, folder, file, or name on the Hugging Face hub.

    Returns
    -------
    str or None
        None if it is not stated, or the hub cannot be reached.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "README.md").write_text("---\\nlicense: other\\nlicense_name: llama3.2\\n---\\n# Llama")
    >>> licence_of(str(folder)), licence_of("whisper-tiny.en")
    ('llama3.2', 'MIT')
    """
    path = Path(source)
    if source in KNOWN and not path.is_dir():
        return KNOWN[source].licence
    card = path / "README.md"
    if not path.exists():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        try:
            card = Path(hf_hub_download(source, "README.md"))
        except (HfHubHTTPError, HFValidationError, OSError, ValueError):
            return None
    if not card.is_file():
        return None
    # The metadata is YAML. Two of its lines are read as text, so that no YAML of a stranger is parsed.
    metadata = re.match(r"---\r?\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    if metadata is None:
        return None
    stated = dict(
        re.findall(r"^(license|license_name):[ \t]*['\"]?([\w.+ -]+?)['\"]?[ \t]*\r?$", metadata[1], re.MULTILINE)
    )
    return stated.get("license_name") or stated.get("license")
