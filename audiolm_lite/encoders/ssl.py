"""Self-supervised speech encoders wav2vec 2.0, HuBERT and WavLM, with the outputs of all blocks.

Sources: wav2vec 2.0 (Baevski et al. 2020, arXiv 2006.11477), HuBERT (Hsu et al. 2021, arXiv 2106.07447) and WavLM (Chen
et al. 2021, arXiv 2110.13900).

The modules of transformers are called one by one, because its own forward includes a clip's padding in the norm of the
first convolution ("group" models), returns other hidden states in version 5 than in version 4, and drops layers in
training.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from audiolm_lite.audio.reading import AUDIO_RULES, SAMPLE_RATE
from audiolm_lite.backbones.fetch import resolve
from audiolm_lite.backbones.untrusted import check_published
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.encoders.checkpoints import cast_weights, weights_digest
from audiolm_lite.encoders.clip_length import check_clip_length
from audiolm_lite.encoders.layer_selection import LayerSelection
from audiolm_lite.encoders.relative_position import gate, position_bias
from audiolm_lite.modeling.masks import Count, valid_mask
from audiolm_lite.modeling.quantization import bitsandbytes_config

_KINDS = ("wav2vec2", "hubert", "wavlm")
_DROPOUTS = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout")


class SSLEncoder(nn.Module):
    """wav2vec 2.0, HuBERT or WavLM for a batch of clips; the result of a clip does not depend on the other clips.

    The model's `preprocessor_config.json` defines how waveforms are prepared: with `do_normalize` each clip gets zero
    mean and unit variance over its own samples. Dropout, layer drop and SpecAugment of a configuration are not applied.

    Parameters
    ----------
    source : str or dict
        Name or folder of a model in transformers' format, of type wav2vec2, hubert or wavlm. A mapping has `model_type`
        and entries of that type's configuration, and the weights are random.
    layers : list of int, optional
        Blocks whose outputs are returned, 0 the first, -1 the last (after the final layer norm, where the model has
        one); all if None. The input of the first block is not a layer.
    pool : int
        Consecutive frames that are combined into one.
    pooling : {"mean", "max", "stride"}
        How frames are combined: average, maximum of each dimension, or the first frame.
    layer_mix : "mean" or list of float, optional
        Return one layer after pooling: the average of `layers`, or their sum with these weights.
    dtype : {"float32", "bfloat16", "float16"}
        Dtype of weights and computation; features are always float32. bfloat16 needs half the memory and is faster on
        GPUs and on CPUs with AVX512-BF16 or AMX.
    quantization : {None, "8bit", "4bit"}
        Load the linear layers in 8 or 4 bits (bitsandbytes, on an NVIDIA GPU) and everything else in bfloat16.

    Attributes
    ----------
    feature_dim, num_layers : int
        D and L of the features.
    frame_seconds : float
        Duration of one frame of the features: 20 ms x `pool` for all published models.
    never_trained : list of str
        Names of parameters that `trainable` patterns do not select: the final norm of a model with norms before its
        blocks, unless the last block is among `layers`.
    """

    def __init__(
        self,
        source: str | dict[str, Any],
        layers: list[int] | None = None,
        pool: int = 1,
        pooling: str = "mean",
        layer_mix: str | list[float] | None = None,
        dtype: str = "float32",
        quantization: str | None = None,
    ):
        super().__init__()
        self.model, extractor = _load(source, quantization)
        cast_weights("ssl", self.model, dtype, quantization)
        config = self.model.config
        self.selection = LayerSelection("ssl", config.num_hidden_layers, layers, pool, pooling, layer_mix)
        if extractor.sampling_rate != SAMPLE_RATE:
            raise ConfigError(
                f"ssl: {source} needs audio at {extractor.sampling_rate} Hz, and only {SAMPLE_RATE} Hz is supported; "
                "choose another model"
            )
        self.normalize = extractor.do_normalize
        self.dtype, self.quantization = dtype, quantization
        self.norm_first = config.do_stable_layer_norm
        self.last_block = config.num_hidden_layers - 1
        self.model.encoder.layers = self.model.encoder.layers[: self.selection.depth]
        # Used in pretraining only: as parameters they would never get a gradient.
        self.model.masked_spec_embed = self.model.adapter = None
        self.never_trained: list[str] = []
        if self.norm_first and self.last_block not in self.selection.indices:
            self.never_trained = ["model.encoder.layer_norm.weight", "model.encoder.layer_norm.bias"]

        self.kernels, self.strides = list(config.conv_kernel), list(config.conv_stride)
        self.min_samples = 1
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides)):
            self.min_samples = (self.min_samples - 1) * stride + kernel
        self.feature_dim = config.hidden_size
        self.num_layers = self.selection.num_layers
        self.frame_seconds = math.prod(self.strides) * pool / SAMPLE_RATE

    def num_frames(self, samples: Count) -> Count:
        """Frames of the features for clips of `samples` samples; int for int, int64 tensor for tensor.

        Raises
        ------
        ValueError
            A clip is shorter than the receptive field of the convolutions.
        """
        check_clip_length("ssl", samples, self.min_samples)
        for kernel, stride in zip(self.kernels, self.strides):
            samples = (samples - kernel) // stride + 1
        return self.selection.num_frames(samples)

    def identity(self) -> dict[str, Any]:
        """Everything that changes the features, as JSON values: encoders with equal identities give equal features."""
        return {
            "type": "ssl",
            "model": self.model.config.model_type,
            "weights": weights_digest(self.model),
            "dtype": self.dtype,
            "quantization": self.quantization,
            "normalise": self.normalize,
            **self.selection.identity(),
            "frame_seconds": self.frame_seconds,
            "audio": AUDIO_RULES,
        }

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode clips.

        Parameters
        ----------
        waveforms : Tensor
            [B, S] float32 at 16 kHz; samples after a clip's length are ignored.
        lengths : Tensor
            Samples of each clip [B] int64.

        Returns
        -------
        tuple of Tensor
            Features [B, L, T, D] float32, zero after each clip's end, and valid frames [B] int64.

        Raises
        ------
        ValueError
            A clip is shorter than the receptive field of the convolutions.
        """
        lengths = lengths.to(waveforms.device)
        check_clip_length("ssl", lengths, self.min_samples)
        x, frames = self._convolve(self._prepare(waveforms[:, : int(lengths.max())], lengths), lengths)
        x = self.model.feature_projection(x)
        x = x if isinstance(x, Tensor) else x[0]  # [B, T, D]; HuBERT returns a tensor, the others a tuple
        valid = valid_mask(frames, x.shape[1])
        encoder = self.model.encoder
        # The positional convolution reads zeros after a clip's end, as for the clip alone.
        x = x.masked_fill(~valid[..., None], 0)
        x = x + encoder.pos_conv_embed(x)
        if not self.norm_first:
            x = encoder.layer_norm(x)

        bias = None
        if self.model.config.model_type == "wavlm":
            embedding = encoder.layers[0].attention.rel_attn_embed
            bias = position_bias(embedding, x.shape[1], self.model.config.max_bucket_distance)
        outputs = {}
        for index, block in enumerate(encoder.layers):
            x = _run_block(block, x, valid, bias, self.norm_first)
            if index in self.selection.indices:
                output = encoder.layer_norm(x) if index == self.last_block and self.norm_first else x
                outputs[index], pooled = self.selection.reduce(output, frames)
        return self.selection.join(outputs), pooled

    def _prepare(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Input of the model [B, S]: waveforms, normalized if the model requires it, zero after each clip's end."""
        valid = valid_mask(lengths, waveforms.shape[1])
        waveforms = waveforms.float().masked_fill(~valid, 0)
        if self.normalize:
            centered = (waveforms - waveforms.sum(1, keepdim=True) / lengths[:, None]).masked_fill(~valid, 0)
            variance = centered.square().sum(1, keepdim=True) / lengths[:, None]
            waveforms = centered / (variance + 1e-7).sqrt()
        return waveforms.to(self.model.feature_extractor.conv_layers[0].conv.weight.dtype)

    def _convolve(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Convolutional front end: waveforms [B, S] -> [B, T, C] and valid frames [B].

        The convolutions have no padding, so a valid frame depends on valid samples only.
        """
        x = waveforms[:, None]
        for layer, kernel, stride in zip(self.model.feature_extractor.conv_layers, self.kernels, self.strides):
            x = layer.conv(x)
            lengths = (lengths - kernel) // stride + 1
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                x = _group_norm(norm, x, lengths)
            elif norm is not None:
                x = norm(x.transpose(1, 2)).transpose(1, 2)
            x = layer.activation(x)
        return x.transpose(1, 2), lengths


def _group_norm(norm: nn.GroupNorm, x: Tensor, lengths: Tensor) -> Tensor:
    """Group norm of x [B, C, T] with one group per channel, over each clip's valid frames only."""
    valid = valid_mask(lengths, x.shape[2])[:, None]
    count = lengths[:, None, None]
    values = x.float().masked_fill(~valid, 0)
    centered = (values - values.sum(2, keepdim=True) / count).masked_fill(~valid, 0)
    variance = centered.square().sum(2, keepdim=True) / count
    weight, bias = norm.weight[:, None], norm.bias[:, None]
    return (centered * (variance + norm.eps).rsqrt()).to(x.dtype) * weight + bias


def _run_block(block: nn.Module, x: Tensor, valid: Tensor, bias: Tensor | None, norm_first: bool) -> Tensor:
    """One transformer block on x [B, T, D] with valid frames [B, T] and WavLM's position bias [heads, T, T]."""
    attention = block.attention
    h = block.layer_norm(x) if norm_first else x
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    q, k, v = (p(h).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for p in projections)
    mask = valid[:, None, None]  # [B, 1, 1, T]
    if bias is not None:
        states = h.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        gates = gate(states, attention.gru_rel_pos_linear, attention.gru_rel_pos_const)
        mask = (gates * bias).masked_fill(~mask, -torch.inf).to(q.dtype)
    h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    x = x + attention.out_proj(h.transpose(1, 2).flatten(2))
    if norm_first:
        return x + block.feed_forward(block.final_layer_norm(x))
    x = block.layer_norm(x)
    return block.final_layer_norm(x + block.feed_forward(x))


def _load(
    source: str | dict[str, Any], quantization: str | None
) -> tuple[transformers.PreTrainedModel, transformers.Wav2Vec2FeatureExtractor]:
    """Model of transformers, in float32 unless it is quantized, and its feature extractor."""
    dtype = torch.float32 if quantization is None else torch.bfloat16
    quantized = bitsandbytes_config("encoder ssl", quantization, dtype)
    if isinstance(source, dict):
        config = transformers.AutoConfig.for_model(**source)
    else:
        source = resolve(str(source))
        check_published("ssl", source)
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    if config.model_type not in _KINDS:
        raise ConfigError(f"ssl: {source} is of type {config.model_type!r}, it must be one of {', '.join(_KINDS)}")
    for entry in ("adapter_attn_dim", "conv_pos_batch_norm"):
        if getattr(config, entry, None):
            raise ConfigError(f"ssl: {source} sets {entry}, which is not supported; choose another model")
    for entry in _DROPOUTS:
        setattr(config, entry, 0.0)
    if isinstance(source, dict):
        if quantized is not None:
            raise ConfigError("ssl: quantization needs pretrained weights, and source is a configuration; name a model")
        return transformers.AutoModel.from_config(config), transformers.Wav2Vec2FeatureExtractor()
    # Many of these models are published as pickled state dictionaries only. weights_only is PyTorch's restricted
    # reader, and a model folder has no pickles (`hub.contents`).
    model, info = transformers.AutoModel.from_pretrained(
        source,
        config=config,
        dtype=dtype,
        weights_only=True,
        output_loading_info=True,
        quantization_config=quantized,
        trust_remote_code=False,
    )
    missing = sorted(set(info["missing_keys"]) - {"masked_spec_embed"})
    if missing:
        raise ConfigError(f"ssl: {source} lacks {len(missing)} tensors, for example {missing[0]}; download it again")
    return model, transformers.Wav2Vec2FeatureExtractor.from_pretrained(source)


COMPONENT = SSLEncoder
