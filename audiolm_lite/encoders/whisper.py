"""Whisper's audio encoder (Radford et al. 2022, arXiv 2212.04356) for clips of any length, with all blocks' outputs.

The modules of transformers are called one by one, because its own forward accepts exactly 30 s. Whisper also works on
less (LTU-AS, Gong et al. 2023, arXiv 2309.14405, uses 10 s); masks separate clips of different lengths.
"""

import re
from pathlib import Path
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
from audiolm_lite.encoders.clip_length import SPLIT, check_clip_length
from audiolm_lite.encoders.layer_selection import LayerSelection
from audiolm_lite.encoders.logmel import log_mel
from audiolm_lite.encoders.whisper_decoder import WhisperDecoder
from audiolm_lite.modeling.masks import Count, valid_mask
from audiolm_lite.modeling.quantization import bitsandbytes_config

_HOP = 160  # samples between spectrogram frames of every published size
# Patterns of names in openai-whisper's checkpoints -> names in transformers' encoder, applied in this order.
_OPENAI_NAMES = [
    (r"^blocks\.", "layers."),
    (r"\.attn_ln\.", ".self_attn_layer_norm."),
    (r"\.attn\.query\.", ".self_attn.q_proj."),
    (r"\.attn\.key\.", ".self_attn.k_proj."),
    (r"\.attn\.value\.", ".self_attn.v_proj."),
    (r"\.attn\.out\.", ".self_attn.out_proj."),
    (r"\.mlp\.0\.", ".fc1."),
    (r"\.mlp\.2\.", ".fc2."),
    (r"\.mlp_ln\.", ".final_layer_norm."),
    (r"^ln_post\.", "layer_norm."),
    (r"^positional_embedding$", "embed_positions.weight"),
]


