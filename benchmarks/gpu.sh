#!/usr/bin/env bash
# Benchmarks that need a GPU, about twelve minutes: decoding speed at Llama-3.2-1B geometry, the training step at 1B and
# 3B geometry (bfloat16 with LoRA against a plain loop, and on 4-bit weights if bitsandbytes is installed), DeepSpeed's
# ZeRO on this GPU if it is installed, and the MiniASQA curriculum. Every line of standard output that starts with { is
# one JSON object. A benchmark that does not end within its limit prints nothing.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
PYTHON="${PYTHON:-python3}"
timeout 120 "$PYTHON" benchmarks/decode.py --device cuda | tail -n 1
timeout 300 "$PYTHON" benchmarks/train_step.py --items 64 --rounds 2 | tail -n 1
timeout 150 "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node 1 benchmarks/zero.py | tail -n 1
cd recipes/MiniASQA/ltu_as && timeout 240 "$PYTHON" quickstart.py --device cuda | tail -n 1
