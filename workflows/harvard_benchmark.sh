#!/usr/bin/env bash
# The table in the README: every method, the knob, and three published ones on 21 FDG-PET/T1 slice pairs.
#   workflows/harvard_benchmark.sh [DATA] [WEIGHTS_DIR] [OUT]
# DATA holds val/MRI, val/PET and peers/NAME (fused pictures, named as the pairs are).
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
data=${1:-$here/../shared/data/harvard}
export FUSIONFLOW_WEIGHTS_DIR=${2:-$here/../shared/weights}
out=${3:-benchmark}
fusionflow=$here/.venv/bin/fusionflow
[ -x "$fusionflow" ] || fusionflow=fusionflow
peers=()
for folder in "$data"/peers/*/; do
  peers+=(--scores-of "$(basename "$folder")=${folder%/}")
done
"$fusionflow" benchmark "$data/val" --offline "${peers[@]}" -o "$out" \
  --balances 0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,0.95,0.98,1
