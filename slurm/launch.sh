# shellcheck shell=bash
# The steps that all jobs share. Sourced by the job scripts, inside a job.
#
# A training run's folder records what Slurm did to it in RUN/slurm/:
#   attempts.tsv    a line per event: start, end or leave; job; restart; checkpoint's step; unix time; nodes or outcome
#   bad-nodes.tsv   a line per node failure: node, job, restart, unix time, reason
#   rank-0000.log   each rank's output, from all attempts
#   job.log         link to the latest job's own log, which has the output of all ranks
#   failed          the first rank that failed in the latest attempt: node, rank, exit code
set -uo pipefail

REPO=$(unset CDPATH; cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
export REPO
export PYTHONPATH=$REPO${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore::FutureWarning} # from torch's own calls, one line per rank
# shellcheck source=slurm/clean.sh
source "$REPO/slurm/clean.sh"
# shellcheck source=slurm/sbatch_options.sh
source "$REPO/slurm/sbatch_options.sh"
if [ -z "${SLURM_JOB_ID:-}" ]; then
  {
    sed -n '2,/^[^#]\|^#SBATCH/{s/^# \{0,1\}//p}' "$0" | grep -v '^SBATCH'
    echo "error: $0 is a Slurm job script, started outside a job: submit it with vit submit or sbatch, as above." \
      "Without Slurm, start the command itself, such as vit launch --ranks 8 pretrain"
  } >&2
  exit 2
fi
clean_shell
set +u # modules and conda read unset variables
# shellcheck source=slurm/env.sh
source "$REPO/slurm/env.sh" >&2 # for DRY_RUN, whose line vit submit reads
set -u
clean_slurm
for name in $(sbatch_variables); do unset "$name"; done # they would change shard.sh's merge
require_site_fields || exit 2
check_site || exit 2
export LAUNCHER
# shellcheck source=slurm/nodes.sh
source "$REPO/slurm/nodes.sh"

JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} # scontrol's name for one task of an array
JOB=${JOB:-$SLURM_JOB_ID}
RESTART=${SLURM_RESTART_COUNT:-0}
MOST_STARTS_WITHOUT_PROGRESS=2
MOST_RESTARTS_AFTER_FAILURE=2 # for jobs without checkpoints
RUN=   # the training run's folder
asked= # the signal that asked this job to stop
export IN_JOB_RESTART=0 # restarts of the ranks since Slurm started this job

say() { echo "$(date '+%F %T') $SLURM_JOB_NAME $JOB: $*"; }

# ---- what Slurm allocated: GPUS and RANKS per node, CPUS per rank ----

GPUS=${SLURM_GPUS_ON_NODE:-0} # on a whole node all of its GPUs, whatever sbatch was asked for
[ "$GPU_REQUEST" != none ] || GPUS=$GPUS_PER_NODE # Slurm doesn't count them
[ "$GPUS_PER_NODE" != 0 ] || GPUS=0
RANKS=$GPUS # 0: unknown, because no GPUs were allocated
# A surrounding job's --ntasks-per-node may still be in the environment: this job's own agrees with its tasks
[[ ! ${SLURM_TASKS_PER_NODE:-} =~ ^${SLURM_NTASKS_PER_NODE:-none}([^0-9]|$) ]] || RANKS=$SLURM_NTASKS_PER_NODE
[ "$RANKS,$GPUS_PER_NODE" != 0,0 ] || RANKS=1
UNUSED=$((GPUS > RANKS ? GPUS - RANKS : 0)) # GPUs without a rank: sbatch was asked for fewer than a whole node has
GPUS=$((GPUS - UNUSED))
CPUS=$((${SLURM_CPUS_ON_NODE:-1} / (RANKS > 0 ? RANKS : 1)))
[ "${SLURM_CPUS_PER_TASK:-$CPUS}" -ge "$CPUS" ] || CPUS=$SLURM_CPUS_PER_TASK
[ "$CPUS" -ge 1 ] || CPUS=1

no_gpus() {
  say "error: this job has no GPUs, and slurm/env.sh says GPUS_PER_NODE=$GPUS_PER_NODE. Submit it with vit submit, or give sbatch" \
    "--ntasks-per-node=$GPUS_PER_NODE --gpus-per-node=$GPUS_PER_NODE --cpus-per-task=$CPUS_PER_GPU and a --partition that has GPUs"
  exit 2
}

