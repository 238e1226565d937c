"""Sound classes by way of captions: a second text model maps each caption to one of the classes (LTU-AS).

So a model that was never asked for classes is scored on a classification test set such as ESC-50.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.evaluation.metrics.classification import score_labels
from audiolm_lite.modeling.masks import valid_mask

# What a class is embedded or asked for as; "_" of corpora's class names becomes a space.
LABEL_TEXT = "The sound of {label}."
QUESTION = "A recording is described as: {caption}\nThe sound class that fits best is: "
BATCH = 64


def score_matched_captions(
    targets: Sequence[str], answers: Sequence[str], labels: Sequence[Sequence[str]], matcher: Mapping[str, Any]
) -> dict:
    """Score captions as answers to "which class?", mapped by a second model.

    Parameters
    ----------
    targets : sequence of str
        The right class of each item.
    answers : sequence of str
        Captions; an empty one matches nothing and is wrong.
    labels : sequence of sequences of str
        The classes each item is to be mapped to.
    matcher : mapping
        `{type: embedding, source: ...}`: the class whose embedding is nearest (cosine), by sentence-transformers;
        `{type: llm, source: ...}`: the class that a causal LM gives the highest mean log probability a token after
        `QUESTION`. `source` is a name on the Hugging Face hub or a folder.

    Returns
    -------
    dict
        As `classification.score_classification`, and `matcher`.

    Raises
    ------
    ConfigError
        Another matcher, or one whose library is not installed.
    """
    kinds = {"embedding": _by_embedding, "llm": _by_llm}
    if set(matcher) != {"type", "source"} or matcher["type"] not in kinds:
        raise ConfigError(f"matcher: expected {{type: embedding or llm, source: ...}}, got {dict(matcher)}")
    classes = sorted({label for group in labels for label in group})
    captions = sorted({answer for answer in answers if answer.strip()})
    scores = kinds[matcher["type"]](matcher["source"], captions, classes) if captions else torch.empty(0)
    row, column = ({text: i for i, text in enumerate(texts)} for texts in (captions, classes))
    predicted = [
        max(group, key=lambda label, answer=answer: float(scores[row[answer], column[label]]))
        if answer in row
        else None
        for answer, group in zip(answers, labels, strict=True)
    ]
    return {**score_labels(predicted, targets), "matcher": dict(matcher)}


def _by_embedding(source: str, captions: list[str], classes: list[str]) -> Tensor:
    """Cosine similarities [captions, classes]."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ConfigError(
            'matcher embedding needs sentence-transformers: pip install "audiolm_lite[captioning]"'
        ) from error
    model = SentenceTransformer(source)
    texts = [LABEL_TEXT.format(label=label.replace("_", " ")) for label in classes]
    left, right = (
        model.encode(part, batch_size=BATCH, normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False)
        for part in (captions, texts)
    )
    return (left @ right.T).float().cpu()


@torch.no_grad()
def _by_llm(source: str, captions: list[str], classes: list[str]) -> Tensor:
    """Mean log probabilities a token [captions, classes]."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    llm = AutoModelForCausalLM.from_pretrained(source, dtype="auto", trust_remote_code=False).to(device).eval()
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ends = [tokenizer.encode(label.replace("_", " "), add_special_tokens=False) for label in classes]
    scores = torch.empty(len(captions), len(classes))
    for number, caption in enumerate(captions):
        prompt = begin + tokenizer.encode(QUESTION.format(caption=caption), add_special_tokens=False)
        for start in range(0, len(classes), BATCH):
            part = ends[start : start + BATCH]
            longest = max(map(len, part))
            # Padded on the right, where a causal model never looks from the classes' own tokens.
            ids = torch.tensor([[*prompt, *end, *[0] * (longest - len(end))] for end in part], device=device)
            logits = llm(ids).logits[:, len(prompt) - 1 : -1].float().log_softmax(-1)
            tokens = ids[:, len(prompt) :]
            chosen = logits.gather(2, tokens[..., None])[..., 0]
            lengths = torch.tensor([len(end) for end in part], device=device)
            valid = valid_mask(lengths, longest)
            scores[number, start : start + len(part)] = ((chosen * valid).sum(1) / lengths).cpu()
    return scores
