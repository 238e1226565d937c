"""Controls without the audio of the question: its transcript must not be in the prompt either."""

import pytest
import torch

from audiolm_lite.data.clip_sources import FeatureSource
from audiolm_lite.data.dataset import AudioTextDataset
from audiolm_lite.data.manifest import write_manifest
from audiolm_lite.data.prompt_builder import PromptBuilder
from audiolm_lite.data.selected_rows import select_rows
from audiolm_lite.features.store import FeatureStore
from audiolm_lite.features.writer import FeatureWriter
from audiolm_lite.language.prompt import PromptTemplate
from audiolm_lite.modeling.batch import AUDIO_SLOT

OPTIONAL = "{bos}{audio}{transcript:[*]}{instruction}{answer}{eos}"
REQUIRED = "{bos}{audio}{transcript}{instruction}{answer}{eos}"
SPOKEN = ["yes", "good morning", "", "go to the left now"]


@pytest.fixture
def dataset(tmp_path, tokenizer):
    """Build the dataset of four clips with transcripts, clip c filled with c + 1, and two rows of each clip."""
    rows = [
        {"id": f"{name}{clip}", "audio": f"{clip}.wav", "task": "asr", "instruction": "say", "target": "x" * (clip + 1)}
        | {"dataset": "made", "split": "test", "transcript": text}
        for name in ("a", "b")
        for clip, text in enumerate(SPOKEN)
    ]
    with FeatureWriter(tmp_path / "store", {"encoder": "made", "frame_seconds": 0.04}) as writer:
        for clip in range(len(SPOKEN)):
            writer.add(f"{clip}.wav", torch.full((1, 2 + clip, 2), clip + 1.0))

    def build(template=OPTIONAL, rows=rows, **options):
        write_manifest(tmp_path / "m.jsonl", rows)
        source = FeatureSource(FeatureStore(tmp_path / "store"))
        prompt = PromptBuilder(PromptTemplate(template), tokenizer, lambda frames: frames)
        return AudioTextDataset(select_rows([tmp_path / "m.jsonl"]), source, prompt, **options)

    return build


def text_of(item, tokenizer):
    return tokenizer.decode([token for token in item.input_ids if token != AUDIO_SLOT])


@pytest.mark.parametrize("template", [OPTIONAL, REQUIRED])
def test_shuffled_prompts_have_the_transcript_of_the_clip_that_they_get(dataset, tokenizer, template):
    shuffled = dataset(template, control="shuffled")
    for own, item in zip(dataset(template), shuffled):
        clip = int(item.features[0, 0, 0]) - 1
        assert item.row["transcript"] == SPOKEN[clip] != own.row["transcript"]
        assert {**item.row, "transcript": ""} == {**own.row, "transcript": ""}
        around = "[]" if SPOKEN[clip] and template == OPTIONAL else ("", "")
        expected = around[0] + SPOKEN[clip] + around[1]
        assert text_of(item, tokenizer) == f"<|bos|>{expected}say{own.row['target']}<|eos|>"
    assert shuffled.lengths.tolist() == [len(item.input_ids) for item in shuffled]


@pytest.mark.parametrize("template", [OPTIONAL, REQUIRED])
def test_silent_prompts_have_an_empty_transcript(dataset, tokenizer, template):
    silent = dataset(template, control="zeros")
    for item in silent:
        assert text_of(item, tokenizer) == f"<|bos|>say{item.row['target']}<|eos|>" and item.row["transcript"] == ""
    assert silent.lengths.tolist() == [len(item.input_ids) for item in silent]


def test_rows_without_transcripts_and_templates_without_the_slot_are_unchanged(dataset, tokenizer):
    plain = "{bos}{audio}{instruction}{answer}{eos}"
    rows = [{name: value for name, value in row.items() if name != "transcript"} for row in dataset().rows]
    for control in ("zeros", "shuffled"):
        without, other = dataset(rows=rows, control=control), dataset(plain, control=control)
        texts = [text_of(item, tokenizer) for item in dataset(plain)]
        assert [text_of(item, tokenizer) for item in without] == [text_of(item, tokenizer) for item in other] == texts
        assert [item.row["transcript"] for item in dataset(plain, control=control)] == SPOKEN * 2
