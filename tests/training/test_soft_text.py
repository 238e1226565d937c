"""Tests of soft text and of the closed-form initialisation of a projection."""

import numpy as np
import pytest
import torch

from audiolm_lite.training.alignment_init import _solve
from audiolm_lite.training.soft_text import LABEL_WEIGHT, ONSET_WEIGHT, soft_text


class Words:
    """A tokenizer whose pieces are the letters a to z and the comma."""

    def encode(self, text, add_special_tokens=True):
        return [ord(c) - ord("a") if c != "," else 26 for c in text]


def test_a_word_covers_the_tokens_in_which_it_is_spoken():
    soft = soft_text([("a", 0.2, 0.5)], [], tokens=4, token_seconds=0.2, tokenizer=Words())
    table = torch.eye(27)
    expected = torch.zeros(4, 27)
    expected[1, 0], expected[2, 0], expected[1, 26] = 1.0, 0.5, ONSET_WEIGHT
    torch.testing.assert_close(soft.embed(table), expected)


def test_pieces_split_a_word_and_labels_cover_every_token():
    soft = soft_text([("ab", 0.0, 0.4)], ["cd"], tokens=2, token_seconds=0.2, tokenizer=Words())
    out = soft.embed(torch.eye(27))
    assert out[0, 0] == pytest.approx(1.0) and out[1, 1] == pytest.approx(1.0)
    assert out[:, 2:4].numpy() == pytest.approx(np.full((2, 2), LABEL_WEIGHT / 2))


def test_words_after_the_end_are_ignored_and_silence_is_zero():
    soft = soft_text([("a", 0.9, 1.2)], [], tokens=3, token_seconds=0.2, tokenizer=Words())
    assert soft.embed(torch.eye(27)).abs().sum() == 0


def test_the_closed_form_solution_recovers_a_linear_map():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(500, 8, generator=generator, dtype=torch.float64)
    true = torch.nn.Linear(8, 5).double()
    projection = torch.nn.Linear(8, 5)
    with torch.inference_mode():
        explained = _solve(projection, inputs, true(inputs), ridge=1e-6)
    assert explained > 0.999999
    torch.testing.assert_close(projection.weight, true.weight.float(), rtol=0, atol=1e-5)
    torch.testing.assert_close(projection.bias, true.bias.float(), rtol=0, atol=1e-5)
