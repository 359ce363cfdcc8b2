#!/bin/bash
# Map the clusters of a run on slides: each job of the array maps one slide. Submit it in the checkout:
#
#     ls /data/slides/*.svs > slides.txt
#     LIST=slides.txt RUN=runs/mine OUT=runs/maps sbatch --array=1-$(wc -l < slides.txt) slurm/map.sh
#
# LIST     a file with a slide on each line
# RUN      the folder of a finished run, or of a generator
# OUT      each slide's maps go to OUT/NAME-OF-ITS-FILE
# OPTIONS  further options of `python -m pfiles map`
# PYTHON   default .venv/bin/python
#SBATCH --job-name=map
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
slide=$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$LIST")
if [ -z "$slide" ]; then
    echo "error: $LIST has no line $SLURM_ARRAY_TASK_ID: submit no larger array than it has lines." >&2
    exit 2
fi
# OPTIONS are several words
# shellcheck disable=SC2086
exec "${PYTHON:-.venv/bin/python}" -m pfiles map --slide "$slide" --run "$RUN" --out "$OUT/$(basename "$slide")" ${OPTIONS:-}
