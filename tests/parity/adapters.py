"""Adapters against their published implementations."""

import torch
import torch.nn.functional as F
from torch import Tensor

from audiolm_lite.convert import ltu_as, nemo_salm, salmonn, slam_llm
from tests.parity.reference import CONFORMER, STATES, Reference, assert_near, converted_adapter


def full(features: Tensor) -> Tensor:
    """Frame counts [B] of features [B, L, T, D] without padding."""
    return torch.full((features.shape[0],), features.shape[2])


def check_tltr(reference: Reference) -> None:
    config, outputs = reference.config, reference.outputs
    features = reference.inputs["audio_rep"]
    batch, layers, time, _ = features.shape
    adapter = converted_adapter(
        ltu_as.convert(reference.state),
        num_layers=config["n_layer"],
        time_heads=config["time_heads"],
        layer_heads=config["layer_heads"],
    )
    over_time = adapter.time_block(features.flatten(0, 1))
    assert_near(over_time, outputs["time_tr"], STATES)
    over_layers = adapter.layer_block(over_time.unflatten(0, (batch, layers)).transpose(1, 2).flatten(0, 1))
    assert_near(over_layers, outputs["layer_tr"], STATES)
    assert_near(over_layers.mean(1).unflatten(0, (batch, time)), outputs["tltr"], STATES)
    tokens, counts = adapter(features, full(features))
    assert_near(tokens, outputs["projected"], STATES)
    assert counts.tolist() == [time] * batch


def check_slam_linear(reference: Reference) -> None:
    features = reference.inputs["encoder_outs"][:, None]
    rate = reference.config["encoder_projector_ds_rate"]
    adapter = converted_adapter(slam_llm.convert(reference.state, stride=rate))
    assert adapter.stride == rate
    tokens, counts = adapter(features, full(features))
    assert_near(tokens, reference.outputs["projected"], STATES)
    assert counts.tolist() == [tokens.shape[1]] * len(tokens)


def check_slam_qformer(reference: Reference) -> None:
    sizes = reference.config["qformer"]
    adapter = converted_adapter(slam_llm.convert(reference.state, heads=sizes["num_attention_heads"]))
    assert adapter.num_tokens(1) == reference.config["query_len"]
    features = reference.inputs["encoder_outs"][:, None]
    for frames, ending in ((reference.inputs["encoder_mask"].sum(1).long(), ""), (full(features), "_full_mask")):
        assert_near(adapter.query_states(features, frames), reference.outputs[f"qformer_last_hidden{ending}"], STATES)
        assert_near(adapter(features, frames)[0], reference.outputs[f"projected{ending}"], STATES)


def salmonn_features(speech: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
    """Features and frames of two encoders, joined as by `Fused` with `align: pad`."""
    time = max(speech.shape[1], audio.shape[1])
    features = torch.cat([F.pad(x, (0, 0, 0, time - x.shape[1])) for x in (speech, audio)], dim=-1)[:, None]
    return features, full(features)


def check_salmonn(reference: Reference) -> None:
    config, outputs = reference.config, reference.outputs
    options = {"window": config["window"]["kernel"], "heads": config["bert"]["num_attention_heads"]}
    assert config["window"]["stride"] == config["window"]["kernel"], "overlapping windows are not supported"
    published = converted_adapter(salmonn.convert(reference.state, **options))
    default = converted_adapter(salmonn.convert(reference.state, **options), published_behaviour=False)
    for case in reference.subcases:
        features, frames = salmonn_features(reference.inputs[f"{case}.speech"], reference.inputs[f"{case}.audio"])
        if f"{case}.concat" in outputs:
            assert_near(published.normalize_streams(features), outputs[f"{case}.concat"], STATES)
        tokens, counts = published(features, frames)
        assert_near(tokens, outputs[f"{case}.speech_embeds"], STATES)
        assert counts.tolist() == outputs[f"{case}.speech_atts"].sum(1).tolist()
        windows = outputs[f"{case}.num_windows"].item()
        assert published.num_tokens(features.shape[2]) == windows * config["num_query_token"]
        # By default the frames after the last complete window are one more window. The others do not change.
        default_tokens, _ = default(features, frames)
        assert_near(default_tokens[:, : tokens.shape[1]], tokens, STATES)
        incomplete = features.shape[2] % options["window"] > 0
        assert default.num_tokens(features.shape[2]) == (windows + incomplete) * config["num_query_token"]


def check_nemo(reference: Reference) -> None:
    sizes, outputs = reference.config["modality_adapter"], reference.outputs
    adapter = converted_adapter(nemo_salm.convert(reference.state))
    assert adapter.factor == sizes["subsampling_factor"]
    features = reference.inputs["encoded"].transpose(1, 2)[:, None]
    first_block = []
    adapter.blocks[0].register_forward_hook(lambda block, args, output: first_block.append(output))
    endings = [ending for ending in ("", "_full_length") if f"layer0{ending}" in outputs]
    for ending in endings:
        frames = full(features) if ending else reference.inputs["length"]
        hidden, (tokens, counts) = adapter.hidden(features, frames), adapter(features, frames)
        assert counts.tolist() == outputs[f"projected_length{ending}"].tolist()
        for row, count in enumerate(counts.tolist()):
            assert_near(first_block[-1][row, :count], outputs[f"layer0{ending}"][row, :count], CONFORMER)
        published = outputs[f"adapter{ending}"].transpose(1, 2)  # [B, T, D] of the complete adapter
        if len(adapter.blocks) == sizes["n_layers"]:
            for row, count in enumerate(counts.tolist()):
                assert_near(hidden[row, :count], published[row, :count], CONFORMER)
                assert_near(tokens[row, :count], outputs[f"projected{ending}"][row, :count], CONFORMER)
        else:  # the file has the weights of the first block only
            assert len(adapter.blocks) == 1
            assert_near(adapter.projection(published), outputs[f"projected{ending}"], CONFORMER)
