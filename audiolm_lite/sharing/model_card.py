"""The model card: the README.md of a published model."""

import json
from collections.abc import Mapping
from typing import Any

from audiolm_lite.backbones.known import KNOWN
from audiolm_lite.config.registry import sources
from audiolm_lite.evaluation.report import markdown_table

_CARD = """---
library_name: audiolm_lite
pipeline_tag: audio-text-to-text
tags: [audio, speech, audio-captioning]
{licence}{base_models}---
# {name}

A light audio language model, trained with audiolm_lite: it transcribes speech, describes sounds and answers questions.

| component | configuration |
|---|---|
| encoder | `{encoder}` |
| adapter | `{adapter}` |
| LLM | `{llm}` |

The prompt is `{template}`. Loading this folder reads safetensors and JSON only and runs no code from it{bases}.

```python
from audiolm_lite import AudioLM

model = AudioLM.from_pretrained("{repo_id}")
print(model.transcribe("speech.wav"))
print(model.caption("clip.wav"))
print(model.ask("clip.wav", "What can be heard?"))
```
"""
_RESULTS = """
## Results

Next to each score: the scores of the same items under the controls of the evaluation, such as without the clip's own
audio. Intervals are 95 % intervals over the test items.

{table}
"""
_LICENCES = """
## Licences

{own} They are used with

{backbones}
"""


def model_card(
    config: Mapping[str, Any],
    repo_id: str,
    metrics: Mapping[str, Any] | None = None,
    notes: str = "",
    licence: str | None = None,
    licences: Mapping[str, str | None] | None = None,
) -> str:
    """Write the text of a model card.

    Parameters
    ----------
    config : mapping
        Content of the model's `audiolm_lite.json`.
    repo_id : str
        Name on the hub, "owner/name", or of a released model.
    metrics : mapping, optional
        Content of the `metrics.json` that `evaluation.runner.evaluate` wrote.
    notes : str
        Markdown that follows the results, such as training data, commands and limits.
    licence : str, optional
        SPDX identifier of the licence of the trained tensors.
    licences : mapping, optional
        Source of a pretrained model -> its licence; None: unknown. Those of backbones that are known by name and of
        copies in the folder need not be given.

    Returns
    -------
    str
        Markdown with the metadata block of the hub.

    Examples
    --------
    >>> blocks = {"encoder": {"source": "openai/whisper-tiny"}, "adapter": {}, "llm": {"source": "me/llm"}}
    >>> card = model_card({**blocks, "template": "{audio}"}, "me/listener")
    >>> print("\\n".join(card.splitlines()[4:9]))
    base_model:
    - openai/whisper-tiny
    - me/llm
    ---
    # listener
    """
    named = [source for name in ("encoder", "llm") for source in sources(config[name])]
    known = {source: KNOWN[source] for source in named if source in KNOWN}
    copies = config.get("licences", {})
    base_models = [known[source].hub.repo if source in known else source for source in named if source not in copies]
    base_models = [source for source in [*base_models, *(copy["model"] for copy in copies.values())] if "/" in source]
    text = _CARD.format(
        licence=f"license: {licence.lower()}\n" if licence else "",
        base_models="".join(["base_model:\n", *(f"- {base}\n" for base in base_models)]) if base_models else "",
        name=repo_id.split("/")[-1],
        repo_id=repo_id,
        bases="" if all(source in copies for source in named) else ", nor from the models that it names",
        template=json.dumps(config["template"], ensure_ascii=False),
        **{name: json.dumps(config[name], ensure_ascii=False) for name in ("encoder", "adapter", "llm")},
    )
    text += _RESULTS.format(table=markdown_table(metrics)) if metrics else ""
    text += f"\n{notes.strip()}\n" if notes else ""
    own = f"The tensors of this model (adapter, LoRA) are under {licence}."
    if licence is None:
        own = "No licence has been chosen for the tensors of this model (adapter, LoRA)."
    rows = [_licence_row(source, config, dict(licences or {})) for source in dict.fromkeys(named)]
    return text + _LICENCES.format(own=own, backbones="\n".join(rows) or "- no pretrained model")


def _licence_row(source: str, config: Mapping[str, Any], licences: Mapping[str, str | None]) -> str:
    """What the card says of the licence of a pretrained model."""
    if source in KNOWN:
        known, digest = KNOWN[source], config.get("backbones", {}).get(source, "unknown")
        return (
            f"- `{source}` ([{known.hub.repo}](https://huggingface.co/{known.hub.repo})), {known.licence}; trained "
            f"with the weights of digest `{digest}`"
        )
    if copy := config.get("licences", {}).get(source):
        files = (
            f"; its terms are in {', '.join(f'`{source}/{file}`' for file in copy['files'])}" if copy["files"] else ""
        )
        return f"- `{copy['model']}`, copied to `{source}/`, {copy['licence'] or 'licence not stated'}{files}"
    page = f" ([its page](https://huggingface.co/{source}))" if "/" in source else ""
    return f"- `{source}`{page}, {licences.get(source) or 'licence not stated'}"