check_sizes() { # MODULE RECIPE ...: the first lines of a training job's log
  [ "$RANKS" != 0 ] || no_gpus
  if [ "$WANTED" -lt 1 ]; then
    say "error: SPARE_NODES '$SPARE_NODES' leaves none of this job's ${SLURM_JOB_NUM_NODES:-1} nodes to train on: unset it, or" \
      "ask sbatch for more --nodes"
    exit 2
  fi
  if [ "$GPUS" -lt "$RANKS" ] && [ "$GPUS_PER_NODE" != 0 ]; then
    say "warning: $RANKS ranks and $GPUS GPUs per node. For one rank per GPU submit with vit submit, or give sbatch" \
      "--ntasks-per-node=$GPUS_PER_NODE --gpus-per-node=$GPUS_PER_NODE"
  elif [ "$GPUS_PER_NODE" != "$((GPUS + UNUSED))" ] && [ "$2" != tiny ]; then
    say "note: $((GPUS + UNUSED)) GPUs per node, $GPUS of them used, and slurm/env.sh says GPUS_PER_NODE=$GPUS_PER_NODE"
  fi
}

check_time_limit() { # the warning of --signal, 300 s before it, would come before the ranks have got anywhere
  local limit
  limit=$(scontrol show job "$JOB" | sed -n 's/^ *RunTime=.* TimeLimit=\(00:0[0-9]:[0-9]*\) .*/\1/p')
  [ -z "$limit" ] || say "warning: the time limit of $limit leaves little time to train, since the job saves and requeues itself" \
    "300 s before it: give sbatch a longer --time"
}

name_run() { # NAME: for slurm/pretrain.sh and finetune.sh, whose #SBATCH line can't know the recipe
  [ "$SLURM_JOB_NAME" = "${1%%-*}" ] || return 0
  SLURM_JOB_NAME=$1
  [ "$DRY_RUN" = yes ] || scontrol update JobId="$JOB" JobName="$1" || true # vit status, logs and cancel look for it
}

# ---- the two kinds of training job ----

pretrain() { # RECIPE [--any.field value ...]
  [[ ${1:--} != -* ]] || { say "error: RECIPE is missing: sbatch slurm/pretrain.sh RECIPE"; exit 2; }
  name_run "pretrain-$1"
  train jobs.pretrain "$1" --run-dir "$RUNS/$SLURM_JOB_NAME" --data.train "$IN21K" "${@:2}"
}

