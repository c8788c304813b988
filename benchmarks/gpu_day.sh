#!/usr/bin/env bash
# Every claim that only a GPU can settle, on one CUDA machine, in about an hour.
#
#   benchmarks/gpu_day.sh                 all steps that are not done yet
#   benchmarks/gpu_day.sh parity device   these steps, again
#   DEVICE=cpu benchmarks/gpu_day.sh      a rehearsal: the same commands on the CPU, with small numbers
#
# A step ends within nine minutes (it is stopped then, and said) and writes its output to
# benchmarks/results/gpu/NAME.txt as it goes; NAME.done marks the steps that a rerun leaves out.
# GOLDENS is a folder of reference outputs, if you have them; CLIPS one of videos.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
DEVICE=${DEVICE:-cuda}
RESULTS=${RESULTS:-benchmarks/results/$([ "$DEVICE" = cpu ] && echo rehearsal || echo gpu)}
LIMIT=${LIMIT:-540}
[ "$DEVICE" = cpu ] && VIDEOS=4 || VIDEOS=60
if [ "$DEVICE" != cpu ] && ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "torch sees no CUDA device here: see \`aqa doctor\`, or rehearse with DEVICE=cpu" >&2
  exit 5
fi
mkdir -p "$RESULTS"

machine() {
  "$PYTHON" -m aqa_pipelines doctor
  command -v nvidia-smi >/dev/null && nvidia-smi || true
}
tests() { "$PYTHON" -m pytest -q -rs -m gpu tests; }
parity() { "$PYTHON" benchmarks/parity.py --device "$DEVICE" ${GOLDENS:+--goldens "$GOLDENS"} ${CLIPS:+--clips "$CLIPS"}; }
tvl1() { "$PYTHON" benchmarks/tvl1.py --device "$DEVICE" --pairs "$([ "$DEVICE" = cpu ] && echo 2 || echo 64)"; }
i3d() { "$PYTHON" benchmarks/i3d.py --device "$DEVICE" --clips "$([ "$DEVICE" = cpu ] && echo 2 || echo 32)"; }
ssd() { "$PYTHON" benchmarks/ssd.py --device "$DEVICE"; }
stages() { "$PYTHON" benchmarks/stages.py --device "$DEVICE" --json "$RESULTS/stages.json"; }
device() { "$PYTHON" benchmarks/device.py --device "$DEVICE" --videos "$VIDEOS" --reference 4 --json "$RESULTS/device.json" --profile "$RESULTS/profile.txt"; }
device_bf16() { "$PYTHON" benchmarks/device.py --device "$DEVICE" --videos "$VIDEOS" --reference 2 --precision bf16 --json "$RESULTS/device_bf16.json"; }
device_fp16() { "$PYTHON" benchmarks/device.py --device "$DEVICE" --videos "$VIDEOS" --reference 2 --precision fp16 --json "$RESULTS/device_fp16.json"; }
train() { "$PYTHON" benchmarks/train.py --epochs 1 --json "$RESULTS/train.json"; }
together() { for p in fp32 bf16; do "$PYTHON" benchmarks/together.py --device "$DEVICE" --precision $p --trainings "$([ "$DEVICE" = cpu ] && echo 3 || echo 30)" || return; done; }
demo() {
  local out
  out=$(mktemp -d)
  "$PYTHON" -m aqa_pipelines demo --out "$out"
  local rc=$?
  rm -rf "$out"
  return $rc
}
STEPS=(machine tests parity tvl1 i3d ssd stages device device_bf16 device_fp16 train together demo)

if [ $# -gt 0 ]; then
  asked=("$@")
else
  asked=()
  for step in "${STEPS[@]}"; do [ -e "$RESULTS/$step.done" ] || asked+=("$step"); done
fi
export PYTHON DEVICE RESULTS VIDEOS GOLDENS CLIPS 2>/dev/null
failed=0
for step in ${asked[@]+"${asked[@]}"}; do
  if [ "$(type -t "$step")" != function ]; then
    echo "no step $step: ${STEPS[*]}" >&2
    exit 2
  fi
  rm -f "$RESULTS/$step.done"
  start=$SECONDS
  # A function runs under `timeout` only in a shell of its own.
  timeout --kill-after=20 "$LIMIT" bash -c "$(declare -f "$step"); $step" >"$RESULTS/$step.txt" 2>&1
  rc=$?
  case $rc in
    0) touch "$RESULTS/$step.done" && said=done ;;
    124 | 137) said="stopped after $LIMIT s" && failed=1 ;;
    *) said="exit $rc" && failed=1 ;;
  esac
  echo "$step: $said ($((SECONDS - start)) s): $RESULTS/$step.txt"
  [ $rc -eq 0 ] || tail -5 "$RESULTS/$step.txt"
done
exit $failed
