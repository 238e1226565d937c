#!/usr/bin/env bash
# From nothing to a model that hears: installs, makes MiniASQA, trains stages 1 to 3, evaluates, compiles, times, reports.
#   ./quickstart.sh            uses again what is there
#   ./quickstart.sh --fresh    starts anew
# The last line of standard output is one JSON object with the results.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. tools/environment.sh
use_environment captioning
cd recipes/MiniASQA/ltu_as
exec env TOKENIZERS_PARALLELISM=false "$PYTHON" quickstart.py "$@"
