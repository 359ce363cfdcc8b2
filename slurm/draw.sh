#!/bin/bash
# Draw the images of part 6: each job of the array draws some of their numbers. Submit it in the checkout after the
# trainings, with the run.toml that they had:
#
#     CLUSTERS=14 IMAGES=10000 sbatch slurm/draw.sh
#
# IMAGES        how many images the run has: sampling.num_generated, or the number of its training tiles
# CLUSTERS      default 14
# PARTS         how many jobs share them; default the last number of the array. Say it to submit some again
# KPC_RUN_TOML  another file than run.toml
# PYTHON        default .venv/bin/python
#SBATCH --job-name=draw
#SBATCH --array=1-8
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --time=1-00:00:00
#SBATCH --requeue
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
id=$SLURM_ARRAY_TASK_ID parts=${PARTS:-$SLURM_ARRAY_TASK_MAX}
first=$(((id - 1) * IMAGES / parts + 1)) last=$((id * IMAGES / parts))
mkdir -p runs/drawn
exec "${PYTHON:-.venv/bin/python}" -m papermill clusters_14/part_6_conditional_generation.ipynb \
    "runs/drawn/$first-$last.ipynb" --cwd clusters_14 --no-progress-bar \
    -y "{n_clusters: ${CLUSTERS:-14}, only: [$first, $last]}"
