"""The README.md of a shared model."""

import json
from collections.abc import Mapping
from typing import Any

from audiolm_lite.config.registry import sources
from audiolm_lite.evaluation.report import markdown_table

_CARD = """---
library_name: audiolm_lite
pipeline_tag: audio-text-to-text
tags: [audio, speech, audio-captioning]
{bases}---
# {name}

A light audio language model made with audiolm_lite: it transcribes speech, describes sound and answers questions.

| part | configuration |
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

Beside each figure stands the same model without the clip's own audio. Intervals are 95 % bootstraps over test items.

{table}
"""


def model_card(config: Mapping[str, Any], repo_id: str, metrics: Mapping[str, Any] | None = None) -> str:
    """Text of the card.

    Parameters
    ----------
    config : mapping
        Contents of the model's `audiolm_lite.json`.
    repo_id : str
        Name on the hub, "owner/name".
    metrics : mapping, optional
        Contents of the `metrics.json` that `evaluation.runner.evaluate` wrote.
    """
    bases = [source for part in ("encoder", "llm") for source in sources(config[part]) if "/" in source]
    text = _CARD.format(
        bases="".join(["base_model:\n", *(f"- {base}\n" for base in bases)]) if bases else "",
        name=repo_id.split("/")[-1],
        repo_id=repo_id,
        template=json.dumps(config["template"], ensure_ascii=False),
        **{part: json.dumps(config[part], ensure_ascii=False) for part in ("encoder", "adapter", "llm")},
    )
    return text + (_RESULTS.format(table=markdown_table(metrics)) if metrics else "")
