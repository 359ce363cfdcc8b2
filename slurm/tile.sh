#!/bin/bash
# Cut slides into tiles: each job of the array cuts a part of the slides. Submit it in the checkout:
#
#     SLIDES=/data/slides OUT=/data/tiles sbatch slurm/tile.sh
#
# SLIDES   slides or folders of them, separated by spaces
# OUT      the folder of tiles; the parts go to OUT.parts/1, OUT.parts/2 ...
# OPTIONS  further options of `python -m pfiles tile`, such as "--mpp 0.5 --size 128 --slides-csv patients.csv"
# PARTS    how many parts; default the last number of the array. Say it to submit some parts again (sbatch --array=3,7)
# PYTHON   default .venv/bin/python
#
# When all parts are done:  .venv/bin/python -m pfiles tile --join OUT.parts/* --out OUT
#SBATCH --job-name=tile
#SBATCH --array=1-10
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=1-00:00:00
#SBATCH --requeue
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
part=$SLURM_ARRAY_TASK_ID/${PARTS:-$SLURM_ARRAY_TASK_MAX}
# SLIDES and OPTIONS are several words
# shellcheck disable=SC2086
exec "${PYTHON:-.venv/bin/python}" -m pfiles tile $SLIDES ${OPTIONS:-} --allow-missing \
    --part "$part" --out "$OUT.parts/$SLURM_ARRAY_TASK_ID"
