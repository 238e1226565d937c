#!/usr/bin/env bash
# Installs what is missing, then runs the linter, the formatter check, the type checker, the build of the API
# reference and the whole test suite.
#   ./test.sh                                  everything
#   ./test.sh tests/encoders -k batch          arguments go to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. tools/environment.sh
use_environment captioning,data,test

# Two workers with one thread each: faster than threads for models this small, and sums keep one order.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg
# Many tests start interpreters; compiled modules are kept, also where the environment turns that off.
export PYTHONPYCACHEPREFIX="$PWD/.cache/bytecode"
unset PYTHONDONTWRITEBYTECODE

"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
"$PYTHON" tools/api_reference.py
exec "$PYTHON" -m pytest -q -n 2 "$@"
