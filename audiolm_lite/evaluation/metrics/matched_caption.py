"""Sound classes from captions: a second model maps each caption to one of the classes (as in LTU-AS).

This scores a model that was not trained to name classes on a classification test set such as ESC-50.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from audiolm_lite.backbones.fetch import resolve
from audiolm_lite.backbones.untrusted import check_modules, check_published
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.evaluation.metrics.classification import COLUMNS, score_labels
from audiolm_lite.evaluation.metrics.family import MetricFamily, check_lengths
from audiolm_lite.modeling.masks import valid_mask

# Texts of a class; an underscore in the names of a corpus becomes a space.
LABEL_TEXT = "The sound of {label}."
QUESTION = "A recording is described as: {caption}\nThe sound class that fits best is: "
BATCH = 64


def score_matched_caption(
    targets: Sequence[str], answers: Sequence[str], labels: Sequence[Sequence[str]], matcher: Mapping[str, Any]
) -> dict[str, Any]:
    """Score captions as answers to "which class?", mapped by a second model.

    Parameters
    ----------
    targets : sequence of str
        The correct class of each item.
    answers : sequence of str
        Captions. An empty one matches no class and is wrong.
    labels : sequence of sequences of str
        The classes that each item's caption is mapped to.
    matcher : mapping
        `{type: embedding, source: ...}`: the class with the nearest embedding (cosine), by sentence-transformers.
        `{type: llm, source: ...}`: the class with the highest mean log probability per token after `QUESTION`, by a
        causal LM. `source` is a folder, a backbone that is known by name ("all-minilm-l6-v2"), or a name on the
        Hugging Face hub.

    Returns
    -------
    dict
        The scores of `classification.score_classification`, and `matcher`.

    Raises
    ------
    ConfigError
        Another matcher, or one whose library is not installed.
    ValueError
        No items, or differing lengths.

    Examples
    --------
    >>> matcher = {"type": "embedding", "source": "sentence-transformers/all-MiniLM-L6-v2"}
    >>> scores = score_matched_caption(["dog"], [""], [["dog", "rain"]], matcher)  # no caption, so no model is loaded
    >>> scores["accuracy"], scores["unparsed"]
    (0.0, 1)
    """
    check_lengths("score_matched_caption", targets, answers)
    kinds = {"embedding": _by_embedding, "llm": _by_llm}
    if set(matcher) != {"type", "source"} or matcher["type"] not in kinds:
        raise ConfigError(f"matcher: expected {{type: embedding or llm, source: ...}}, got {dict(matcher)}")
    classes = sorted({label for group in labels for label in group})
    captions = sorted({answer for answer in answers if answer.strip()})
    scores = kinds[matcher["type"]](matcher["source"], captions, classes) if captions else torch.empty(0)
    row, column = ({text: i for i, text in enumerate(texts)} for texts in (captions, classes))

    def best(answer: str, group: Sequence[str]) -> str:
        return max(group, key=lambda label: float(scores[row[answer], column[label]]))

    pairs = zip(answers, labels, strict=True)
    predicted = [best(answer, group) if answer in row else None for answer, group in pairs]
    return {**score_labels(predicted, targets), "matcher": dict(matcher)}


def _by_embedding(source: str, captions: list[str], classes: list[str]) -> Tensor:
    """Cosine similarities [captions, classes]."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ConfigError(
            'matcher embedding needs sentence-transformers: pip install "audiolm_lite[captioning]"'
        ) from error
    source = resolve(source)
    check_published("matcher", source, ignore_code=True)
    check_modules("matcher", source)
    model = SentenceTransformer(source, trust_remote_code=False)
    texts = [LABEL_TEXT.format(label=label.replace("_", " ")) for label in classes]
    left, right = (
        model.encode(
            group, batch_size=BATCH, normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False
        )
        for group in (captions, texts)
    )
    return (left @ right.T).float().cpu()


@torch.no_grad()
def _by_llm(source: str, captions: list[str], classes: list[str]) -> Tensor:
    """Mean log probabilities per token [captions, classes]."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    check_published("matcher", source, ignore_code=True)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    llm = AutoModelForCausalLM.from_pretrained(source, dtype="auto", trust_remote_code=False, weights_only=True)
    llm = llm.to(device).eval()
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ends = [tokenizer.encode(label.replace("_", " "), add_special_tokens=False) for label in classes]
    scores = torch.empty(len(captions), len(classes))
    for number, caption in enumerate(captions):
        prompt = begin + tokenizer.encode(QUESTION.format(caption=caption), add_special_tokens=False)
        for start in range(0, len(classes), BATCH):
            block = ends[start : start + BATCH]
            longest = max(map(len, block))
            # Padded on the right: a causal model does not attend to later tokens.
            ids = torch.tensor([[*prompt, *end, *[0] * (longest - len(end))] for end in block], device=device)
            logits = llm(ids).logits[:, len(prompt) - 1 : -1].float().log_softmax(-1)
            tokens = ids[:, len(prompt) :]
            chosen = logits.gather(2, tokens[..., None])[..., 0]
            lengths = torch.tensor([len(end) for end in block], device=device)
            valid = valid_mask(lengths, longest)
            scores[number, start : start + len(block)] = ((chosen * valid).sum(1) / lengths).cpu()
    return scores


def score_rows(rows: Sequence[dict], answers: Sequence[str], matcher: Mapping[str, Any]) -> dict[str, Any]:
    """Score captions of rows with the fields `label`, the correct class, and `labels`, the classes to choose from.

    Examples
    --------
    >>> matcher = {"type": "embedding", "source": "sentence-transformers/all-MiniLM-L6-v2"}
    >>> score_rows([{"label": "dog", "labels": ["dog", "rain"]}], [""], matcher)["unparsed"]  # no caption
    1
    """
    return score_matched_caption([row["label"] for row in rows], answers, [row["labels"] for row in rows], matcher)


FAMILY = MetricFamily(score_rows, columns=COLUMNS)
