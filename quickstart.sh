#!/usr/bin/env bash
# Installs the project, fetches two pretrained models, prepares the real speech and sounds that come with it, trains
# stages 1 to 3, evaluates, compiles, measures latency, writes a report, and transcribes and describes clips.
#   ./quickstart.sh                 keeps what is already done
#   ./quickstart.sh my.wav          also transcribes and describes a recording of yours, or several
#   ./quickstart.sh --fresh         starts again
#   ./quickstart.sh --from_scratch  starts from an untrained adapter, not from the released model
#   ./quickstart.sh --synthetic     MiniASQA in its place: synthetic audio, models in the repository, no download
# Options after these go to every step (--device cuda). The last line of standard output is one JSON object with the
# results. Where the models can't be fetched, the synthetic quick start runs.
set -euo pipefail

recipe=TinyReal options=() real=()
while [ $# -gt 0 ]; do
  case "$1" in
    --synthetic) recipe=MiniASQA ;;
    --from_scratch) real+=("$1") ;;
    --fresh | --debug) options+=("$1") ;;
    --*) options+=("$@"); break ;;
    *)
      if ! [ -f "$1" ]; then echo "quickstart.sh: no such file: $1" >&2; exit 1; fi
      real+=("$(cd "$(dirname "$1")" && pwd)/$(basename "$1")")
      ;;
  esac
  shift
done

cd "$(dirname "${BASH_SOURCE[0]}")"
. tools/environment.sh
use_environment captioning
if [ "$recipe" = TinyReal ]; then
  status=0
  "$PYTHON" -m audiolm_lite fetch whisper-tiny.en smollm2-135m-instruct || status=$?
  case "$status" in
    0) options=(${real[@]+"${real[@]}"} ${options[@]+"${options[@]}"}) ;;
    1)
      say "The pretrained models could not be fetched (see above), so MiniASQA runs in place of the real quick start:"
      say "synthetic speech and sounds, with models of the repository. Its results say nothing about real audio, and it"
      say "does not answer recordings. Run ./quickstart.sh again when the network is there."
      recipe=MiniASQA
      ;;
    *) exit "$status" ;;
  esac
elif [ ${#real[@]} -gt 0 ]; then
  say "With --synthetic, ${real[*]} is not used: the model hears synthetic audio only, and always starts from scratch."
fi
cd "recipes/$recipe/ltu_as"
exec env TOKENIZERS_PARALLELISM=false "$PYTHON" quickstart.py ${options[@]+"${options[@]}"}
