"""The CTC over an LLM's word pieces: loss, transcripts, and the tensors of a model folder."""

import pytest
import torch
from torch import nn

from audiolm_lite.modeling.ctc import NORM_WEIGHT, TEMPERATURE, CTCHead, check_head, required_tokens
from tests.tiny import word_tokenizer

WORDS = ["<unk>", "</s>", "yes", "no", "maybe", "so"]
PIECES = torch.tensor([2, 3, 5])


def make_head(dim=8):
    head = CTCHead(PIECES, nn.Embedding(len(WORDS), dim))
    nn.init.normal_(head.blank)
    return head


def test_the_loss_is_that_of_the_published_formula():
    """Compared with torch's CTC over scores that are computed here, piece by piece, without batches."""
    head, tokens, counts = make_head(), 3 * torch.randn(2, 6, 8), torch.tensor([6, 4])
    targets = [[2, 5, 5], [3]]
    expected = torch.zeros(())
    for row, count, ids in zip(tokens, counts.tolist(), targets):
        scores = torch.empty(count, 4)
        for n in range(count):
            unit = row[n] / row[n].norm()
            scores[n, 0] = unit @ head.blank + head.blank_bias
            for entry, vector in enumerate(head.directions, start=1):
                scores[n, entry] = nn.functional.cosine_similarity(unit, vector, dim=0) / TEMPERATURE
        entries = torch.tensor([PIECES.tolist().index(piece) + 1 for piece in ids])
        logits = scores.log_softmax(-1)[:, None]
        expected += nn.functional.ctc_loss(logits, entries[None], (count,), (len(ids),), reduction="sum")
        expected += NORM_WEIGHT * ((row[:count].norm(dim=-1) / head.norm - 1) ** 2).sum()
    loss = head.loss(tokens, counts, [head.entries(ids) for ids in targets])
    torch.testing.assert_close(loss, expected)


def test_loss_and_transcripts_depend_neither_on_padding_nor_on_the_batch():
    head, tokenizer = make_head(), word_tokenizer(WORDS)
    tokens, counts = torch.randn(3, 7, 8), torch.tensor([7, 3, 5])
    targets = [head.entries(ids) for ids in ([2, 3], [5], [])]
    clips = [(row[None, :count], torch.tensor([count])) for row, count in zip(tokens, counts.tolist())]
    padded = torch.cat([tokens, torch.full((3, 4, 8), 1e3)], dim=1)
    alone = sum(head.loss(*clip, [target]) for clip, target in zip(clips, targets))
    torch.testing.assert_close(head.loss(padded, counts, targets), alone)
    texts = [head.transcribe(*clip, tokenizer)[0] for clip in clips]
    assert any(texts) and head.transcribe(padded, counts, tokenizer) == texts


def test_a_target_that_does_not_fit_has_no_gradient():
    head, tokens = make_head(), torch.randn(1, 3, 8, requires_grad=True)
    assert required_tokens([2, 2, 2]) == 5
    head.loss(tokens, torch.tensor([3]), [head.entries([2, 2, 2])]).backward()
    assert head.blank.grad.abs().sum() == 0 and tokens.grad.isfinite().all()


def test_gradients_are_those_of_the_loss_over_all_pieces():
    torch.manual_seed(0)
    words = 60
    head = CTCHead(torch.arange(5, words), nn.Embedding(words, 8))
    nn.init.normal_(head.blank)
    tokens, counts = torch.randn(3, 12, 8, requires_grad=True), torch.tensor([12, 9, 2])
    targets = [torch.tensor(entries) for entries in ([7, 7, 50, 1], [3, 9], [4, 4])]  # the last one does not fit
    parameters = [tokens, head.blank, head.blank_bias]
    norms = [(row[:count].norm(dim=-1) / head.norm - 1).square().sum() for row, count in zip(tokens, counts.tolist())]
    lengths = torch.tensor([len(target) for target in targets])
    dense = nn.functional.ctc_loss(
        head(tokens).transpose(0, 1), torch.cat(targets), counts, lengths, reduction="sum", zero_infinity=True
    )
    expected = torch.autograd.grad((dense + NORM_WEIGHT * sum(norms)) / 7, parameters)
    gradients = torch.autograd.grad(head.loss(tokens, counts, targets) / 7, parameters)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-5)


def test_transcripts_drop_blanks_and_repetitions():
    embedding = nn.Embedding.from_pretrained(torch.eye(len(WORDS) + 1)[: len(WORDS)])
    head, yes, so, silence = CTCHead(PIECES, embedding), *torch.eye(len(WORDS) + 1)[[2, 5, 6]]
    with torch.no_grad():
        head.blank.copy_(100 * silence)
    spoken = torch.stack([yes, yes, silence, yes, so, silence])[None]
    assert head.transcribe(spoken, torch.tensor([6]), word_tokenizer(WORDS)) == ["yes yes so"]
    assert head.transcribe(spoken, torch.tensor([2]), word_tokenizer(WORDS)) == ["yes"]


def test_the_head_is_rebuilt_from_its_tensors():
    embedding = nn.Embedding(len(WORDS), 8)
    head = CTCHead(PIECES, embedding)
    nn.init.normal_(head.blank)
    again, tokens = CTCHead.from_tensors(head.tensors(), embedding), torch.randn(1, 4, 8)
    assert torch.equal(head(tokens), again(tokens))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": torch.zeros(1)}, "has the tensors blank, blank_bias, more, pieces instead of"),
        ({"blank": torch.zeros(9)}, "blank has 9 dimensions, and the LLM's embeddings have 8"),
        ({"blank": torch.zeros(8, 1)}, "blank is torch.float32 with 2 dimensions"),
        ({"blank": torch.full((8,), float("nan"))}, "blank has numbers that are not finite"),
        ({"pieces": torch.tensor([2.0, 3.0])}, "pieces is torch.float32"),
        ({"pieces": torch.tensor([3, 2])}, "pieces are not ascending"),
        ({"pieces": torch.tensor([-1, 2])}, "pieces are not ascending"),
        ({"pieces": torch.zeros(0, dtype=torch.int64)}, "pieces are not ascending"),
        ({"pieces": torch.tensor([2, 6])}, "pieces has the id 6, and the LLM's vocabulary has 6 entries"),
    ],
)
def test_tensors_that_are_no_head_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_head({**make_head().tensors(), **change}, vocabulary=6, llm_dim=8)
