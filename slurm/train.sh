#!/bin/bash
# All trainings of a run, one after the other, each on all GPUs of all nodes. Submit it in the checkout, where run.toml
# says data, preset and the folder of results:
#
#     CLUSTERS=14 sbatch slurm/train.sh
#
# CLUSTERS      default 14
# TRAININGS     default "train_autoencoder part_1_training part_2_finetuning1 part_3_finetuning2"
# GPUS          of each node; default 4
# KPC_RUN_TOML  another file than run.toml
# PYTHON        default .venv/bin/python
#
# Two minutes before its time is over the training leaves a resume point, and the job goes to the end of the queue.
#SBATCH --job-name=train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-.}" || exit
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
step='' stopped=''
trap 'stopped=1; [ -z "$step" ] || kill -TERM "$step"' TERM
for training in ${TRAININGS:-train_autoencoder part_1_training part_2_finetuning1 part_3_finetuning2}; do
    srun "${PYTHON:-.venv/bin/python}" -m torch.distributed.run --nnodes "$SLURM_NNODES" \
        --nproc-per-node "${GPUS:-4}" --rdzv-backend c10d --rdzv-endpoint "$host:29500" --rdzv-id "$SLURM_JOB_ID" \
        -m pfiles cells "$training" --clusters "${CLUSTERS:-14}" &
    step=$!
    [ -z "$stopped" ] || kill -TERM "$step" # the signal came before there was a training
    wait "$step"
    status=$?
    while kill -0 "$step" 2> /dev/null; do # a signal ends the first wait before the training has ended
        wait "$step"
        status=$?
    done
    if [ -n "$stopped" ]; then
        scontrol requeue "$SLURM_JOB_ID"
        exit
    fi
    [ "$status" = 0 ] || exit "$status"
done
