#!/usr/bin/env bash
# All that wants a GPU, within ten minutes: decoding speed at Llama-3.2-1B geometry, and the MiniASQA curriculum.
# Every line of standard output that starts with { is one JSON object.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
PYTHON="${PYTHON:-python3}"
timeout 240 "$PYTHON" benchmarks/decode.py | tail -n 1
cd recipes/MiniASQA/ltu_as && timeout 340 "$PYTHON" quickstart.py --device cuda | tail -n 1
