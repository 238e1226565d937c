"""Sharing a finished model on the Hugging Face hub, with a model card."""

import json
from pathlib import Path

from audiolm_lite.config.registry import sources
from audiolm_lite.hub.folder import CONFIG, ModelFolderError, read_config
from audiolm_lite.hub.load import load_model
from audiolm_lite.sharing.model_card import model_card


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = False) -> str:
    """Upload a model's folder with a model card to the Hugging Face hub; returns the address.

    The folder is loaded first, so that nothing broken is published. An existing `README.md` is kept; otherwise one is
    generated, with the results in `metrics.json` where the folder has them. Log in first: `hf auth login`.

    Raises
    ------
    ModelFolderError
        The folder does not load, or names a pretrained model by a path of this machine.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    load_model(folder)
    config = read_config(folder)
    for source in sources(config["encoder"]) + sources(config["llm"]):
        if Path(source).is_absolute():
            raise ModelFolderError(
                f"{folder / CONFIG}: source {source} is a path of this machine; "
                "write the model again with bundle=True, or name a repository of the hub"
            )
    if not (folder / "README.md").exists():
        metrics = folder / "metrics.json"
        results = json.loads(metrics.read_text(encoding="utf-8")) if metrics.is_file() else None
        (folder / "README.md").write_text(model_card(config, repo_id, results), encoding="utf-8")
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    # A stage's output folder has checkpoints and logs beside the model.
    own = [CONFIG, "README.md", "metrics.json", *config["tensors"], "lora/*", "llm/*", "encoder/*"]
    return str(api.upload_folder(folder_path=folder, repo_id=repo_id, allow_patterns=own))
