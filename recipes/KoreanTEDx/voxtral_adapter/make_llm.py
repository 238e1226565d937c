"""Create a small random Llama with one token per byte, which can write Korean: python make_llm.py data/llm

It replaces Voxtral's language model on machines that are too small for it. It is not pretrained, so it is trained
together with the projector.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

# Importing audiolm_lite also makes torchaudio importable, which the Llama of transformers imports.
from audiolm_lite.config.errors import UserError, run_command

SPECIAL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[BEGIN_AUDIO]", "[TRANSCRIBE]"]


def main(argv: list[str]) -> None:
    if len(argv) != 1:
        raise UserError("give one argument, the folder to write: python make_llm.py data/llm")
    folder = Path(argv[0])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate([*SPECIAL, *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[3:]})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1986)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=2048, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


if __name__ == "__main__":
    run_command(main)
