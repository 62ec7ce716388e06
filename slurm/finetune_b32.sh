#!/bin/bash
# Fine-tune ViT-B/32 on ImageNet-2012 at 384 pixels, from RUNS/pretrain-b32.
#   sbatch slurm/finetune_b32.sh                                    # dataset IN1K, run folder RUNS/<job name>: see env.sh
#   sbatch --nodes=2 slurm/finetune_b32.sh --optim.lr 0.01
#   sbatch --array=0-3 slurm/finetune_b32.sh                # the learning rates of FINETUNE_LRS, one run each
# Any number of nodes gives the same run; sbatch's options come before the script, the recipe's fields after it.
#SBATCH --job-name=finetune-b32
#SBATCH --nodes=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
home=$(dirname "$0")/..; [ -e "$home/slurm/launch.sh" ] || home=$(env -u SLURM_CLUSTERS scontrol show job "$SLURM_JOB_ID" | sed -n '/^ *Command=/{s|^ *Command=||;s|/slurm/[^/]*\.sh.*||p;q}') # sbatch runs a copy
# shellcheck source=slurm/launch.sh
source "${home:-$SLURM_SUBMIT_DIR}/slurm/launch.sh" || exit 2

finetune b32 "$@"
