"""Losses chunk by chunk equal those over all logits, in value, count and every gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from audiolm_lite.modeling.chunked_loss import chunk_positions, chunked_loss, cross_entropy

DIM, VOCABULARY = 8, 40


def run(chunk, positions, trainable, scale=1.0):
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(DIM, DIM), nn.Linear(DIM, VOCABULARY)).requires_grad_(trainable)
    hidden = torch.randn(positions, DIM, requires_grad=True)
    targets = torch.randint(VOCABULARY, (positions,))
    total, count = chunked_loss(cross_entropy, head, 2 * hidden, [targets], chunk)
    (scale * total).backward()
    return total.detach(), count, hidden.grad, *(parameter.grad for parameter in head.parameters() if trainable)


@settings(max_examples=30, deadline=None)
@given(positions=st.integers(0, 30), chunk=st.integers(1, 31), trainable=st.booleans(), scale=st.sampled_from([1, 0.3]))
def test_any_chunk_gives_the_same_loss_and_gradients(positions, chunk, trainable, scale):
    for own, whole in zip(
        run(chunk, positions, trainable, scale), run(positions + 1, positions, trainable, scale), strict=True
    ):
        torch.testing.assert_close(own, whole, rtol=1e-5, atol=1e-5)


def test_no_more_logits_than_a_chunk_ever_exist():
    sizes = []
    head = nn.Linear(DIM, VOCABULARY)
    head.register_forward_hook(lambda *args: sizes.append(len(args[-1])))
    hidden = torch.randn(10, DIM, requires_grad=True)
    targets = torch.randint(VOCABULARY, (10,))
    total, count = chunked_loss(cross_entropy, head, hidden, [targets], 4)
    with torch.no_grad():
        again, same = chunked_loss(cross_entropy, head, hidden, [targets], 4)
    assert sizes == [4, 4, 2] * 2
    torch.testing.assert_close(again, total)
    assert same == count and not again.requires_grad and total.requires_grad and not count.requires_grad


def test_autocast_runs_the_head_in_its_precision():
    head = nn.Linear(DIM, VOCABULARY)
    hidden = torch.randn(9, DIM, requires_grad=True)
    targets = torch.randint(VOCABULARY, (9,))
    results = []
    for chunk in (2, 9):
        hidden.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            total, _ = chunked_loss(cross_entropy, head, hidden, [targets], chunk)
        total.backward()
        results.append((total.detach(), hidden.grad))
    for own, whole in zip(*results):
        torch.testing.assert_close(own, whole, rtol=1e-2, atol=1e-2)
    assert results[0][0].dtype == torch.float32


@pytest.mark.parametrize(("vocabulary", "chunk", "positions"), [(131072, 0, 512), (2**30, 0, 1), (100, 7, 7)])
def test_default_chunk_fits_the_vocabulary(vocabulary, chunk, positions):
    assert chunk_positions(vocabulary, chunk) == positions