finetune() { # RECIPE [--any.field value ...]; in an array, task I takes the I-th learning rate of FINETUNE_LRS
  local recipe run parent grid name rate=()
  [[ ${1:--} != -* ]] || { say "error: RECIPE is missing: sbatch slurm/finetune.sh RECIPE"; exit 2; }
  recipe=$1
  shift
  name_run "finetune-$recipe"
  run=$RUNS/$SLURM_JOB_NAME
  case $recipe in
    *_deit3) parent=$RUNS/finetune-${recipe}_224 ;; # at 384 px, after 224
    *_224 | *_512) parent=$RUNS/pretrain-${recipe%_*} ;;
    *) parent=$RUNS/pretrain-$recipe ;;
  esac
  if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    read -ra grid <<<"$FINETUNE_LRS"
    if [ "$SLURM_ARRAY_TASK_ID" -ge ${#grid[@]} ]; then
      say "error: array task $SLURM_ARRAY_TASK_ID has no learning rate: FINETUNE_LRS has ${#grid[@]} ($FINETUNE_LRS)"
      exit 2
    fi
    for name in --optim.lr --run-dir; do
      [ -z "$(option "$name" "$@")" ] || {
        say "error: $name $(option "$name" "$@") would be that of every task of the array: leave it out (FINETUNE_LRS, --job-name)"
        exit 2
      }
    done
    rate=(--sweep "$run" --optim.lr "${grid[SLURM_ARRAY_TASK_ID]}")
    run=$run-lr${grid[SLURM_ARRAY_TASK_ID]}
  fi
  train jobs.finetune "$recipe" --parent "$parent" --run-dir "$run" --data.train "$IN1K" "${rate[@]}" "$@"
}

# ---- one attempt of a run, from the start to what happens next ----

train() { # MODULE RECIPE ARGUMENTS...
  RUN=$(option --run-dir "$@")
  export RUN
  check_sizes "$@"
  if [ "$DRY_RUN" = yes ]; then step python -m "$@"; fi # does not return
  mkdir -p "$RUN/slurm" || { say "error: --run-dir $RUN cannot be made: name a folder that every node can write"; exit 2; }
  if [ "$(state)" = finished ]; then
    say "$RUN is finished: nothing to do"
    exit 0
  fi
  refuse_second_job
  check_time_limit
  ln -sfn "$(readlink /proc/$$/fd/1)" "$RUN/slurm/job.log" # vit logs
  trap 'asked=USR1; signal_step USR1' USR1
  trap 'asked=TERM' TERM # Slurm sends it to the ranks as well
  blame_nodes
  first_nodes
  stop_without_progress
  guard
  attempts "$@"
}

attempts() { # MODULE RECIPE ARGUMENTS...: start the ranks, and restart them if they fail and the allocation allows it
  local from failed_on again in_a_row=0
  while :; do
    from=$(checkpoint_step)
    record start "$NODELIST"
    say "attempt $(grep -c '^start' "$RUN/slurm/attempts.tsv") from step $from on $NODELIST${FEWER_NODES:+ ($FEWER_NODES)}"
    if [ "$DOCTOR" != no ] && [ "$from,$IN_JOB_RESTART" = 0,0 ]; then check_cluster "$@"; fi
    if [ -n "$asked" ]; then
      record_end stopped
      requeue "asked to stop by SIG$asked before the ranks had started"
    fi
    rm -f "$RUN/slurm/failed"
    step python -m "$@" "${MICRO_BATCH[@]}"
    after_step $?
    [ "$(checkpoint_step)" = "$from" ] || in_a_row=0 # only restarts that reach no new checkpoint count
    failed_on=$NODELIST again=no
    if [ $in_a_row -lt "$RESTARTS_IN_JOB" ] && next_nodes "$@"; then again=yes; fi
    note_left_nodes "$failed_on" $again
    stop_without_progress
    [ $again = yes ] || requeue "failed at step $(checkpoint_step), and can't restart in this job"
    in_a_row=$((in_a_row + 1)) IN_JOB_RESTART=$((IN_JOB_RESTART + 1))
    guard
  done
}

after_step() { # EXIT_CODE of the ranks: returns if they failed by themselves
  local state outcome=failed
  [ -z "$asked" ] || rm -f "$RUN/slurm/failed" # the signal kills ranks that are still starting: no node's fault
  exit_if_superseded
  state=$(state)
  # torchrun turns 75 into 1, so the run folder decides; a status older than this attempt says nothing about it
  if [ "$state" = stopped ] && ! [ "$RUN/slurm/attempts.tsv" -nt "$RUN/status.json" ]; then outcome=stopped; fi
  # A signal after the last step kills the interpreter while it shuts down
  [ "$state" = finished ] && { [ "$1" = 0 ] || [ -n "$asked" ]; } && outcome=finished
  [ "$1" = 2 ] || [ "$(cut -d' ' -f3 "$RUN/slurm/failed" 2>/dev/null)" = 2 ] && outcome=refused
  record_end $outcome
  case $outcome in
    finished) say "finished at step $(checkpoint_step): $RUN"; exit 0 ;;
    refused) say "error: the command line or the data were refused (above): not tried again"; exit 2 ;;
  esac
  [ "$outcome,$asked" = failed, ] || requeue "$outcome at step $(checkpoint_step)${asked:+ after SIG$asked}"
  say "failed at step $(checkpoint_step)"
  find_up_nodes
  [ -z "$asked" ] || requeue "asked to stop by SIG$asked"
  blame_nodes
}

step() { # COMMAND...: one task per GPU (or one torchrun agent per node); returns its exit code, whatever signals come meanwhile
  local nodes=$NODES tasks code
  rendezvous
  gpu_options "$GPUS" # without them srun requests what sbatch did, which for whole nodes may be none
  if [ "$LAUNCHER" = torchrun ]; then
    tasks=(--nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_ON_NODE:-1}")
    set -- torchrun --nnodes="$nodes" --nproc-per-node="$RANKS" --max-restarts=0 \
      --rdzv-backend=c10d --rdzv-id="$JOB-$RESTART-$IN_JOB_RESTART" --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT" "${@:2}"
  else
    tasks=(--nodes="$nodes" --ntasks="$((nodes * RANKS))" --ntasks-per-node="$RANKS" --cpus-per-task="$CPUS")
  fi
  # kill-on-bad-exit: without it, the peers of a dead rank wait for it until the time limit.
  set -- srun --kill-on-bad-exit=1 --label "${PLACE[@]}" "${tasks[@]}" "${GPU_OPTIONS[@]}" "${SRUN_OPTIONS[@]}" \
    "$REPO/slurm/rank.sh" "${RANK_PREFIX[@]}" "$@"
  dry_run "$@"
  "$@" &
  srun_pid=$!
  while kill -0 "$srun_pid" 2>/dev/null; do wait "$srun_pid"; done
  wait "$srun_pid"
  code=$?
  srun_pid=
  return $code
}

