"""Fixtures of the tests of this folder."""

import pytest

from tests.tiny import byte_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    """A tokenizer with one token per byte."""
    return byte_tokenizer(eos_token="<|eos|>", bos_token="<|bos|>")
