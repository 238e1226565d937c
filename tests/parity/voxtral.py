"""Voxtral: the model of transformers under converted names, and the same computed by this library's modules."""

import torch
from transformers import VoxtralConfig, VoxtralForConditionalGeneration

from audiolm_lite.convert import voxtral
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.modeling.batch import AUDIO_SLOT
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

_NOTES = ("activation_function", "layer_norm_eps", "k_proj_bias")  # notes in the file's config, not settings


def check_voxtral(reference: Reference) -> None:
    config, inputs, outputs = reference.config, reference.inputs, reference.outputs
    audio = {name: value for name, value in config["audio_config"].items() if name not in _NOTES}
    settings = VoxtralConfig(
        audio_config=audio, text_config=config["text_config"], audio_token_id=config["audio_token_id"]
    )
    published = VoxtralForConditionalGeneration(settings).eval()
    layout = voxtral.installed_layout()
    published.load_state_dict({voxtral.rename(name, layout): tensor for name, tensor in reference.state.items()})
    result = published(**inputs)
    assert_near(result.logits, outputs["logits"], LOGITS)
    assert_near(result.loss[None], outputs["loss"], LOSS)

    tower = published.get_submodule(voxtral.rename("audio_tower", layout))
    states = tower(inputs["input_features"]).last_hidden_state  # [1, T, D]
    head = outputs["encoder_last_hidden_head"]
    assert_near(states[:, : head.shape[1]], head, STATES)
    adapter = converted_adapter(voxtral.convert(reference.state))
    stacked = outputs["projector_input_head"]
    groups = states[0, : len(stacked) * adapter.stride].reshape(len(stacked), -1)
    assert_near(groups, stacked, STATES)
    frames = torch.full((len(states),), states.shape[1])
    tokens, counts = adapter(states[:, None], frames)
    assert counts.tolist() == [len(outputs["projected"])]
    assert_near(tokens[0], outputs["projected"], STATES)

    model = AudioLanguageModel(adapter, llama(config["text_config"], below(reference.state, "language_model."))).eval()
    slots = inputs["input_ids"] == config["audio_token_id"]
    ids = inputs["input_ids"].masked_fill(slots, AUDIO_SLOT)
    batch = make_batch(states[:, None], frames, ids, inputs["attention_mask"], inputs["labels"])
    assert_near(batch.position_ids, outputs["position_ids"], 0)
    assert_near(model.embed(batch), outputs["inputs_embeds"], STATES)
    for default_positions in (False, True):
        batch.position_ids = None if default_positions else batch.position_ids
        loss = model.loss(batch)
        assert_near((loss.total / loss.tokens)[None], outputs["loss"], LOSS)
        assert_near(all_logits(model, batch), outputs["logits"], LOGITS)
