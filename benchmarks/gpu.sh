#!/usr/bin/env bash
# All that wants a GPU, within ten minutes: decoding speed at Llama-3.2-1B geometry, the train step at 1B and 3B geometry
# (bfloat16 with LoRA against a plain loop, and on 4-bit weights where bitsandbytes is installed), DeepSpeed's ZeRO on this
# one GPU where it is installed, and the MiniASQA curriculum. Every line of standard output that starts with { is one JSON object.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
PYTHON="${PYTHON:-python3}"
timeout 115 "$PYTHON" benchmarks/decode.py | tail -n 1
timeout 230 "$PYTHON" benchmarks/train_step.py --items 64 --rounds 2 | tail -n 1
timeout 60 "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node 1 benchmarks/zero.py | tail -n 1
cd recipes/MiniASQA/ltu_as && timeout 195 "$PYTHON" quickstart.py --device cuda | tail -n 1
