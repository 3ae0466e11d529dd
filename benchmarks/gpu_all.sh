#!/usr/bin/env bash
# All that is measured on one GPU, in order of worth, within nine minutes.
#
#     bash benchmarks/gpu_all.sh              # from the root of the repository; results in gpu-results/
#     DEVICE=cpu bash benchmarks/gpu_all.sh   # a dry run with tiny shapes, on any machine
#
# Runs from the source tree, without installing it. Wheels in gpu-wheels/ (see gpu_wheels.txt) are
# installed first, without a network. Each part has its own time limit and writes its JSON as it goes;
# one that fails does not stop the next. Ends with 1 where a part failed.
set -uo pipefail
cd "$(dirname "$0")/.."
DEVICE=${DEVICE:-cuda}
OUT=${OUT:-gpu-results}
PYTHON=${PYTHON:-python3}
export PYTHONPATH=src PYTHONUNBUFFERED=1 STILLHOUSE_TEST_DEVICE=$DEVICE
mkdir -p "$OUT"
failed=0
shapes=(--device "$DEVICE")
deselected=()
if [ "$DEVICE" = cpu ]; then
  shapes+=(--tiny --repeats 2)
  deselected=(--deselect tests/objectives/test_waiting.py) # needs CUDA's own watch on waits
fi

part() { # part NAME SECONDS COMMAND...
  local name=$1 seconds=$2 started=$SECONDS code=0
  shift 2
  timeout "$seconds" "$@" > "$OUT/$name.log" 2>&1 || code=$?
  [ "$code" -eq 0 ] || failed=1
  tail -n 25 "$OUT/$name.log"
  echo "== $name: exit $code after $((SECONDS - started)) s"
  printf '{"part": "%s", "exit": %d, "seconds": %d}\n' \
    "$name" "$code" $((SECONDS - started)) >> "$OUT/parts.jsonl"
}

: > "$OUT/parts.jsonl"
if compgen -G 'gpu-wheels/*.whl' > /dev/null; then
  part wheels 60 "$PYTHON" -m pip install --no-index --no-deps gpu-wheels/*.whl
fi
part versions 30 "$PYTHON" -c '
import json, sys
from benchmarks import measure
print(json.dumps({"python": sys.version.split()[0], **measure.environment()}, indent=1))'
# addopts names plugins that such a machine need not have
part tests 120 "$PYTHON" -m pytest -o addopts= -q -m gpu "${deselected[@]}" \
  --junitxml "$OUT/tests.xml" tests/gpu tests/objectives/test_waiting.py
part step-gpt2 140 "$PYTHON" -m benchmarks.gpu --pair gpt2 "${shapes[@]}" --output "$OUT/step-gpt2.json"
part step-bert 140 "$PYTHON" -m benchmarks.gpu --pair bert "${shapes[@]}" --output "$OUT/step-bert.json"
part memory 50 "$PYTHON" -m benchmarks.gpu_memory "${shapes[@]}" --output "$OUT/memory.json"
exit "$failed"
