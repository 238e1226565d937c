# Sourced by test.sh and quickstart.sh: finds or makes the Python environment and installs what is missing.
#   use_environment [--fresh] EXTRAS    e.g. use_environment captioning,test; sets PYTHON
# An active virtual environment is used as it is; without one, the script makes .venv in the repository. Progress goes
# to standard error. Safe to interrupt at any point: the stamp that says "installed" is written last.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# Exact pins, not the ranges of pyproject.toml: a range takes the newest torch, and on Linux the Python package index's
# torch needs several GB of CUDA libraries. With a pin pip prefers "2.13.0+cpu" wherever a configured index offers it.
# torchaudio 2.11 works with every torch from 2.11 on, if both are built for the same CPU or CUDA.
TORCH_PIN="torch==2.13.0"
TORCHAUDIO_PIN="torchaudio==2.11.0"
PYTORCH_INDEX="https://download.pytorch.org/whl" # PyTorch's own index, one folder per build: cpu, cu126, cu130, ...

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

imports() { "$PYTHON" -c "import $1" >/dev/null 2>&1; }

# The build of the installed torch ("2.13.0+cu130": cu130), or the one to install: cpu on Linux without a GPU.
# Empty where the Python package index has the right build.
torch_build() {
  if ! "$PYTHON" -c 'import torch; print(torch.__version__.partition("+")[2])' 2>/dev/null; then
    if [ "$(uname -s)" = Linux ] && ! has_gpu; then printf 'cpu\n'; fi
  fi
}

# The folder of PyTorch's index with torchaudio for that build, if it can be reached.
torch_index() {
  if [ -n "$1" ] && "$PYTHON" - "$PYTORCH_INDEX/$1" <<'PY' >/dev/null 2>&1
import sys, urllib.request
urllib.request.urlopen(sys.argv[1] + "/torchaudio/", timeout=5).close()
PY
  then
    printf '%s\n' "$PYTORCH_INDEX/$1"
  fi
}

pip_install() { "$PYTHON" -m pip install --disable-pip-version-check --no-compile "$@" >&2; }

# torch and torchaudio in one step and from the same index, so that they match. A torch in the range of pyproject.toml
# stays, since GPU machines have their own build, and so does a torchaudio that loads.
install_torch() {
  local build index pins=("$TORCHAUDIO_PIN")
  if ! "$PYTHON" -c 'import sys, torch; sys.exit(not (2, 11) <= tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14))' \
    >/dev/null 2>&1; then
    pins=("$TORCH_PIN" "$TORCHAUDIO_PIN")
  elif imports torchaudio; then
    return 0
  fi
  build="$(torch_build)"
  index="$(torch_index "$build")"
  pip_install ${index:+--extra-index-url "$index"} "${pins[@]}"
}

# One line where the pair does not match: the library copes, the user's own scripts do not.
warn_torchaudio() {
  if imports torchaudio; then return 0; fi
  local build cure="install a torchaudio that was built for this torch"
  build="$(torch_build)"
  case "$build" in
    cpu | cu[0-9]* | rocm* | xpu)
      cure="$PYTHON -m pip install --force-reinstall --no-deps $TORCHAUDIO_PIN --index-url $PYTORCH_INDEX/$build" ;;
  esac
  say "Note: torchaudio does not load with this build of torch. In your own scripts, put \`import audiolm_lite\` before" \
    "torchaudio, speechbrain, peft and transformers, or their import fails. To remove this limit: $cure"
}

# What the installation depends on: a change of any of these installs again, nothing else does.
installation_key() {
  "$PYTHON" - "$ROOT" "$1" "$TORCH_PIN" "$TORCHAUDIO_PIN" <<'PY'
import hashlib, sys
from pathlib import Path

root, *rest = sys.argv[1:]
described = Path(root, "pyproject.toml").read_bytes()
print(hashlib.sha256(repr((root, rest, described, sys.version, sys.prefix)).encode()).hexdigest())
PY
}

use_environment() {
  local fresh= extras stamp key
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
  install_torch || return 1
  pip_install --editable "$ROOT[$extras]" || return 1
  warn_torchaudio
  printf '%s' "$key" >"$stamp.part" && mv "$stamp.part" "$stamp"
}
