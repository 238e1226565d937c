"""Pieces of a word inside a sentence, for vocabularies with and without a space in their pieces."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from audiolm_lite.language.pieces import pieces_inside
from tests.tiny import byte_tokenizer, word_tokenizer


def sentencepiece(scheme):
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", "▁", "a", "y", "▁a", "▁y", "▁ya", "ya"])}
    merges = [("▁", "a"), ("▁", "y"), ("▁y", "a"), ("y", "a")]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=True)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_a_word_has_the_space_before_it_once(scheme):
    tokenizer = sentencepiece(scheme)
    assert tokenizer.convert_ids_to_tokens(pieces_inside("ya", tokenizer)) == ["▁ya"]
    assert tokenizer.convert_ids_to_tokens(pieces_inside("ya ya", tokenizer)) == ["▁ya", "▁ya"]


@pytest.mark.parametrize("tokenizer", [byte_tokenizer(), word_tokenizer(["<unk>", "yes", "no"])])
@pytest.mark.parametrize("text", ["yes", "yes no", "n", ""])
def test_vocabularies_without_spaces_in_their_pieces_give_the_pieces_of_the_text_alone(tokenizer, text):
    assert pieces_inside(text, tokenizer) == tokenizer.encode(text, add_special_tokens=False)


def test_a_tokenizer_that_does_not_split_at_spaces_gives_the_pieces_of_the_text_alone():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"?": 0, "yes": 1}, unk_token="?")))
    assert pieces_inside("yes", tokenizer) == [1]
