#!/usr/bin/env bash
# Train the ad classifier with both fine-tuning presets, one after the other, and compare them.
#
#     scripts/run_directFT_lightning.sh data.base_dir=/path/to/data train.epochs=10
#
# Arguments go to both trainings. The same command again continues what was interrupted. Results: whole_finetune/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=.venv/bin/python
if [[ ! -x $python ]]; then
  echo "error: no $python; create it with: make train APP=multimodal_ads" >&2
  exit 2
fi

folders=()
for experiment in directFT_lightning_base directFT_lightning_1_allLayers_mean; do
  echo "== $experiment"
  code=0
  "$python" apps/multimodal_ads/train.py "+experiment=$experiment" "$@" || code=$?
  if ((code == 75 || code == 76)); then
    echo "$experiment was stopped (by a signal or --max_hours) and saved; the same command continues it" >&2
    exit "$code"
  elif ((code != 0)); then
    echo "error: $experiment failed with exit code $code; nothing was trained after it" >&2
    exit "$code"
  fi
  folders+=("whole_finetune/$experiment")
done
"$python" scripts/compare_results.py "${folders[@]}" --output_dir whole_finetune
