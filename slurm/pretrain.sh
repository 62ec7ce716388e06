#!/bin/bash
# Pretrain by any recipe: one rank per GPU, requeued until it is finished. `vit submit pretrain RECIPE` calls sbatch with the
# site's sizes (slurm/env.sh); plain sbatch needs them:
#   sbatch --nodes=4 --exclusive --mem=0 --time=24:00:00 slurm/pretrain.sh b16_deit3
#   sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --cpus-per-task=16 slurm/pretrain.sh l16_strong1 --optim.lr 3e-4
# The dataset is IN21K and the run folder RUNS/<job name> (slurm/env.sh). The recipe's fields come after the recipe.
#SBATCH --job-name=pretrain
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
home=$(dirname "$0")/..; [ -e "$home/slurm/launch.sh" ] || home=$(env -u SLURM_CLUSTERS scontrol show job "$SLURM_JOB_ID" | sed -n '/^ *Command=/{s|^ *Command=||;s|/slurm/[^/]*\.sh.*||p;q}') # sbatch runs a copy
# shellcheck source=slurm/launch.sh
source "${home:-$SLURM_SUBMIT_DIR}/slurm/launch.sh" || exit 2

pretrain "$@"
