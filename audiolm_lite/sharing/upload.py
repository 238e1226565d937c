"""Uploading a model folder to the Hugging Face hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiolm_lite.backbones.licences import licence_of
from audiolm_lite.backbones.untrusted import read_json
from audiolm_lite.config.registry import sources
from audiolm_lite.hub.contents import TENSOR_FILES
from audiolm_lite.hub.folder import CONFIG_FILE, ModelFolderError, read_config
from audiolm_lite.hub.load import load_model
from audiolm_lite.sharing.model_card import model_card
from audiolm_lite.storage.atomic import write_text


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = False) -> str:
    """Upload a model folder with a model card to the Hugging Face hub. Log in first: `hf auth login`.

    The model is loaded first, so that no broken model is published. An existing `README.md` is kept; otherwise a model
    card is written, with the results of `metrics.json` if the folder has one.

    Parameters
    ----------
    folder : str or path
        The model folder. Only the model's own files are uploaded, no checkpoints and logs. Their names are those of the
        format, never patterns from the folder.
    repo_id : str
        Name on the hub, "owner/name"; created if it does not exist.
    private : bool
        Create a private repository.

    Returns
    -------
    str
        Address of the upload.

    Raises
    ------
    ModelFolderError
        The folder does not load, or names a pretrained model by a path of this machine.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    load_model(folder)
    config = read_config(folder)
    require_named_sources(config, folder)
    if not (folder / "README.md").exists():
        metrics = folder / "metrics.json"
        results = read_json(metrics) if metrics.is_file() else None
        licences = {source: licence_of(source) for source in sources(config["encoder"]) + sources(config["llm"])}
        write_text(folder / "README.md", model_card(config, repo_id, results, licences=licences))
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    # `load_model` has refused folders in which lora, llm and encoder have other files than those of the format.
    tensors = [name for name in TENSOR_FILES if name in config["tensors"]]
    files = [CONFIG_FILE, "README.md", "metrics.json", *tensors, "lora/*", "llm/*", "encoder/*"]
    return str(api.upload_folder(folder_path=folder, repo_id=repo_id, allow_patterns=files))


def require_named_sources(config: Mapping[str, Any], folder: Path) -> None:
    """Check that a model can be loaded on other machines.

    Raises
    ------
    ModelFolderError
        The configuration, of the model in `folder`, names a pretrained model by a path of this machine.

    Examples
    --------
    >>> require_named_sources({"encoder": {"source": "/data/whisper"}, "llm": {}}, Path("model"))
    Traceback (most recent call last):
    audiolm_lite.hub.folder.ModelFolderError: model/audiolm_lite.json: source /data/whisper is a path of this ...
    """
    for source in sources(config["encoder"]) + sources(config["llm"]):
        if Path(source).is_absolute():
            raise ModelFolderError(
                f"{folder / CONFIG_FILE}: source {source} is a path of this machine; "
                "save the model again with bundle=True, or write the name of a hub repository there"
            )
