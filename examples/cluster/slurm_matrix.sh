#!/usr/bin/env bash
# wm-matrix on any number of nodes, one job of the study on each GPU that Slurm gives it:
#   bash examples/cluster/slurm_matrix.sh examples/studies/phases.yaml              submits; run it on the login node
# Submits an array for each kind of job (Prophets, trainings, evaluations, interventions), each after the one before. Options of
# sbatch, such as --partition or --array's limit, go to SBATCH_* variables. What was killed or failed goes on when this is submitted
# again; what is done is done.
#SBATCH --job-name=wm-matrix
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=%x-%A_%a.log
set -euo pipefail

study=${1:?usage: bash examples/cluster/slurm_matrix.sh STUDY.yaml}
if (($# == 1)); then
    names=$(wm-matrix "$study" --status)
    before=()
    for kind in prophet train eval intervene; do
        mapfile -t jobs < <(grep -oE " $kind-[^ ]+" <<<"$names" | tr -d ' ')
        ((${#jobs[@]})) || continue
        id=$(sbatch --parsable --array="0-$((${#jobs[@]} - 1))" "${before[@]}" "$0" "$study" "${jobs[@]}")
        echo "${#jobs[@]} of $kind: array job $id"
        before=("--dependency=afterany:$id") # what builds on a job that failed says so, and isn't run
    done
    exit
fi

jobs=("${@:2}")
export MUJOCO_GL=${MUJOCO_GL:-egl}
# exec: wm-matrix itself gets Slurm's SIGTERM, and ends its job.
exec wm-matrix "$study" --only="${jobs[SLURM_ARRAY_TASK_ID]}" --jobs=1 --threads="$SLURM_CPUS_PER_TASK" --set device=cuda
