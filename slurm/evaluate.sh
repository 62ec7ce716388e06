#!/bin/bash
# Exact accuracy of a run's newest checkpoint, or of a named one, on one node: one process per GPU. `vit submit evaluate`
# calls sbatch with the site's sizes (slurm/env.sh); plain sbatch needs them:
#   vit submit evaluate work/runs/finetune-l16 --data work/shards/in1k
#   vit submit evaluate work/runs/finetune-l16/checkpoints/step-00020000 --data work/shards/in1k --batch 512
#   sbatch --gpus-per-node=1 slurm/evaluate.sh work/runs/pretrain-b16 --data work/shards/in21k --split val
#SBATCH --job-name=evaluate
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=12
#SBATCH --time=02:00:00
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
home=$(dirname "$0")/..; [ -e "$home/slurm/launch.sh" ] || home=$(env -u SLURM_CLUSTERS scontrol show job "$SLURM_JOB_ID" | sed -n '/^ *Command=/{s|^ *Command=||;s|/slurm/[^/]*\.sh.*||p;q}') # sbatch runs a copy
# shellcheck source=slurm/launch.sh
source "${home:-$SLURM_SUBMIT_DIR}/slurm/launch.sh" || exit 2

[ "$RANKS" != 0 ] || no_gpus
rendezvous
several=() # without --multi_gpu accelerate starts one process, whatever --num_processes is
[ "$RANKS" = 1 ] || several=(--multi_gpu)
command_job python -m accelerate.commands.launch "${several[@]}" --num_processes "$RANKS" --num_machines 1 --mixed_precision no \
  --dynamo_backend no --main_process_port "$MASTER_PORT" -m jobs.evaluate "$@"
