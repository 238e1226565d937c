"""Text generation: `prefill` and `decode_step` over a static key/value cache, and the loops that call them."""

from audiolm_lite.decoding.beam import beam_search
from audiolm_lite.decoding.generate import Sampling, generate
from audiolm_lite.decoding.state import DecodeState, decode_step, prefill

__all__ = ["DecodeState", "Sampling", "beam_search", "decode_step", "generate", "prefill"]