dry_run() { # COMMAND...: with DRY_RUN=yes, print it and exit
  if [ "$DRY_RUN" = yes ]; then
    printf '%q ' "$@"
    echo
    exit 0
  fi
}

signal_step() { # SIGNAL: srun passes it on to every rank
  [ -z "${srun_pid:-}" ] || kill -s "$1" "$srun_pid" 2>/dev/null
}

rendezvous() { # where rank 0 listens: the first node, a port that no other attempt, job or program on it uses
  export MASTER_ADDR=FIRST_NODE MASTER_PORT=PORT
  [ "$SLURM_JOB_ID" != 0 ] || return 0 # submit.sh --dry-run
  MASTER_ADDR=$(scontrol show hostnames "$NODELIST" | head -n 1)
  MASTER_PORT=$((12000 + (SLURM_JOB_ID + IN_JOB_RESTART) % 18000)) # below Linux's ephemeral ports (32768 and up)
  while grep -q "^ *[0-9]*: [0-9A-F]*:$(printf %04X "$MASTER_PORT") .* 0A " /proc/net/tcp /proc/net/tcp6 2>/dev/null; do
    MASTER_PORT=$((MASTER_PORT + 1))
  done
}

check_cluster() { # MODULE RECIPE ARGUMENTS...: jobs.doctor on all ranks, as a separate step
  say "checking the cluster (jobs.doctor)"
  if ! step python -m jobs.doctor "$2" --stage "${1#jobs.}" --folder "$RUN" -- "${@:3}" && [ -z "$asked" ]; then
    record end unfit
    say "error: jobs.doctor found faults (above): fix them, or set DOCTOR=no to train anyway"
    exit 1
  fi
}

# ---- jobs of one command ----

command_job() { # COMMAND...
  local code
  REFUSED_MARK=$(mktemp -u) # a command of ours that exits with 2 makes this file: accelerate turns every code into 1
  export REFUSED_MARK
  trap 'asked=USR1; kill -TERM "$srun_pid"' USR1
  trap 'asked=TERM' TERM
  set -- srun --nodes=1 --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "${SRUN_OPTIONS[@]}" "${RANK_PREFIX[@]}" "$@"
  dry_run "$@"
  "$@" &
  srun_pid=$!
  while kill -0 "$srun_pid" 2>/dev/null; do wait "$srun_pid"; done
  wait "$srun_pid"
  code=$?
  if [ $code = 0 ]; then
    [ -z "${DONE_MARK:-}" ] || touch "$DONE_MARK" # submit_all.sh: this stage is done
    exit 0
  elif [ $code = 2 ] || [ -e "$REFUSED_MARK" ]; then
    rm -f "$REFUSED_MARK"
    exit 2 # the command line or the data were refused: not tried again
  elif at_time_limit && [[ " $* " != *" data_prep.shard "* ]]; then # only that continues where it stopped
    say "error: the time limit is near, and a requeue would start over: not tried again; give it a longer --time"
    exit 1
  elif [ -z "$asked" ] && [ "$RESTART" -ge $MOST_RESTARTS_AFTER_FAILURE ]; then
    say "error: failed $((RESTART + 1)) times, last with exit code $code: not tried again"
    exit 1
  fi
  requeue "exited with code $code${asked:+ after SIG$asked}"
}

at_time_limit() { # whether that is why this job was asked to stop; some sites announce preemption with USR1 as well
  local detail
  [ -n "$asked" ] || return 1
  detail=$(job_facts)
  [[ $detail == *Reason=TimeLimit* ]] || { [ "$asked" = USR1 ] && ! [[ $detail =~ PreemptTime=[0-9] ]]; }
}

job_facts() { # state, reason, restarts and preemption of this job: scontrol's lines that hold no text from the user
  scontrol show job "$JOB" | grep -E '^ +(JobState|Requeue|PreemptEligibleTime)='
}

# ---- requeue, or not ----

