#!/bin/bash
# Any command as a job of one task without GPUs, started again (at most twice) if it fails.
# At its time limit it ends; only data_prep.shard, which continues where it stopped, starts again.
#   sbatch slurm/command.sh python -m data_prep.verify work/shards/in21k
#   sbatch --job-name=export slurm/command.sh python -m jobs.export work/runs/finetune-l16 l16-timm --format timm
#   sbatch --dependency=afterok:1234 slurm/command.sh python -m jobs.compare work/runs/*
#SBATCH --job-name=command
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
home=$(dirname "$0")/..; [ -e "$home/slurm/launch.sh" ] || home=$(env -u SLURM_CLUSTERS scontrol show job "$SLURM_JOB_ID" | sed -n '/^ *Command=/{s|^ *Command=||;s|/slurm/[^/]*\.sh.*||p;q}') # sbatch runs a copy
# shellcheck source=slurm/launch.sh
source "${home:-$SLURM_SUBMIT_DIR}/slurm/launch.sh" || exit 2

command_job "$@"
