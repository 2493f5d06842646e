#!/usr/bin/env bash
# Precompute, train and evaluate on Hugging Face's machines (`hf jobs`), nothing on this one but the submission:
#   ORG=me IMAGE=me/world-modality:cuda bash examples/cluster/hf_jobs.sh precompute
#   ... train     ... eval
# IMAGE is ours (Dockerfile), pushed to where Jobs can pull it: LeRobot's own image doesn't hold the plugin. What a job doesn't
# push to the Hub is gone when it ends. `hf auth login` first; --secrets HF_TOKEN hands the token on without showing it.
set -euo pipefail

step=${1:?usage: hf_jobs.sh precompute|train|eval}
org=${ORG:?ORG=your account or organisation on the Hub}
image=${IMAGE:?IMAGE=the image of this project, built from its Dockerfile and pushed}
source=${DATASET:-HuggingFaceVLA/libero}
flavor=${FLAVOR:-a100-large} # `hf jobs hardware` lists flavors and prices

case $step in
precompute)
    hf jobs run --flavor "$flavor" --timeout 12h --secrets HF_TOKEN --name wm-precompute "$image" \
        wm-precompute --dataset.repo_id="$source" --encoder.family=dinov2 --encoder.pooling=grid:4x4 --encoder.pca_dim=64 \
        --tokens.n_codes=1024 --output.repo_id="$org/libero_world" --strip_images --push_to_hub --private
    ;;
train)
    # LeRobot submits itself: it stages the config in a private model repository, and pushes the policy there at the end.
    lerobot-train --job.target="$flavor" --job.image="$image" --job.timeout=1d --job.detach=true \
        --policy.type=world_F --policy.companion.repo_id="$org/libero_world" --policy.repo_id="$org/libero_F" \
        --policy.private=true --dataset.repo_id="$org/libero_world_stripped" --batch_size=64 --steps=50000
    ;;
eval)
    hf jobs run --flavor "$flavor" --timeout 12h --secrets HF_TOKEN --name wm-eval "$image" bash -c "
        wm-eval --policy.path=$org/libero_F --model=F --env.type=libero --env.task=libero_spatial --eval.n_episodes=10 \
            --arms=intact,gate_closed,shuffle_within_task --output_dir=/tmp/eval &&
        hf upload --repo-type dataset --private $org/libero_F_eval /tmp/eval"
    ;;
*)
    echo "hf_jobs.sh: $step is none of precompute, train, eval" >&2
    exit 2
    ;;
esac
