"""Captions mapped to classes by a second model: an embedding model or a causal LM."""

import pytest
import torch

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.evaluation.metrics.matched_caption import QUESTION, _by_llm, score_matched_caption
from tests.tiny import tiny_bert, tiny_llm, word_tokenizer

CLASSES = ["dog", "rain", "church_bells"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "dog", "rain", "church", "bells", "the", "sound", "of", ".", "a", "barks"]


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(WORDS, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")


@pytest.fixture(scope="module")
def embedder(tmp_path_factory, tokenizer):
    """A sentence-transformers model that averages word embeddings, which are nearly orthogonal."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = tmp_path_factory.mktemp("embedder")
    sizes = {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 8, "max_position_embeddings": 32}
    bert = tiny_bert(len(WORDS), seed=0, **sizes)
    for name, parameter in bert.named_parameters():
        if "layer.0" in name and "LayerNorm" not in name:
            parameter.data.zero_()  # the block returns its input
        if "position" in name or "token_type" in name:
            parameter.data.zero_()
    bert.save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    # sentence-transformers adds mean pooling to the folder of a plain BERT
    sentence_transformers.SentenceTransformer(str(folder / "bert")).save(str(folder / "model"))
    return str(folder / "model")


def test_nearest_class_is_chosen(embedder):
    answers = ["a dog barks", "the rain", "bells of church", ""]
    targets = ["dog", "dog", "church_bells", "rain"]
    scores = score_matched_caption(targets, answers, [CLASSES] * 4, {"type": "embedding", "source": embedder})
    assert scores["accuracy"] == 0.5 and scores["unparsed"] == 1
    assert scores["per_class"]["dog"]["recall"] == 0.5 and scores["per_class"]["church_bells"]["f1"] == 1
    # only the item's own classes can be chosen
    scores = score_matched_caption(["rain"], ["a dog barks"], [["rain"]], {"type": "embedding", "source": embedder})
    assert scores["accuracy"] == 1


def test_causal_lm_ranks_the_classes_by_mean_log_probability(tmp_path, tokenizer):
    sizes = {"intermediate_size": 16, "num_hidden_layers": 1, "initializer_range": 0.5, "max_position_embeddings": 64}
    llm = tiny_llm(len(WORDS), seed=1, **sizes).eval()
    llm.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    scores = _by_llm(str(tmp_path), ["a dog", "rain"], CLASSES)
    prompt = tokenizer.encode(QUESTION.format(caption="rain"), add_special_tokens=False)
    bells = tokenizer.encode("church bells", add_special_tokens=False)
    with torch.no_grad():
        logits = llm(torch.tensor([prompt + bells])).logits[0].log_softmax(-1)
    expected = (logits[len(prompt) - 1, bells[0]] + logits[len(prompt), bells[1]]) / 2
    torch.testing.assert_close(scores[1, 2], expected)
    best = score_matched_caption(["dog"], ["rain"], [CLASSES], {"type": "llm", "source": str(tmp_path)})
    assert best["accuracy"] == float(scores[1].argmax() == 0)


def test_unknown_matchers_are_refused():
    for matcher in ({}, {"type": "magic", "source": "x"}, {"type": "llm"}):
        with pytest.raises(ConfigError, match="embedding or llm"):
            score_matched_caption(["dog"], ["dog"], [CLASSES], matcher)
