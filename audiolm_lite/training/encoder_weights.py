"""Whether the weights of an encoder block are those that a feature store was computed with.

Training on stored features does not need the encoder. Where it is on this machine, its weights are hashed once, and the
result is kept in the cache folder.
"""

import logging
from collections.abc import Mapping
from typing import Any

from audiolm_lite.backbones.digests import WORTH_STORING, source_bytes, source_digests
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.registry import build, map_sources, sources
from audiolm_lite.storage.cache import remembered
from audiolm_lite.training.run_identity import flatten

logger = logging.getLogger(__name__)


def require_same_weights(folder: str, config: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
    """Refuse features that an encoder with other weights has computed, even one of the same shape.

    Where the encoder is not on this machine or cannot be loaded, a warning says that its weights are not compared.

    Parameters
    ----------
    folder : str
        The feature store, for the message.
    config : mapping
        Encoder block, whose other entries agree with the store.
    fingerprint : mapping
        What the store was computed with.

    Raises
    ------
    ConfigError
        The weights differ.

    Examples
    --------
    >>> require_same_weights("features", {"type": "logmel"}, {"type": "logmel"})
    """
    stored = _weights(fingerprint)
    given = _encoder_weights(config) if stored and sources(config) else {}
    if different := [name for name, digest in given.items() if digest != stored.get(name, digest)]:
        name = different[0]
        raise ConfigError(
            f"{folder}: its features were computed by an encoder with other weights ({name} {stored[name]}) than those "
            f"of encoder source {', '.join(sources(config))} ({given[name]}). Use the encoder that prepare.py ran, or "
            "run prepare.py again into another feature_folder"
        )


def _encoder_weights(config: Mapping[str, Any]) -> dict[str, str]:
    """Names of the encoder's hashes in its identity -> hash; empty if it cannot be loaded here."""
    digests = source_digests(config, "encoder")
    named: list[str] = []

    def by_digest(source: str, where: str) -> str:
        named.append(where)
        return digests.get(where, source)

    key = map_sources(config, by_digest, "encoder")
    if not set(named) <= digests.keys():
        logger.warning("encoder: %s is not on this machine, so its weights are not compared", sources(config))
        return {}

    def compute() -> dict[str, str]:
        return _weights(build("encoders", dict(config)).identity())

    try:
        return compute() if source_bytes(config) < WORTH_STORING else remembered("encoders", key, compute)
    except Exception as error:  # such as a quantization that this machine lacks: the run does not need the encoder
        logger.warning("encoder: cannot be loaded here (%s), so its weights are not compared", error)
        return {}


def _weights(identity: Mapping[str, Any]) -> dict[str, str]:
    return {name: value for name, value in flatten(identity).items() if name.split(".")[-1] == "weights"}
