# shellcheck shell=bash disable=SC2034
# What a job asks Slurm for, from the fields of env.sh. Variables in, variables out; no command is called.
# Sourced by submit.sh and submit_all.sh (for sbatch) and by launch.sh (for srun).

die() { echo "error: $*" >&2; exit 2; }

read_site() { # for submit.sh and submit_all.sh: sets and checks the fields of env.sh, and sets clusters
  clusters=${SLURM_CLUSTERS:-}
  clean_shell
  unset SPARE_NODES # from a surrounding job
  set +eu # as in the jobs: modules and conda read unset variables
  # shellcheck source=slurm/env.sh
  source "$REPO/slurm/env.sh" >&2 # modules and conda print: only our own lines may go to stdout
  set -eu
  clean_slurm
  require_site_fields >&2 || exit 2
  check_site >&2 || exit 2
  ignore_sbatch_variables >&2
}

default_sizes() { # KIND [RECIPE]: sets NODES and EXTRA (spares), GPUS and RANKS per node, CPUS per rank, WHOLE, LIMIT and PARTITION
  NODES=1 EXTRA=0 GPUS=0 RANKS=1 CPUS=16 WHOLE=no LIMIT=12:00:00 PARTITION=${CPU_PARTITION:-${SBATCH_PARTITION:-}}
  case $1 in pretrain | finetune | evaluate) GPUS=$GPUS_PER_NODE CPUS=$CPUS_PER_GPU WHOLE=$WHOLE_NODES PARTITION=${SBATCH_PARTITION:-} ;; esac
  [ "$1" != pretrain ] || EXTRA=$SPARES
  case $1-${2:-} in
    *-tiny)
      [ "$GPUS" -le 2 ] || GPUS=2
      EXTRA=0 CPUS=2 WHOLE=no LIMIT=01:00:00
      ;;
    pretrain-l16*) NODES=${PRETRAIN_NODES:-8} LIMIT=24:00:00 ;;
    pretrain-b32*) NODES=${PRETRAIN_NODES:-2} LIMIT=24:00:00 ;;
    pretrain-*) NODES=${PRETRAIN_NODES:-4} LIMIT=24:00:00 ;;
    finetune-l16*) NODES=${FINETUNE_NODES:-2} LIMIT=24:00:00 ;;
    finetune-*) NODES=${FINETUNE_NODES:-1} LIMIT=24:00:00 ;;
    evaluate-*) LIMIT=02:00:00 ;;
    shard-*) LIMIT=24:00:00 ;;
  esac
  LIMIT=${TIME_LIMIT:-$LIMIT}
}

sbatch_options() { # KIND: sets OPTIONS to sbatch's options for those sizes, and RANKS from GPUS
  local field place
  OPTIONS=()
  for field in account qos reservation constraint; do
    place=SBATCH_${field^^}
    [ -z "${!place:-}" ] || OPTIONS+=("--$field=${!place}")
  done
  [ -z "$PARTITION" ] || OPTIONS=("--partition=$PARTITION" "${OPTIONS[@]}")
  RANKS=$((GPUS > 0 ? GPUS : 1))
  case $1 in
    shard) OPTIONS+=(--cpus-per-task="$CPUS") ;;
    command) OPTIONS+=(--nodes=1 --ntasks=1 --cpus-per-task="$CPUS") ;;
    evaluate) # one task, which starts a process per GPU
      gpu_options "$GPUS"
      OPTIONS+=(--nodes=1 --ntasks=1 "${GPU_OPTIONS[@]}" --cpus-per-task="$((RANKS * CPUS))")
      ;;
    *)
      gpu_options "$GPUS"
      [ "$EXTRA" = 0 ] || OPTIONS+=(--export="ALL,SPARE_NODES=$EXTRA") # for nodes.sh
      OPTIONS+=(--nodes="$((NODES + EXTRA))" --ntasks-per-node="$RANKS" "${GPU_OPTIONS[@]}" --cpus-per-task="$CPUS")
      ;;
  esac
  if [ "$WHOLE" = yes ]; then
    OPTIONS+=(--exclusive --mem=0)
  elif [ -n "$MEMORY_PER_NODE" ] && [ "$GPUS" != 0 ]; then
    OPTIONS+=(--mem="$MEMORY_PER_NODE")
  fi
  OPTIONS+=(--time="$LIMIT")
}

gpu_options() { # GPUS per node: sets GPU_OPTIONS, the same for sbatch and srun
  GPU_OPTIONS=()
  [ "$1" != 0 ] || return 0
  case $GPU_REQUEST in
    gpus-per-node) GPU_OPTIONS=(--gpus-per-node="${GPU_TYPE:+$GPU_TYPE:}$1") ;;
    gres) GPU_OPTIONS=(--gres="gpu:${GPU_TYPE:+$GPU_TYPE:}$1") ;;
  esac
}

whole() { # NUMBER: whether it is a whole number that bash calculates with (08 is none: it would be octal)
  [[ $1 =~ ^(0|[1-9][0-9]{0,8})$ ]]
}

check_site() { # prints what is wrong with a field of env.sh or with SPARE_NODES, and fails
  local field rate rates SPARE_NODES=${SPARE_NODES:-0}
  for field in GPUS_PER_NODE SPARES SPARE_NODES RESTARTS_IN_JOB; do
    whole "${!field}" || { site_error "$field" "a whole number, such as 0 or 8"; return 1; }
  done
  for field in CPUS_PER_GPU PRETRAIN_NODES FINETUNE_NODES; do # without a number of nodes, the recipe's
    [ "$field" = CPUS_PER_GPU ] || [ -n "${!field}" ] || continue
    { whole "${!field}" && [ "${!field}" != 0 ]; } || { site_error "$field" "a whole number from 1"; return 1; }
  done
  read -ra rates <<<"$FINETUNE_LRS"
  for rate in "${rates[@]:-none}"; do
    [[ $rate =~ ^([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$ ]] || { site_error FINETUNE_LRS "learning rates, such as 0.003 0.01"; return 1; }
  done
  case $GPU_REQUEST in gpus-per-node | gres | none) ;; *) site_error GPU_REQUEST "gpus-per-node, gres or none"; return 1 ;; esac
  case $LAUNCHER in srun | torchrun) ;; *) site_error LAUNCHER "srun or torchrun"; return 1 ;; esac
  for field in WHOLE_NODES ELASTIC DOCTOR DRY_RUN; do
    case ${!field} in yes | no) ;; *) site_error "$field" "yes or no"; return 1 ;; esac
  done
}

site_error() { # FIELD WHAT
  local place="slurm/env.sh, or the environment"
  [ "$1" != SPARE_NODES ] || place="set by vit submit --spares, or in the environment"
  echo "error: $1 '${!1}' must be $2 ($place)"
}

option() { # --NAME ARGUMENTS...: the last value given to it
  local name=$1 value='' key
  while shift && [ $# -gt 0 ]; do
    key=${1%%=*}
    [ "${key//_/-}" = "$name" ] || continue # tyro takes --run_dir as well
    if [[ $1 == *=* ]]; then value=${1#*=}; else value=${2:-}; fi
  done
  echo "$value"
}
