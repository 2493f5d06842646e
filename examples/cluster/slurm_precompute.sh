#!/usr/bin/env bash
# wm-precompute for many datasets, one of them in each element of the array:
#   sbatch --array=1-40 examples/cluster/slurm_precompute.sh datasets.txt
# datasets.txt has one repository id a line. The processes of one wm-precompute share its dataset among themselves (here: one
# a GPU); one run at a time may write an output, so the array is over datasets. A killed element goes on when it
# is submitted again. REUSE_FROM=COMPANION gives all of them one PCA and one codebook, as a Prophet of several datasets needs.
#SBATCH --job-name=wm-precompute
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --output=%x-%A_%a.log
set -euo pipefail

list=${1:?usage: sbatch --array=1-N examples/cluster/slurm_precompute.sh DATASETS.txt}
dataset=$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$list")
: "${dataset:?$list has no line $SLURM_ARRAY_TASK_ID}"
folder=${FOLDER:-data/world}/${dataset//\//_}
if [[ -n ${REUSE_FROM:-} ]]; then
    encoder=("--reuse_from=$REUSE_FROM")
else
    encoder=(--encoder.family=dinov2 --encoder.pooling=grid:4x4 --encoder.pca_dim=64 --tokens.n_codes=1024)
fi

# --multi_gpu wants at least two processes; with one GPU accelerate starts a single one.
several=()
((SLURM_GPUS_ON_NODE == 1)) || several=(--multi_gpu)
accelerate launch ${several[@]+"${several[@]}"} --num_machines=1 --num_processes="$SLURM_GPUS_ON_NODE" \
    --mixed_precision=no --dynamo_backend=no --main_process_port=0 -m world_modality_core.precompute.cli \
    --dataset.repo_id="$dataset" "${encoder[@]}" --strip_images \
    --num_workers=$((SLURM_CPUS_PER_TASK / SLURM_GPUS_ON_NODE - 1)) \
    --output.repo_id="${dataset}_world" --output.root="$folder"
