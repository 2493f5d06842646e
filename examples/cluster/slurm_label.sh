#!/usr/bin/env bash
# coc-label with a model on each GPU, one dataset in each element of the array:
#   sbatch --array=1-40 examples/cluster/slurm_label.sh datasets.txt
# datasets.txt has one repository id a line. The processes of one coc-label share its episodes; one run at a time may write a
# label file, so the array is over datasets. A killed element goes on when it is submitted again.
#SBATCH --job-name=coc-label
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=%x-%A_%a.log
set -euo pipefail

list=${1:?usage: sbatch --array=1-N examples/cluster/slurm_label.sh DATASETS.txt}
dataset=$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$list")
: "${dataset:?$list has no line $SLURM_ARRAY_TASK_ID}"

several=()
((SLURM_GPUS_ON_NODE == 1)) || several=(--multi_gpu)
accelerate launch ${several[@]+"${several[@]}"} --num_machines=1 --num_processes="$SLURM_GPUS_ON_NODE" \
    --mixed_precision=no --dynamo_backend=no --main_process_port=0 -m coc_tools.cli \
    --dataset.repo_id="$dataset" --labels="${FOLDER:-outputs/coc}/${dataset//\//_}.jsonl" \
    --backend=local --local.model="${MODEL:-Qwen/Qwen3-VL-8B-Instruct}"
