#!/bin/bash
# Pretrain ViT-L/16 on ImageNet-21K: one rank per GPU, requeued until it is finished.
#   sbatch slurm/pretrain_l16.sh                                    # dataset IN21K, run folder RUNS/<job name>: see env.sh
#   sbatch --nodes=16 slurm/pretrain_l16.sh --optim.lr 3e-4
#   sbatch --job-name=l16-seed1 slurm/pretrain_l16.sh --train.seed 1 # a second run beside the first
# Any number of nodes gives the same run; sbatch's options come before the script, the recipe's fields after it.
#SBATCH --job-name=pretrain-l16
#SBATCH --nodes=8
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

pretrain l16 "$@"
