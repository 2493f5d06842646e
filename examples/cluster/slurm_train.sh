#!/usr/bin/env bash
# Train on all GPUs of one or more nodes:
#   sbatch examples/cluster/slurm_train.sh                  one node
#   sbatch --nodes=4 examples/cluster/slurm_train.sh        four
# A job that was requeued or submitted again goes on from its last checkpoint.
#SBATCH --job-name=world_F
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=%x-%j.log
set -euo pipefail

# Folders on a file system that all nodes share.
companion=${COMPANION:-data/libero_world}
output=${OUTPUT:-outputs/train/libero_F}
batch_size=${BATCH_SIZE:-64} # of each process

last=$output/checkpoints/last/pretrained_model
if [[ -e $last ]]; then
    options=("--config_path=$last/train_config.json" --resume=true)
else
    # Stopped before its first checkpoint: LeRobot won't start in a folder that exists.
    [[ ! -e $output ]] || mv "$output" "$output.without_checkpoint_$(date +%s)"
    options=(
        --policy.type=world_F
        "--policy.companion.root=$companion"
        --policy.push_to_hub=false
        --dataset.repo_id=me/libero_world_stripped
        "--dataset.root=${companion}_stripped"
        "--output_dir=$output"
        "--batch_size=$batch_size"
        --steps=50000
        --save_freq=2000
        --num_workers=4
    )
fi

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST") # not into `head`, which may end it by SIGPIPE, and this script with it
export MAIN_ADDRESS=${nodes%%$'\n'*} N_PROCESSES=$((SLURM_NNODES * SLURM_GPUS_ON_NODE))
export MAIN_PORT=$((20000 + SLURM_JOB_ID % 20000)) # so that two jobs on one node don't meet
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((SLURM_CPUS_PER_TASK / SLURM_GPUS_ON_NODE))}
launch() {
    exec accelerate launch --multi_gpu --num_machines="$SLURM_NNODES" --machine_rank="$SLURM_NODEID" \
        --num_processes="$N_PROCESSES" --main_process_ip="$MAIN_ADDRESS" --main_process_port="$MAIN_PORT" \
        --mixed_precision=no --dynamo_backend=no -m lerobot.scripts.lerobot_train "$@"
}
export -f launch
# One task a node; SLURM_NODEID is known only inside it.
srun bash -c 'launch "$@"' launch "${options[@]}"
