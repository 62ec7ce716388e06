#!/bin/bash
# Make a dataset from raw images: an array of tasks, then one job that merges their shards.
#   sbatch slurm/shard.sh fall11_whole.tar work/shards/in21k
#   sbatch --array=0-63 slurm/shard.sh ILSVRC2012_img_train.tar work/shards/in1k --val-fraction 0.01
#   TASKS=64 sbatch --array=3,7 slurm/shard.sh ILSVRC2012_img_train.tar work/shards/in1k --val-fraction 0.01 # repeat failed tasks
# The result does not depend on the number of tasks. A task that is killed is requeued and continues.
#SBATCH --job-name=shard
#SBATCH --array=0-15
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%A_%a.out
memory=(${SLURM_MEM_PER_NODE:+--mem="${SLURM_MEM_PER_NODE}M"} ${SLURM_MEM_PER_CPU:+--mem-per-cpu="${SLURM_MEM_PER_CPU}M"}) # launch.sh unsets both
home=$(dirname "$0")/..; [ -e "$home/slurm/launch.sh" ] || home=$(env -u SLURM_CLUSTERS scontrol show job "$SLURM_JOB_ID" | sed -n '/^ *Command=/{s|^ *Command=||;s|/slurm/[^/]*\.sh.*||p;q}') # sbatch runs a copy
# shellcheck source=slurm/launch.sh
source "${home:-$SLURM_SUBMIT_DIR}/slurm/launch.sh" || exit 2

if [[ " $* " == *" --finalize "* ]]; then
  command_job python -m data_prep.shard "$@"
fi
for name in --workers --task --tasks; do # ours, below, would win in silence
  if [ -n "$(option "$name" "$@")" ]; then
    say "error: $name $(option "$name" "$@") has no effect in a job, which sets it from its CPUs and its array: leave it out"
    exit 2
  fi
done
if [ -z "${TASKS:-}" ] && [ "${SLURM_ARRAY_TASK_MIN:?}-$((SLURM_ARRAY_TASK_MAX + 1))" != "0-$SLURM_ARRAY_TASK_COUNT" ]; then
  say "error: --array is not 0-N, so the number of tasks is unknown: submit all with --array=0-N, or repeat some of N" \
    "with TASKS=N sbatch --array=..."
  exit 2
fi
TASKS=${TASKS:-$SLURM_ARRAY_TASK_COUNT}
# The first task submits the merge, once; with FINALIZE=no the caller does (submit_all.sh)
if [ "$SLURM_ARRAY_TASK_ID" = "$SLURM_ARRAY_TASK_MIN" ] && [ "$RESTART" = 0 ] && [ "${FINALIZE:-yes}" = yes ]; then
  merge=(sbatch --job-name="$SLURM_JOB_NAME-finalize" --array=0 --partition="$SLURM_JOB_PARTITION"
    --cpus-per-task="$SLURM_CPUS_PER_TASK" --time="$(squeue -h --all -j "$SLURM_JOB_ID" -o %l | head -n 1)"
    ${SLURM_JOB_ACCOUNT:+--account="$SLURM_JOB_ACCOUNT"} ${SLURM_JOB_QOS:+--qos="$SLURM_JOB_QOS"} ${SLURM_JOB_RESERVATION:+--reservation="$SLURM_JOB_RESERVATION"}
    "${memory[@]}")
  if ! "${merge[@]}" --dependency="afterok:$SLURM_ARRAY_JOB_ID" --kill-on-invalid-dep=yes \
    "$REPO/slurm/shard.sh" "$@" --finalize; then
    say "error: sbatch refused the merge (above), so this task was not started. Run by hand, in this order:" \
      "$(printf '%q ' env TASKS="$TASKS" FINALIZE=no sbatch --array="$SLURM_ARRAY_TASK_ID" "$REPO/slurm/shard.sh" "$@")" \
      "and, once all tasks are done, $(printf '%q ' "${merge[@]}" "$REPO/slurm/shard.sh" "$@" --finalize)"
    exit 1
  fi
fi
command_job python -m data_prep.shard "$@" --workers "$SLURM_CPUS_PER_TASK" --task "$SLURM_ARRAY_TASK_ID" --tasks "$TASKS"
