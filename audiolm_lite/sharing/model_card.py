"""The model card: the README.md of a published model."""

import json
from collections.abc import Mapping
from typing import Any

from audiolm_lite.config.registry import sources
from audiolm_lite.evaluation.report import markdown_table

_CARD = """---
library_name: audiolm_lite
pipeline_tag: audio-text-to-text
tags: [audio, speech, audio-captioning]
{base_models}---
# {name}

A light audio language model, trained with audiolm_lite: it transcribes speech, describes sounds and answers questions.

| component | configuration |
|---|---|
| encoder | `{encoder}` |
| adapter | `{adapter}` |
| LLM | `{llm}` |

The prompt is `{template}`. Loading reads safetensors and JSON only.

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

Next to each score: the score of the same model without the clip's own audio. Intervals are 95 % bootstrap intervals
over the test items.

{table}
"""


def model_card(config: Mapping[str, Any], repo_id: str, metrics: Mapping[str, Any] | None = None) -> str:
    """Write the text of a model card.

    Parameters
    ----------
    config : mapping
        Content of the model's `audiolm_lite.json`.
    repo_id : str
        Name on the hub, "owner/name".
    metrics : mapping, optional
        Content of the `metrics.json` that `evaluation.runner.evaluate` wrote.

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
    base_models = [source for name in ("encoder", "llm") for source in sources(config[name]) if "/" in source]
    text = _CARD.format(
        base_models="".join(["base_model:\n", *(f"- {base}\n" for base in base_models)]) if base_models else "",
        name=repo_id.split("/")[-1],
        repo_id=repo_id,
        template=json.dumps(config["template"], ensure_ascii=False),
        **{name: json.dumps(config[name], ensure_ascii=False) for name in ("encoder", "adapter", "llm")},
    )
    return text + (_RESULTS.format(table=markdown_table(metrics)) if metrics else "")
