#!/bin/bash
# Make a data set from raw images: an array of tasks, then one that merges what they made.
#   sbatch slurm/shard.sh fall11_whole.tar work/shards/in21k
#   sbatch --array=0-63 slurm/shard.sh ILSVRC2012_img_train.tar work/shards/in1k --val-fraction 0.01
# Any number of tasks makes the same bytes. A task that is killed starts again and goes on where it was.
#SBATCH --job-name=shard
#SBATCH --array=0-15
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%A_%a.out
home=$(scontrol show job "$SLURM_JOB_ID" | sed -n '/Command=/{s|.*Command=\(.*\)/slurm/[^/]*\.sh.*|\1|p;q}') # sbatch runs a copy
# shellcheck source=slurm/launch.sh
source "${home:-$SLURM_SUBMIT_DIR}/slurm/launch.sh" || exit 2

if [[ " $* " == *" --finalize "* ]]; then
  command_job python -m data_prep.shard "$@"
fi
# The first task asks for the merge, once; FINALIZE=no leaves that to somebody else (submit_all.sh)
if [ "$SLURM_ARRAY_TASK_ID" = "${SLURM_ARRAY_TASK_MIN:?}" ] && [ "$RESTART" = 0 ] && [ "${FINALIZE:-yes}" = yes ]; then
  sbatch --job-name="$SLURM_JOB_NAME-finalize" --array=0 --dependency="afterok:$SLURM_ARRAY_JOB_ID" \
    --kill-on-invalid-dep=yes "$REPO/slurm/shard.sh" "$@" --finalize
fi
command_job python -m data_prep.shard "$@" --workers "$SLURM_CPUS_PER_TASK" \
  --task $((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN)) --tasks "$SLURM_ARRAY_TASK_COUNT"
