#!/bin/bash
# Fine-tune by any recipe: one rank per GPU, requeued until it is finished. `vit submit finetune RECIPE` calls sbatch with the
# site's sizes (slurm/env.sh); plain sbatch needs them:
#   sbatch --nodes=1 --exclusive --mem=0 --time=24:00:00 slurm/finetune.sh b16_deit3_224
#   sbatch --nodes=1 --exclusive --mem=0 --array=0-3 slurm/finetune.sh l16_512 --parent work/runs/pretrain-l16
# The dataset is IN1K, the run folder RUNS/<job name>, and the parent RUNS/pretrain-... of the same recipe (for *_deit3 its
# run at 224 px, RUNS/finetune-..._224). The recipe's fields come after the recipe.
#SBATCH --job-name=finetune
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
home=$(dirname "$0")/..; [ -e "$home/slurm/launch.sh" ] || home=$(env -u SLURM_CLUSTERS scontrol show job "$SLURM_JOB_ID" | sed -n '/^ *Command=/{s|^ *Command=||;s|/slurm/[^/]*\.sh.*||p;q}') # sbatch runs a copy
# shellcheck source=slurm/launch.sh
source "${home:-$SLURM_SUBMIT_DIR}/slurm/launch.sh" || exit 2

finetune "$@"
