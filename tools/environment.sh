# Sourced by test.sh and quickstart.sh: finds or makes the Python environment and installs what is missing.
#   use_environment [--fresh] EXTRAS    e.g. use_environment captioning,test; sets PYTHON
# An active virtual environment is used as it is; without one, .venv beside this repository is made. Progress goes to
# standard error. Safe to interrupt at any point: the stamp that says "installed" is written last.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# An exact pin, not setup.py's range: a range takes the newest torch, and on Linux that of the Python package index brings
# several GB of CUDA libraries. A pin lets pip prefer "2.13.0+cpu" wherever a configured index offers it.
TORCH_PIN="torch==2.13.0"
TORCH_CPU_INDEX="https://download.pytorch.org/whl/cpu"

say() { printf '%s\n' "$*" >&2; }

# The first interpreter that runs, is 3.10-3.12 and can make environments (Debian splits venv off; shims may not run).
find_python() {
  local candidate
  for candidate in python3 python3.12 python3.11 python3.10 python; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
      >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
  say "No Python 3.10, 3.11 or 3.12 with the venv module was found on PATH."
  say "Install one (Debian, Ubuntu: apt install python3 python3-venv; elsewhere: https://www.python.org/downloads/)."
  return 1
}

has_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; }

# Where there is no GPU, offer pip PyTorch's own index of CPU builds besides the configured ones, if it can be reached.
torch_index() {
  if [ "$(uname -s)" = Linux ] && ! has_gpu && "$PYTHON" - "$TORCH_CPU_INDEX" <<'PY' >/dev/null 2>&1
import sys, urllib.request
urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=5).close()
PY
  then
    printf '%s\n' --extra-index-url "$TORCH_CPU_INDEX"
  fi
}

# What the installation depends on: a change of any of these installs again, nothing else does.
installation_key() {
  "$PYTHON" - "$ROOT" "$1" "$TORCH_PIN" <<'PY'
import hashlib, sys
from pathlib import Path

root, *rest = sys.argv[1:]
files = [Path(root, name).read_bytes() for name in ("setup.py", "extra_requirements.txt")]
print(hashlib.sha256(repr((root, rest, files, sys.version, sys.prefix)).encode()).hexdigest())
PY
}

use_environment() {
  local fresh= extras stamp key index
  if [ "$1" = --fresh ]; then fresh=yes; shift; fi
  extras="$1"

  if [ -n "${VIRTUAL_ENV:-}" ] && [ -x "$VIRTUAL_ENV/bin/python" ]; then
    PYTHON="$VIRTUAL_ENV/bin/python" # somebody else's: --fresh does not remove it, only installs again
  else
    [ -z "$fresh" ] || rm -rf "$ROOT/.venv"
    PYTHON="$ROOT/.venv/bin/python"
    if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then # none yet, half made, or its interpreter is gone
      local system
      system="$(find_python)" || return 1
      say "Making $ROOT/.venv with $("$system" --version)"
      rm -rf "$ROOT/.venv"
      "$system" -m venv "$ROOT/.venv" || return 1
    fi
  fi

  stamp="$("$PYTHON" -c 'import sys; print(sys.prefix)')/.audiolm_lite-${extras//,/-}"
  key="$(installation_key "$extras")" || return 1
  [ -z "$fresh" ] || rm -f "$stamp"
  if [ "$(cat "$stamp" 2>/dev/null)" = "$key" ]; then return 0; fi

  say "Installing into $(dirname "$stamp") (once, some minutes) ..."
  # --no-compile: bytecode is written on first import, and most of these files are never imported.
  # A torch that is there and in setup.py's range stays: GPU machines carry their own build.
  if ! "$PYTHON" -c 'import sys, torch; sys.exit(not (2, 11) <= tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14))' \
    >/dev/null 2>&1; then
    index="$(torch_index)"
    # shellcheck disable=SC2086 # two words on purpose
    "$PYTHON" -m pip install --disable-pip-version-check --no-compile $index "$TORCH_PIN" >&2 || return 1
  fi
  "$PYTHON" -m pip install --disable-pip-version-check --no-compile --editable "$ROOT[$extras]" >&2 || return 1
  printf '%s' "$key" >"$stamp.part" && mv "$stamp.part" "$stamp"
}
