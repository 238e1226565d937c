"""Audio tokens in the LLM's sequence, and the loss, in the layouts of the publications.

All publications count padding as positions, unlike this library; the batches have `Batch.position_ids` for that. Where
a publication predicts a token at a padding position, or masks a real token, these batches do the same.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolm_lite.convert import ltu_as, salmonn, slam_llm
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.modeling.batch import AUDIO_SLOT, IGNORE, Batch
from tests.parity.adapters import full, salmonn_features
from tests.parity.reference import (
    LOGITS,
    LOSS,
    STATES,
    Reference,
    all_logits,
    assert_near,
    below,
    converted_adapter,
    llama,
    make_batch,
)


def check_sequence(model: AudioLanguageModel, batch: Batch, outputs: dict[str, Tensor], skip: int = 0) -> None:
    """Compare embeddings, logits and loss; logits from position `skip` on, where there is a token or a prediction."""
    mask, embedded = batch.attention_mask, model.embed(batch)
    size = outputs["inputs_embeds"].shape[1]
    assert_near(embedded[:, :size][mask[:, :size]], outputs["inputs_embeds"][mask[:, :size]], STATES)
    assert_near(batch.position_ids[:, :size], outputs["position_ids"], 0)
    predicts = F.pad(batch.labels[:, 1:] != IGNORE, (0, 1))
    compared = (mask | predicts)[:, skip:size]
    expected = outputs["text_logits" if skip else "logits"]
    assert_near(all_logits(model, batch)[:, skip:size][compared], expected[compared], LOGITS)
    loss = model.loss(batch)
    assert_near((loss.total / loss.tokens)[None], outputs["loss"], LOSS)


class PublishedSlots(nn.Module):
    """SLAM-LLM's number of audio tokens: one per slot of a row, with zeros where the adapter computes fewer.

    In this library the number of slots comes from `num_tokens`, and a difference is an error.
    """

    def __init__(self, adapter: nn.Module, slots: Tensor):
        super().__init__()
        self.adapter, self.slots = adapter, slots

    def forward(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        tokens, _ = self.adapter(features, frames)
        return F.pad(tokens, (0, 0, 0, max(0, int(self.slots.max()) - tokens.shape[1]))), self.slots


def check_slam(reference: Reference) -> None:
    config = reference.config
    converted = slam_llm.convert(reference.state, stride=config["k"])
    adapter, llm = converted_adapter(converted), llama(config["llm"], converted.llm)
    for case in reference.subcases:
        inputs, outputs = below(reference.inputs, f"{case}."), below(reference.outputs, f"{case}.")
        features = inputs["encoder_outs"][:, None]
        slots = inputs["modality_mask"].sum(1).long()
        assert torch.equal(inputs["input_ids"] == AUDIO_SLOT, inputs["modality_mask"].bool())
        assert_near(adapter(features, full(features))[0], outputs["projected"], STATES)
        model = AudioLanguageModel(PublishedSlots(adapter, slots), llm).eval()
        layout = (inputs["input_ids"], inputs["attention_mask"], inputs["labels"])
        batch = make_batch(features, full(features), *layout)
        check_sequence(model, batch, outputs)
        loss = model.loss(batch)
        assert_near((loss.correct / loss.tokens)[None], outputs["acc"], LOSS)
        # Padding at the ends shifts all positions of a row by the same number, which does not change the result.
        batch.position_ids = None
        mask = batch.attention_mask
        assert_near(all_logits(model, batch)[mask], outputs["logits"][mask], LOGITS)
        # If a row has the frames of its slots, no zeros are added. Too few frames are an error.
        batch.frames = (slots * config["k"]).clamp(max=features.shape[2])
        model = AudioLanguageModel(adapter, llm).eval()
        if slots.max() > outputs["projected"].shape[1]:
            with pytest.raises(ValueError, match="slots"):
                model.loss(batch)
        else:
            loss = model.loss(batch)
            assert_near((loss.total / loss.tokens)[None], outputs["loss"], LOSS)
        ids, mask = inputs["infer_input_ids"], inputs["infer_attention_mask"].bool()
        batch = make_batch(features, full(features), ids, mask, torch.full_like(ids, IGNORE))
        published = AudioLanguageModel(PublishedSlots(adapter, slots), llm)
        assert_near(published.embed(batch)[mask], outputs["infer_inputs_embeds"][mask], STATES)


def check_salmonn_splice(reference: Reference) -> None:
    config = reference.config
    window, heads = config["window"]["kernel"], config["bert"]["num_attention_heads"]
    converted = salmonn.convert(reference.state, window=window, heads=heads)
    model = AudioLanguageModel(converted_adapter(converted), llama(config["llm"], converted.llm)).eval()
    for case in reference.subcases:
        inputs, outputs = below(reference.inputs, f"{case}."), below(reference.outputs, f"{case}.")
        features, frames = salmonn_features(inputs["speech"], inputs["audio"])
        count = len(features)
        slots = torch.full((count, model.adapter.num_tokens(features.shape[2])), AUDIO_SLOT)
        bos = torch.full((count, 1), config["bos"])
        prompt = torch.cat([bos, inputs["before_ids"], slots], dim=1)
        ids = torch.cat([prompt, inputs["after_ids"], inputs["text_ids"]], dim=1)
        mask = torch.cat([torch.ones_like(prompt), inputs["after_mask"], inputs["text_mask"]], dim=1)
        before = torch.full((count, ids.shape[1] - inputs["text_ids"].shape[1]), IGNORE)
        answer = inputs["text_ids"].masked_fill(inputs["text_ids"] == config["pad"], IGNORE)
        labels = torch.cat([before, answer], dim=1)
        assert_near(mask, outputs["attention_mask"], 0)
        assert_near(labels, outputs["labels"], 0)
        batch = make_batch(features, frames, ids, mask, labels)
        check_sequence(model, batch, outputs)
        loss = model.loss(batch)
        assert [loss.correct.item(), loss.tokens.item()] == outputs["correct_total"].tolist()


def check_ltu_as(reference: Reference) -> None:
    config = reference.config
    state = below(reference.state, "model.") | below(reference.state, "llama3.")
    model = _ltu_as_model(config, state)
    for case in reference.subcases:
        inputs, outputs = below(reference.inputs, f"{case}."), below(reference.outputs, f"{case}.")
        features = inputs["audio_embs"]
        audio = features.shape[2]
        # Labels are those of the next token. The end token is a target but not an input: it gets a masked column.
        ids = F.pad(_with_audio(inputs["input_ids"], audio), (0, 1))
        mask = _with_mask(inputs["input_ids"] != config["pad"], audio)
        assert_near(mask, outputs["attention_mask"].bool(), 0)
        labels = F.pad(inputs["lm_labels"], (audio + 1, 0), value=IGNORE)
        check_sequence(model, make_batch(features, full(features), ids, F.pad(mask, (0, 1)), labels), outputs, audio)

        ids = _with_audio(inputs["user_prompt_bos"], audio)
        mask = _with_mask(inputs["user_prompt_bos"] != config["pad"], audio)
        assert_near(mask, outputs["gen_attention_mask"].bool(), 0)
        batch = make_batch(features, full(features), ids, mask, torch.full_like(ids, IGNORE))
        assert_near(model.embed(batch)[mask], outputs["gen_inputs_embeds"][mask], STATES)


def check_ltu_as_original(reference: Reference) -> None:
    config = reference.config
    model = _ltu_as_model(config, reference.state)
    for case in reference.subcases:
        inputs, outputs = below(reference.inputs, f"{case}."), below(reference.outputs, f"{case}.")
        features = inputs["audio_input"]
        audio = features.shape[2]
        labels = F.pad(inputs["labels"], (audio, 0), value=IGNORE)
        labels[:, audio] = IGNORE  # without the logits of the audio, nothing predicts the first text token
        ids = _with_audio(inputs["input_ids"], audio)
        batch = make_batch(features, full(features), ids, inputs["attention_mask"], labels)
        check_sequence(model, batch, outputs, audio)


def _ltu_as_model(config: dict, state: dict[str, Tensor]) -> AudioLanguageModel:
    converted = ltu_as.convert(state)
    heads = {name: config[name] for name in ("time_heads", "layer_heads")}
    adapter = converted_adapter(converted, num_layers=config["n_layer"], **heads)
    return AudioLanguageModel(adapter, llama(config["llm"], converted.llm)).eval()


def _with_audio(ids: Tensor, audio: int) -> Tensor:
    return F.pad(ids, (audio, 0), value=AUDIO_SLOT)


def _with_mask(mask: Tensor, audio: int) -> Tensor:
    return F.pad(mask, (audio, 0), value=True)
