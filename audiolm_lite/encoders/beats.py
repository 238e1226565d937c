"""BEATs (Chen et al. 2022, arXiv 2212.09058): features of general audio from patches of a spectrogram."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchaudio.compliance.kaldi as kaldi
from torch import Tensor, nn

from audiolm_lite.audio.reading import AUDIO_RULES, SAMPLE_RATE
from audiolm_lite.backbones.untrusted import check_sizes
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.encoders.checkpoints import cast_weights, read_checkpoint, weights_digest
from audiolm_lite.encoders.clip_length import check_clip_length
from audiolm_lite.encoders.layer_selection import LayerSelection
from audiolm_lite.encoders.relative_position import gate, position_bias
from audiolm_lite.modeling.masks import Count, valid_mask

MELS = 128
WINDOW, HOP = 400, 160  # samples: 25 ms and 10 ms
# Statistics of AudioSet used to train every published checkpoint. The published code divides by twice the std.
MEAN, STD = 15.41663, 6.55582

# Entries of a checkpoint's "cfg" that define the model, with the published sizes. Its other entries concern training.
_CONFIG = {
    "input_patch_size": 16,
    "embed_dim": 512,
    "conv_bias": False,
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "num_buckets": 320,
    "max_distance": 800,
}
# Options of the published code that have the same value in every published checkpoint.
_FIXED = {
    "deep_norm": True,
    "layer_norm_first": False,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
    "activation_fn": "gelu",
}
_POSITION = "self_attn.relative_attention_bias.weight"


class BEATsEncoder(nn.Module):
    """BEATs for a batch of clips; the result of a clip does not depend on the other clips.

    The log-mel spectrogram of a clip (128 bins, one frame per 10 ms) is split into patches of 16 x 16. The transformer
    reads them as one sequence: the 8 patches of the first 160 ms, lowest frequency first, then those of the next
    160 ms. This gives 50 frames per second, the frame rate of Whisper, and `pool: 8` averages over frequency. The last
    samples that do not fill a patch (less than 160 ms) are dropped, as published. Dropout and layer drop of a
    configuration are not applied.

    Parameters
    ----------
    source : str or dict
        A published checkpoint (`.pt`), pretrained or fine-tuned for tagging (its classifier is not loaded), or a folder
        or a repository of the Hugging Face hub with one such file. A mapping has entries of the checkpoints' `cfg`, and
        the weights are random.
    layers : list of int, optional
        Blocks whose outputs are returned, 0 the first, -1 the last; all if None.
    pool : int
        Consecutive frames that are combined into one.
    pooling : {"mean", "max", "stride"}
        How frames are combined: average, maximum of each dimension, or the first frame.
    layer_mix : "mean" or list of float, optional
        Return one layer after pooling: the average of `layers`, or their sum with these weights.
    dtype : {"float32", "bfloat16", "float16"}
        Dtype of weights and computation; features are always float32. bfloat16 needs half the memory and is faster on
        GPUs and on CPUs with AVX512-BF16 or AMX.

    Attributes
    ----------
    feature_dim, num_layers : int
        D and L of the features.
    frame_seconds : float
        Duration of one frame of the features: 20 ms x `pool`.
    """

    def __init__(
        self,
        source: str | dict[str, Any],
        layers: list[int] | None = None,
        pool: int = 1,
        pooling: str = "mean",
        layer_mix: str | list[float] | None = None,
        dtype: str = "float32",
    ):
        super().__init__()
        path: str | Path = "source"
        state: dict[str, Tensor] | None = None
        if isinstance(source, dict):
            entries = source
        else:
            path, checkpoint = read_checkpoint("beats", str(source), "*.pt")
            if not isinstance(checkpoint, dict) or not {"cfg", "model"} <= checkpoint.keys():
                raise ConfigError(f"beats: {path} is not a BEATs checkpoint (no 'cfg' or 'model'); name another file")
            entries, state = checkpoint["cfg"], checkpoint["model"]
        config: dict[str, Any] = _CONFIG | {name: entries[name] for name in _CONFIG if name in entries}
        check_sizes(f"beats: {path}", config)
        for name, value in _FIXED.items():
            if entries.get(name, value) != value:
                raise ConfigError(
                    f"beats: {path}: {name} is {entries[name]!r}; all published models have {value!r}, and no other "
                    "value is supported; name another checkpoint"
                )
        self.selection = LayerSelection("beats", config["encoder_layers"], layers, pool, pooling, layer_mix)
        self.patch, self.max_distance = config["input_patch_size"], config["max_distance"]

        # Module names are those of the checkpoints.
        dim, embed = config["encoder_embed_dim"], config["embed_dim"]
        self.patch_embedding = nn.Conv2d(1, embed, self.patch, stride=self.patch, bias=config["conv_bias"])
        self.layer_norm = nn.LayerNorm(embed)
        self.post_extract_proj = nn.Linear(embed, dim) if embed != dim else nn.Identity()
        self.position_bias = nn.Embedding(config["num_buckets"], config["encoder_attention_heads"])
        convolution = nn.Conv1d(
            dim, dim, config["conv_pos"], padding=config["conv_pos"] // 2, groups=config["conv_pos_groups"]
        )
        convolution = nn.utils.parametrizations.weight_norm(convolution, dim=2)
        blocks = [_Block(config) for _ in range(config["encoder_layers"])]
        self.encoder = nn.ModuleDict(
            {"pos_conv": nn.ModuleList([convolution]), "layer_norm": nn.LayerNorm(dim), "layers": nn.ModuleList(blocks)}
        )
        if state is not None:
            self._load(path, state)
        self.encoder["layers"] = self.encoder["layers"][: self.selection.depth]
        cast_weights("beats", self, dtype)
        self.dtype = dtype

        self.bands = MELS // self.patch
        self.min_samples = WINDOW + (self.patch - 1) * HOP
        self.feature_dim, self.num_layers = dim, self.selection.num_layers
        self.frame_seconds = self.patch * HOP * pool / (self.bands * SAMPLE_RATE)

    def _load(self, path: str | Path, state: dict[str, Tensor]) -> None:
        """Load published weights; missing and unexpected tensors are errors."""
        state = {name: tensor for name, tensor in state.items() if not name.startswith("predictor.")}
        # All blocks use the same table, and the file has a copy of it for each block.
        tables = {name: state.pop(name) for name in list(state) if name.endswith(_POSITION)}
        first = tables.get(f"encoder.layers.0.{_POSITION}")
        if first is not None:
            if any(not torch.equal(table, first) for table in tables.values()):
                raise ConfigError(f"beats: {path}: position biases differ between its blocks; name another file")
            state["position_bias.weight"] = first
        missing, unexpected = self.load_state_dict(state, strict=False)
        if missing or unexpected:
            raise ConfigError(
                f"beats: {path}: {len(missing)} tensors are missing {missing[:3]}, {len(unexpected)} are unexpected "
                f"{unexpected[:3]}; name a pretrained or fine-tuned BEATs checkpoint, not that of a tokenizer"
            )

    def num_frames(self, samples: Count) -> Count:
        """Frames of the features for clips of `samples` samples; int for int, int64 tensor for tensor.

        Raises
        ------
        ValueError
            A clip is shorter than one patch.
        """
        check_clip_length("beats", samples, self.min_samples)
        return self.selection.num_frames(self._patches(samples))

    def _patches(self, samples: Count) -> Count:
        return (1 + (samples - WINDOW) // HOP) // self.patch * self.bands

    def identity(self) -> dict[str, Any]:
        """Everything that changes the features, as JSON values: encoders with equal identities give equal features."""
        return {
            "type": "beats",
            "weights": weights_digest(self),
            "dtype": self.dtype,
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
            A clip is shorter than one patch.
        """
        lengths = lengths.to(waveforms.device)
        check_clip_length("beats", lengths, self.min_samples)
        mel = self._log_mel(waveforms, lengths)  # [B, M, 128]
        x = self.patch_embedding(mel[:, None].to(self.patch_embedding.weight.dtype))  # [B, C, M / 16, 8]
        x = self.post_extract_proj(self.layer_norm(x.flatten(2).transpose(1, 2)))  # [B, T, D]
        frames = self._patches(lengths)
        valid = valid_mask(frames, x.shape[1])
        # The positional convolution reads zeros after a clip's end, as for the clip alone.
        x = x.masked_fill(~valid[..., None], 0)
        position = self.encoder["pos_conv"][0](x.transpose(1, 2))[..., : x.shape[1]]
        x = self.encoder["layer_norm"](x + F.gelu(position).transpose(1, 2))

        bias = position_bias(self.position_bias, x.shape[1], self.max_distance)
        outputs = {}
        for index, block in enumerate(self.encoder["layers"]):
            x = block(x, valid, bias)
            if index in self.selection.indices:
                outputs[index], pooled = self.selection.reduce(x, frames)
        return self.selection.join(outputs), pooled

    def _log_mel(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Kaldi's log-mel spectrogram [B, M, 128], M a multiple of the patch; each frame depends on its 25 ms only."""
        longest = int(lengths.max())
        with torch.autocast(waveforms.device.type, enabled=False):  # power spectra need float32
            clips = waveforms[:, :longest].float() * 2**15
            mels = [kaldi.fbank(clip[None], num_mel_bins=MELS, sample_frequency=SAMPLE_RATE) for clip in clips]
            mel = (torch.stack(mels) - MEAN) / (2 * STD)
        return mel[:, : mel.shape[1] // self.patch * self.patch]


class _Attention(nn.Module):
    """Self-attention with WavLM's gated position bias; unlike in WavLM, the gate reads the projected queries."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))
        self.grep_linear = nn.Linear(dim // heads, 8)
        self.grep_a = nn.Parameter(torch.ones(1, heads, 1, 1))

    def forward(self, x: Tensor, valid: Tensor, bias: Tensor) -> Tensor:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in projections)  # [B, heads, T, head]
        mask = (gate(q, self.grep_linear, self.grep_a) * bias).masked_fill(~valid[:, None, None], -torch.inf)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype))
        return self.out_proj(h.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    """Post-norm transformer block with the residual scaling of DeepNorm (Wang et al. 2022, arXiv 2203.00555)."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        dim, hidden_dim = config["encoder_embed_dim"], config["encoder_ffn_embed_dim"]
        self.alpha = (2 * config["encoder_layers"]) ** 0.25
        self.self_attn = _Attention(dim, config["encoder_attention_heads"])
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor, valid: Tensor, bias: Tensor) -> Tensor:
        x = self.self_attn_layer_norm(self.alpha * x + self.self_attn(x, valid, bias))
        return self.final_layer_norm(self.alpha * x + self.fc2(F.gelu(self.fc1(x))))


COMPONENT = BEATsEncoder
