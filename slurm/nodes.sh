# shellcheck shell=bash
# The nodes that a training job's ranks run on: which of the allocation's are up, which have failed, which are used next.
# Sourced by launch.sh.
#
# NODES, NODELIST   how many nodes the ranks run on, and which
# PLACE             srun's options for them; empty: all nodes of the job
# MICRO_BATCH       the training command's option on fewer nodes; FEWER_NODES: then "4 of 8 nodes", for the run's records
# UP                the job's nodes that start tasks, in Slurm's order
ANSWER_LIMIT=30 # seconds in which a node must start a task

WANTED=$((${SLURM_JOB_NUM_NODES:-1} - ${SPARE_NODES:-0})) # nodes to train on; SPARE_NODES of the allocation wait for a failure
NODES=$WANTED NODELIST=${SLURM_JOB_NODELIST:-} PLACE=() MICRO_BATCH=() UP=()
export FEWER_NODES=
[ "$NODES" = "${SLURM_JOB_NUM_NODES:-1}" ] || PLACE=(--nodelist="$NODELIST") # as submit.sh --dry-run prints it

# ---- which to use ----

first_nodes() { # when a job starts: those that haven't failed twice in this run; if too few, leave the allocation
  local nodes good
  mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  UP=("${nodes[@]}")
  mapfile -t good < <(without "$(failed_twice)" "${nodes[@]}")
  if [ ${#good[@]} -lt "$WANTED" ]; then
    leave_bad_nodes
    good=("${nodes[@]}")
  fi
  [ ${#nodes[@]} = "$WANTED" ] || take "${good[@]:0:WANTED}"
}

next_nodes() { # MODULE RECIPE ARGUMENTS...: after a failure, from UP; fails if this allocation has too few
  local good size=$WANTED micro
  mapfile -t good < <(without "$(failed_twice)" "${UP[@]}")
  MICRO_BATCH=() FEWER_NODES=''
  if [ ${#good[@]} -lt "$WANTED" ]; then
    [ "$ELASTIC" = yes ] || return 1
    micro=$(option --train.micro-batch "$@")
    read -r size micro < <(fit "${#good[@]}" "$RANKS" "$(configured global_batch)" "${micro:-$(configured micro_batch)}")
    [ -n "$size" ] || return 1
    # shellcheck disable=SC2034 # for launch.sh
    MICRO_BATCH=(--train.micro-batch "$micro") FEWER_NODES="$size of $WANTED nodes"
    say "warning: ${#good[@]} usable nodes: training on $FEWER_NODES until the next requeue (ELASTIC=no in slurm/env.sh waits instead)"
  fi
  take "${good[@]:0:size}"
  PLACE+=(--overlap) # the failed step may still be ending on a node that doesn't answer
}

fit() { # NODES RANKS_PER_NODE GLOBAL_BATCH MICRO_BATCH: the most nodes whose ranks divide the batch, and their micro-batch
  local nodes share micro
  [ "${3:-0}" -gt 0 ] && [ "${4:-0}" -gt 0 ] || return 1 # no attempt has got as far as writing config.json
  for ((nodes = $1; nodes > 0; nodes--)); do
    [ $(($3 % (nodes * $2))) = 0 ] || continue
    share=$(($3 / (nodes * $2))) # images per rank and step
    for ((micro = share < $4 ? share : $4; micro > 0; micro--)); do
      # An even micro-batch stays even: mixup takes pairs
      if [ $((share % micro)) = 0 ] && [ $(($4 % 2 || micro % 2 == 0)) = 1 ]; then
        echo "$nodes $micro"
        return
      fi
    done
  done
  return 1
}

configured() { # FIELD: a number of the run's config.json; empty before its first start
  sed -n "s/^ *\"$1\": *\([0-9]*\),*$/\1/p" "$RUN/config.json" 2>/dev/null
}

take() { # NODE...
  NODES=$# NODELIST=$(scontrol show hostlist "$(paste -sd, <(printf '%s\n' "$@"))")
  PLACE=(--nodelist="$NODELIST")
}

without() { # LINES NODE...: the nodes that are not among the lines, one per line
  [ $# = 1 ] || printf '%s\n' "${@:2}" | grep -vxF "$1"
}

# ---- which are up ----

find_up_nodes() { # sets UP. Slurm takes minutes to miss a node (SlurmdTimeout), so each is asked to start a task
  local nodes node answers pids=()
  mapfile -t nodes < <(job_nodes)
  if ! printf '%s\n' "${nodes[@]}" | grep -qx "${SLURMD_NODENAME:-$(hostname -s)}"; then # or Slurm doesn't answer
    requeue "Slurm has lost sight of this node, which runs the job's script"
  fi
  answers=$(mktemp -d)
  for node in "${nodes[@]}"; do
    timeout -s KILL $ANSWER_LIMIT srun --overlap --nodelist="$node" --nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task=1 \
      --mem=0 --gres=none true </dev/null >/dev/null 2>&1 && : >"$answers/$node" &
    pids+=($!)
  done
  wait "${pids[@]}"
  UP=()
  for node in "${nodes[@]}"; do [ ! -e "$answers/$node" ] || UP+=("$node"); done
  rm -r "$answers"
}

job_nodes() { # the nodes that Slurm still counts as the job's, one per line
  local list
  list=$(scontrol show job "$JOB" | sed -n 's/^ *NodeList=//p')
  [ -z "$list" ] || scontrol show hostnames "$list"
}

# shellcheck disable=SC2153 # launch.sh sets RESTART
guard() { # requeue this job if the node that runs its script is lost: --no-kill leaves the job running without a script
  local others
  [ -z "${guard_pid:-}" ] || kill "$guard_pid" 2>/dev/null
  mapfile -t others < <(without "${SLURMD_NODENAME:-$(hostname -s)}" "${UP[@]}")
  [ ${#others[@]} -gt 0 ] || return 0
  others=("${others[@]:0:2}")
  srun --overlap --no-kill --nodelist="$(paste -sd, <(printf '%s\n' "${others[@]}"))" --nodes=${#others[@]} --ntasks=${#others[@]} \
    --ntasks-per-node=1 --cpus-per-task=1 --mem=0 --gres=none \
    "$REPO/slurm/guard.sh" "$JOB" "$RESTART" "$RUN/slurm/job.log" </dev/null >/dev/null 2>&1 &
  guard_pid=$!
}

# ---- which have failed ----

blame_nodes() { # find what ended the last attempt of this job: nodes that went down, else the first rank that failed
  local event job restart since nodes node facts lost='' number rank code
  IFS=$'\t' read -r _ job restart _ since nodes < <(grep -P '^start\t' "$RUN/slurm/attempts.tsv" 2>/dev/null | tail -n 1)
  event=$(tail -n 1 "$RUN/slurm/attempts.tsv" 2>/dev/null | awk -F'\t' '{ print $1 == "end" ? $6 : $1 }')
  [ "${job:-}" = "$SLURM_JOB_ID" ] && { [ "$event" = start ] || [ "$event" = failed ]; } || return 0
  number=$(grep -c '^start' "$RUN/slurm/attempts.tsv")
  for node in $(scontrol show hostnames "$nodes"); do
    facts=$(scontrol show node "$node")
    if [[ $facts =~ State=[A-Z+]*(DOWN|NOT_RESPONDING|FAIL|\*) ]] || restarted_after "$since" "$facts" || missing "$node"; then
      note_bad_node "$restart" "$node" "lost in attempt $number"
      lost=yes
    fi
  done
  if [ -n "$lost" ]; then
    record end lost
  elif [ -s "$RUN/slurm/failed" ]; then
    read -r node rank code <"$RUN/slurm/failed"
    note_bad_node "$restart" "$node" "rank $rank was the first to fail in attempt $number, with exit code $code"
  fi
  rm -f "$RUN/slurm/failed" # blame it only once
}

missing() { # NODE: whether it has not answered; in a job that has just started, none has been asked
  [ ${#UP[@]} -gt 0 ] && ! printf '%s\n' "${UP[@]}" | grep -qxF "$1"
}

restarted_after() { # UNIX_TIME NODE_FACTS: whether the node's slurmd has started since
  local started
  started=$(sed -n 's/.*SlurmdStartTime=\([^ ]*\).*/\1/p' <<<"$2")
  [ -n "$started" ] && [ "$(date -d "$started" +%s 2>/dev/null || echo 0)" -gt "$1" ]
}

note_bad_node() { # RESTART NODE REASON
  printf '%s\t%s\t%s\t%s\t%s\n' "$2" "$SLURM_JOB_ID" "$1" "$(date +%s)" "$3" >>"$RUN/slurm/bad-nodes.tsv"
  say "node $2: $3"
}

failed_twice() { # nodes of this run, one per line
  cut -f1 "$RUN/slurm/bad-nodes.tsv" 2>/dev/null | sort | uniq -c | awk '$1 >= 2 { print $2 }'
}

bad_nodes() { # those that failed twice, if enough others are left to run on
  local bad usable
  bad=$(failed_twice)
  usable=$(sinfo -h -N -p "$SLURM_JOB_PARTITION" -t idle,alloc,mix,comp -o %N | sort -u | grep -cvxF "${bad:-}")
  [ -z "$bad" ] || [ "$usable" -lt "$SLURM_JOB_NUM_NODES" ] || echo "$bad"
}

leave_bad_nodes() { # ask for other nodes if one of this job's has failed twice in this run
  local node
  for node in $(bad_nodes); do
    if scontrol show hostnames "$SLURM_JOB_NODELIST" | grep -qx "$node" && ! left "$node"; then # else it came back
      record leave "$node"
      requeue "$node has failed twice in this run"
    fi
  done
}

note_left_nodes() { # NODELIST yes|no: which of them are not used again, in this job (yes) or after a requeue
  local node
  for node in $(if [ "$2" = yes ]; then failed_twice; else bad_nodes; fi); do
    if scontrol show hostnames "$1" | grep -qx "$node" && ! left "$node"; then record leave "$node"; fi
  done
}

left() { # NODE: whether this job has left it once
  grep -qP "^leave\t$SLURM_JOB_ID\t.*\t$1$" "$RUN/slurm/attempts.tsv"
}

exclude_bad_nodes() { # from the job that was just requeued
  local bad
  [ -n "$RUN" ] || return 0
  bad=$(bad_nodes | paste -sd,)
  [ -z "$bad" ] || { scontrol update JobId="$JOB" ExcNodeList="$bad" && say "excluded from now on: $bad"; }
}