class WhisperEncoder(nn.Module):
    """Whisper encoder for a batch of clips; the result of a clip does not depend on the other clips.

    The dropout of a configuration is not applied: published Whisper encoders have none.

    Parameters
    ----------
    source : str or dict
        Name or folder of a `WhisperModel` or of a Voxtral in transformers' format (safetensors weights, `config.json`,
        and `preprocessor_config.json` with number of mels, hop, FFT size and length), or a backbone that is known by
        name ("whisper-tiny.en"), or a name of openai-whisper ("large-v3") or its `.pt` file. A mapping has entries of
        `transformers.WhisperConfig`, and under `preprocessor` those of `transformers.WhisperFeatureExtractor`, and the
        weights are random.
    padding : {"exact", "window", "full", "trimmed"}
        "exact": only the clip's own frames are computed, one per 2 hops of audio, rounded up. "window": clips are
        padded with zeros to `window_seconds`. "full": to the number of positions of the encoder (30 s). "trimmed": as
        "full", but only the clip's own frames are returned; the decoder needs "full" or "trimmed".
    window_seconds : float
        Length of every clip with padding "window".
    layers : list of int, optional
        Blocks whose outputs are returned, 0 the first, -1 the last (after the final layer norm); all if None. The
        output of the convolutions is not a layer.
    pool : int
        Consecutive frames that are combined into one.
    pooling : {"mean", "max", "stride"}
        How frames are combined: average, maximum of each dimension, or the first frame.
    layer_mix : "mean" or list of float, optional
        Return one layer after pooling: the average of `layers`, or their sum with these weights.
    dtype : {"float32", "bfloat16", "float16"}
        Dtype of weights and computation; features are always float32. bfloat16 needs half the memory and is faster on
        GPUs and on CPUs with AVX512-BF16 or AMX. float16 overflows in some sizes.
    quantization : {None, "8bit", "4bit"}
        Load the linear layers in 8 or 4 bits (bitsandbytes, on an NVIDIA GPU) and everything else in bfloat16; only
        from transformers' format.
    decoder_language : str, optional
        Make `recognize` available, which transcribes speech in this language (ISO 639-1 code). Features do not
        depend on it, and the decoder is loaded at the first transcript.
    decoder_text : {"written", "plain"}
        Transcripts as Whisper writes them, or in lower case and without punctuation (see
        `whisper_decoder.plain_text`), as many transcripts for training are.

    Attributes
    ----------
    feature_dim, num_layers : int
        D and L of the features.
    frame_seconds : float
        Duration of one frame of the features.
    max_seconds : float
        Longest clip accepted.
    never_trained : list of str
        Names of parameters that `trainable` patterns do not select: the positions, which are sinusoids and were fixed
        in pretraining, and the final norm unless the last block is among `layers`.
    """

    def __init__(
        self,
        source: str | dict[str, Any],
        padding: str = "exact",
        window_seconds: float = 10.0,
        layers: list[int] | None = None,
        pool: int = 1,
        pooling: str = "mean",
        layer_mix: str | list[float] | None = None,
        dtype: str = "float32",
        quantization: str | None = None,
        decoder_language: str | None = None,
        decoder_text: str = "written",
    ):
        super().__init__()
        self.model, extractor = _load(source, quantization)
        cast_weights("whisper", self.model, dtype, quantization)
        blocks = len(self.model.layers)
        if padding not in ("exact", "window", "full", "trimmed"):
            raise ConfigError(
                f"whisper: padding is {padding!r}, it must be one of 'exact', 'window', 'full', 'trimmed'"
            )
        self.selection = LayerSelection("whisper", blocks, layers, pool, pooling, layer_mix)
        if extractor.sampling_rate != SAMPLE_RATE:
            raise ConfigError(
                f"whisper: {source} needs audio at {extractor.sampling_rate} Hz, and only {SAMPLE_RATE} Hz is "
                "supported; choose another model"
            )
        self.padding, self.window_seconds = padding, window_seconds
        self.dtype, self.quantization = dtype, quantization
        self.last_block = blocks - 1
        self.decoder = None if decoder_language is None else self._decoder(source, decoder_language, decoder_text)
        self.model.layers = self.model.layers[: self.selection.depth]

        self.n_fft, self.hop = extractor.n_fft, extractor.hop_length
        # Not a buffer: casting the encoder to 16 bits must not round the filters.
        self.mel_filters = torch.from_numpy(extractor.mel_filters.astype("float32"))  # [n_fft / 2 + 1, mels]

        positions = self.model.embed_positions.num_embeddings
        self.max_samples = positions * 2 * self.hop
        if padding == "window":
            if not 0 < window_seconds <= self.max_samples / SAMPLE_RATE:
                limit = self.max_samples / SAMPLE_RATE
                raise ConfigError(f"whisper: window_seconds is {window_seconds}; {source} accepts up to {limit:g} s")
            self.max_samples = round(window_seconds * SAMPLE_RATE)
        self.never_trained = ["model.embed_positions.weight"]
        if self.last_block not in self.selection.indices:
            self.never_trained += ["model.layer_norm.weight", "model.layer_norm.bias"]
        self.feature_dim = self.model.conv2.out_channels
        self.num_layers = self.selection.num_layers
        self.frame_seconds = 2 * self.hop * pool / SAMPLE_RATE
        self.max_seconds = self.max_samples / SAMPLE_RATE

    def _decoder(self, source: str | dict[str, Any], language: str, text: str) -> WhisperDecoder:
        if self.padding not in ("full", "trimmed") or self.selection.depth != self.last_block + 1:
            raise ConfigError("whisper: decoder_language needs padding full or trimmed, and the last block in layers")
        folder = resolve(str(source))
        if isinstance(source, dict) or folder.endswith(".pt") or ("/" not in folder and not Path(folder).is_dir()):
            raise ConfigError(
                f"whisper: decoder_language needs a model in transformers' format, and source is {source}"
            )
        return WhisperDecoder(folder, language, text)

    def num_frames(self, samples: Count) -> Count:
        """Frames of the features for clips of `samples` samples; int for int, int64 tensor for tensor.

        Raises
        ------
        ValueError
            A clip is longer or shorter than the encoder accepts.
        """
        self._check(samples)
        if self.padding in ("window", "full"):
            full = self.max_samples
            samples = torch.full_like(samples, full) if isinstance(samples, Tensor) else full
        return self.selection.num_frames(self._block_frames(samples))

    def _block_frames(self, samples: Count) -> Count:
        return -(-samples // (2 * self.hop))

    def identity(self) -> dict[str, Any]:
        """Everything that changes the features, as JSON values: encoders with equal identities give equal features."""
        return {
            "type": "whisper",
            "weights": weights_digest(self.model),
            "dtype": self.dtype,
            "quantization": self.quantization,
            "mels": self.mel_filters.shape[1],
            "n_fft": self.n_fft,
            "hop": self.hop,
            **self.selection.identity(),
            "padding": self.padding,
            **({"window_seconds": self.window_seconds} if self.padding == "window" else {}),
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
            A clip is longer or shorter than the encoder accepts.
        """
        return self._encode(waveforms, lengths)[:2]

    def recognize(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, list[str]]:
        """Encode clips and transcribe them in the same pass.

        Returns
        -------
        tuple of Tensor, Tensor and list of str
            Features and frames as from `forward`, and the transcripts of Whisper's own decoder.

        Raises
        ------
        ConfigError
            The encoder was made without `decoder_language`.
        """
        if self.decoder is None:
            raise ConfigError("whisper: transcripts need its decoder; set decoder_language in the encoder's block")
        features, frames, hidden = self._encode(waveforms, lengths)
        return features, frames, self.decoder.transcribe(self.model.layer_norm(hidden))

    def _encode(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features [B, L, T, D], valid frames [B], and the output of the last block [B, T', D]."""
        self._check(lengths)
        samples = lengths.tolist()
        lengths = lengths.to(waveforms.device)
        own, longest = self._block_frames(lengths), self._block_frames(max(samples))
        if self.padding == "exact":
            waveforms = waveforms[:, : max(samples)]
        else:
            waveforms = waveforms.masked_fill(~valid_mask(lengths, waveforms.shape[1]), 0)[:, : self.max_samples]
            waveforms = F.pad(waveforms, (0, self.max_samples - waveforms.shape[1]))
            lengths, samples = torch.full_like(lengths, self.max_samples), [self.max_samples]

        mel, mel_valid = log_mel(waveforms, lengths, self.mel_filters, self.n_fft, self.hop)
        frames = self._block_frames(lengths)  # [B]
        x = F.gelu(self.model.conv1(mel.to(self.model.conv1.weight.dtype)))
        x = F.gelu(self.model.conv2(x * mel_valid[:, None].to(x.dtype))).transpose(1, 2)  # [B, T, D]
        x = x + self.model.embed_positions.weight[: x.shape[1]]
        mask = None
        if min(samples) < max(samples):
            mask = valid_mask(frames, x.shape[1])[:, None, None]  # [B, 1, 1, T]

        outputs = {}
        for index, block in enumerate(self.model.layers):
            x = _run_block(block, x, mask)
            if index in self.selection.indices:
                output = self.model.layer_norm(x) if index == self.last_block else x
                if self.padding == "trimmed":
                    output, frames = output[:, :longest], own
                outputs[index], pooled = self.selection.reduce(output, frames)
        return self.selection.join(outputs), pooled, x

    def _check(self, samples: Tensor | int) -> None:
        remedy = f"raise window_seconds, or {SPLIT}" if self.padding == "window" else SPLIT
        # A shorter clip cannot be reflected at its ends by half an FFT window.
        least = self.n_fft // 2 + 1 if self.padding == "exact" else 1
        check_clip_length("whisper", samples, least, self.max_samples, remedy)


def _run_block(block: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """One pre-norm transformer block on x [B, T, D]; mask [B, 1, 1, T] is True at valid keys, None if all are valid.

    The layer of transformers is not called because its signature differs between versions 4 and 5.
    """
    attention = block.self_attn
    h = block.self_attn_layer_norm(x)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    q, k, v = (p(h).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for p in projections)
    h = _attend(q, k, v, mask)
    x = x + attention.out_proj(h.transpose(1, 2).flatten(2))
    return x + block.fc2(block.activation_fn(block.fc1(block.final_layer_norm(x))))


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention [B, heads, T, d] of queries, keys and values of that shape."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or mask is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # On CPUs PyTorch's kernel takes more than twice the time of these products, whose scores stay in the cache.
    scaled = q * q.shape[-1] ** -0.5
    attended = torch.empty_like(q)
    for clip in range(q.shape[0]):
        for head in range(q.shape[1]):
            scores = scaled[clip, head] @ k[clip, head].T
            attended[clip, head] = scores.softmax(-1) @ v[clip, head]
    return attended


def _load(
    source: str | dict[str, Any], quantization: str | None
) -> tuple[nn.Module, transformers.WhisperFeatureExtractor]:
    """Encoder of transformers, in float32 unless it is quantized, and its feature extractor, from any source."""
    # Whisper's activations overflow float16 in some sizes.
    dtype = torch.float32 if quantization is None else torch.bfloat16
    quantized = bitsandbytes_config("encoder whisper", quantization, dtype)
    if isinstance(source, dict):
        if quantized is not None:
            raise ConfigError(
                "whisper: quantization needs pretrained weights, and source is a configuration; name a model"
            )
        config = transformers.WhisperConfig(**{name: value for name, value in source.items() if name != "preprocessor"})
        seconds = config.max_source_positions * 2 * _HOP // SAMPLE_RATE
        preprocessor = {"feature_size": config.num_mel_bins, "chunk_length": seconds, **source.get("preprocessor", {})}
        return _encoder(config), transformers.WhisperFeatureExtractor(**preprocessor)
    source = resolve(str(source))
    if source.endswith(".pt") or ("/" not in source and not Path(source).is_dir()):
        if quantized is not None:
            raise ConfigError(
                f"whisper: {source} of openai-whisper cannot be loaded in {quantization}; use openai/whisper-<size>"
            )
        return _load_openai(source)
    options = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True, "quantization_config": quantized}
    options["trust_remote_code"] = False
    check_published("whisper", source)
    config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    if config.model_type == "voxtral":  # only its audio tower is read: a Whisper encoder under other names
        names = {r"^(model\.)?audio_tower\.": ""}
        model, info = transformers.models.voxtral.modeling_voxtral.VoxtralEncoder.from_pretrained(
            source, config=config.audio_config, key_mapping=names, **options
        )
        missing = sorted(info["missing_keys"])
    else:
        model, info = transformers.WhisperModel.from_pretrained(source, **options)
        model, missing = model.encoder, sorted(name for name in info["missing_keys"] if "encoder." in name)
    if missing:
        raise ConfigError(
            f"whisper: {source} lacks {len(missing)} encoder tensors, for example {missing[0]}; download it again"
        )
    return model, transformers.WhisperFeatureExtractor.from_pretrained(source)


def _encoder(config: transformers.WhisperConfig) -> nn.Module:
    return transformers.models.whisper.modeling_whisper.WhisperEncoder(config)


def _load_openai(source: str) -> tuple[nn.Module, transformers.WhisperFeatureExtractor]:
    import whisper  # openai-whisper: imports numba, so only where it is needed

    if not Path(source).is_file() and source not in whisper.available_models():
        names = ", ".join(whisper.available_models())
        raise ConfigError(f"whisper: {source!r} is not a model folder, .pt file or openai-whisper model: {names}")
    published = whisper.load_model(source, device="cpu")  # PyTorch's restricted reader: weights_only=True
    dims = published.dims
    config = transformers.WhisperConfig(
        d_model=dims.n_audio_state,
        encoder_layers=dims.n_audio_layer,
        encoder_attention_heads=dims.n_audio_head,
        encoder_ffn_dim=4 * dims.n_audio_state,
        num_mel_bins=dims.n_mels,
        max_source_positions=dims.n_audio_ctx,
    )
    state = {}
    for name, tensor in published.encoder.state_dict().items():
        for pattern, replacement in _OPENAI_NAMES:
            name = re.sub(pattern, replacement, name)
        state[name] = tensor
    encoder = _encoder(config)
    encoder.load_state_dict(state)
    return encoder, transformers.WhisperFeatureExtractor(feature_size=dims.n_mels)


COMPONENT = WhisperEncoder
