#!/usr/bin/env bash
# Installs the project, generates MiniASQA, trains stages 1 to 3, evaluates, compiles, measures latency, writes a report.
#   ./quickstart.sh            keeps what is already done
#   ./quickstart.sh --fresh    starts from scratch
# The last line of standard output is one JSON object with the results.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. tools/environment.sh
use_environment captioning
cd recipes/MiniASQA/ltu_as
exec env TOKENIZERS_PARALLELISM=false "$PYTHON" quickstart.py "$@"
