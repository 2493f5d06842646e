#!/usr/bin/env bash
# wm-matrix on the GPUs of a node, one job on each:
#   sbatch examples/cluster/slurm_matrix.sh examples/studies/phases.yaml
#   sbatch --array=1-4 examples/cluster/slurm_matrix.sh examples/studies/phases.yaml     four nodes share the study
# Queues on one root share its jobs by file locks: the file system must support them across nodes (Lustre with -o flock, NFS 4).
# What was killed goes on when it is submitted again.
#SBATCH --job-name=wm-matrix
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=%x-%j.log
set -euo pipefail

study=${1:?usage: sbatch examples/cluster/slurm_matrix.sh STUDY.yaml}
export MUJOCO_GL=${MUJOCO_GL:-egl}
# exec: the queue itself gets Slurm's SIGTERM, and ends its jobs.
exec wm-matrix "$study" --gpus="$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))" \
    --threads=$((SLURM_CPUS_PER_TASK / SLURM_GPUS_ON_NODE)) --set device=cuda