requeue() { # REASON: start this job again under the same id, unless its user cancelled it
  local detail
  exit_if_superseded
  detail=$(job_facts)
  # COMPLETING: Slurm is ending the job. After a time limit, requeue it; else it was cancelled or is already requeued.
  if [[ $detail == *JobState=COMPLETING* && $detail != *Reason=TimeLimit* ]]; then
    say "$1; ended by Slurm or its user: not requeued from here (sbatch resumes from the last checkpoint)"
    exit 0
  fi
  say "$1; requeueing"
  trap '' TERM USR1 # requeueing ends this script: let it, and the commands it calls, finish first
  for _ in 1 2 3 4 5 6; do # the controller may be busy or restarting
    if scontrol requeue "$JOB"; then
      exclude_bad_nodes
      exit 0
    fi
    sleep 10
  done
  say "error: this job cannot requeue itself: submit it again to continue"
  exit 75
}

exit_if_superseded() { # Slurm lost contact with this node and started the job elsewhere: leave that attempt alone
  local restarts
  restarts=$(job_facts | sed -n 's/.*Restarts=\([0-9]*\).*/\1/p' | head -n 1)
  if [ "${restarts:-$RESTART}" != "$RESTART" ]; then
    say "Slurm has started this job again (restart $restarts, this is $RESTART): leaving it alone"
    exit 0
  fi
}

stop_without_progress() { # otherwise a run that keeps starting from the same step would do so forever
  local starts
  starts=$(awk -F'\t' -v job="$SLURM_JOB_ID" -v step="$(checkpoint_step)" '
    $2 != job { next }
    $1 == "start" { began = $4; counted = 0 }
    # Only attempts that recorded an end are counted: Slurm cut the others short (preempted, requeued by hand)
    $1 == "end" && ($6 == "failed" || $6 == "stopped") && began == step && $4 == step { same++; counted = 1 }
    # Excused: a node was lost, or the run leaves a node that may be the reason
    ($1 == "leave" || $6 == "lost") && counted { same--; counted = 0 }
    END { print same + 0 }' "$RUN/slurm/attempts.tsv" 2>/dev/null)
  if [ "${starts:-0}" -ge $MOST_STARTS_WITHOUT_PROGRESS ]; then
    say "error: $starts attempts made no progress beyond step $(checkpoint_step): not starting another. The reason is" \
      "above and in $RUN/slurm/rank-*.log; fix it, then submit the job again"
    exit 1
  fi
}

refuse_second_job() { # two jobs in one run folder would keep stopping each other
  local owner active pause
  owner=$(awk -F'\t' '$1 == "start" { job = $2 } END { print job }' "$RUN/slurm/attempts.tsv" 2>/dev/null)
  [ -n "$owner" ] && [ "$owner" != "$SLURM_JOB_ID" ] || return 0
  for pause in 20 40 60 0; do # seconds: a controller that fails over answers again after a minute or two
    # All jobs, not -j OWNER: for a job that Slurm has forgotten squeue fails as well. %A is each array task's own id
    if active=$(squeue -h --all -t RUNNING,SUSPENDED -o %A); then
      grep -qx "$owner" <<<"$active" || return 0
      say "error: --run-dir $RUN is in use by job $owner, which is running or suspended: wait, scancel it, or name another --run-dir"
      exit 2
    fi
    say "warning: squeue failed (above), so job $owner, which started last in $RUN, may still be running"
    sleep "$pause"
  done
  say "error: --run-dir $RUN may still be in use by job $owner, and squeue does not answer: submit again when Slurm answers," \
    "or name another --run-dir"
  exit 2
}

# ---- reading the run folder ----

state() { sed -n 's/.*"state": *"\([a-z]*\)".*/\1/p' "$RUN/status.json" 2>/dev/null; }

checkpoint_step() { # of the newest complete checkpoint, 0 without one
  local newest
  newest=$(find "$RUN/checkpoints" -path '*/step-*/meta.json' 2>/dev/null | sort | tail -n 1)
  newest=${newest%/meta.json}
  newest=${newest##*step-}
  echo $((10#${newest:-0}))
}

record_end() { # OUTCOME; recorded as preempted if Slurm stopped the job before its time limit
  local outcome=$1
  case $outcome in failed | stopped) [ -z "$asked" ] || at_time_limit || outcome=preempted ;; esac
  record end "$outcome"
}

record() { # EVENT DETAIL
  if ! printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$1" "$SLURM_JOB_ID" "$RESTART" "$(checkpoint_step)" "$(date +%s)" "$2" \
    >>"$RUN/slurm/attempts.tsv"; then # uncounted attempts would repeat forever
    say "error: $RUN/slurm/attempts.tsv cannot be written (above): make room, then sbatch resumes from the last checkpoint"
    exit 1
  fi
}
