#!/bin/bash
# shellcheck disable=SC2034 # variables of sbatch_options.sh
# Submit one job with the sizes of this site (slurm/env.sh). `vit submit` does the same after checking dataset, run folder,
# batch and memory; this needs no Python on the login node.
#   slurm/submit.sh pretrain l16 --nodes 4 --optim.lr 3e-4
#   slurm/submit.sh finetune l16 --array 0-3                          # the learning rates of FINETUNE_LRS, one run each
#   slurm/submit.sh evaluate work/runs/finetune-l16 --data work/shards/in1k
#   slurm/submit.sh shard fall11_whole.tar work/shards/in21k --classes google21k --array 0-63
#   slurm/submit.sh command --time 1:00:00 python -m data_prep.verify work/shards/in21k
#   slurm/submit.sh pretrain l16 --dry-run                            # print the sbatch and srun lines; needs no Slurm
#   slurm/submit.sh pretrain l16 --nodes 8 --spares 1                 # 9 nodes: trains on 8, the 9th replaces a lost one
#
# --nodes, --spares, --gpus-per-node, --cpus-per-gpu, --mem, --time, --partition, --account, --qos, --reservation and --constraint
# override env.sh. --job-name (also the run folder's name), --array, --dependency, --begin, --nodelist, --exclude,
# --output, --mail-type, --mail-user, --hold and --test-only go to sbatch unchanged, as do the words of --sbatch
# "OPTIONS". Everything else is the job's own command line (for `command`: everything from its first word on).
set -euo pipefail
REPO=$(unset CDPATH; cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
source "$REPO/slurm/clean.sh"
source "$REPO/slurm/sbatch_options.sh"
read_site
[ -z "$clusters" ] || export SLURM_CLUSTERS=$clusters

kind=${1:-}
case $kind in
  pretrain | finetune | evaluate | shard | command) shift ;;
  -h | --help) sed -n '3,/^set -/{s/^# \{0,1\}//;/^set -/!p}' "$0"; exit 0 ;;
  *) die "KIND '$kind' must be one of pretrain, finetune, evaluate, shard, command (see $0 --help)" ;;
esac
recipe=''
case $kind in
  pretrain | finetune)
    [[ ${1:--} != -* ]] || die "RECIPE is missing: slurm/submit.sh $kind RECIPE"
    recipe=$1
    ;;
esac
default_sizes "$kind" "$recipe"

dry='' name='' array='' more=() arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=yes; shift; continue ;;
    --hold | --test-only) more+=("$1"); shift; continue ;;
    --nodes | --spares | --gpus-per-node | --cpus-per-gpu | --mem | --time | --partition | --account | --qos | --reservation | --constraint | \
      --job-name | --array | --dependency | --begin | --nodelist | --exclude | --output | --mail-type | --mail-user | --sbatch)
      [ $# -ge 2 ] || die "$1 needs a value"
      field=$1 value=$2
      shift 2
      ;;
    --nodes=* | --spares=* | --gpus-per-node=* | --cpus-per-gpu=* | --mem=* | --time=* | --partition=* | --account=* | --qos=* | --reservation=* | \
      --constraint=* | --job-name=* | --array=* | --dependency=* | --begin=* | --nodelist=* | --exclude=* | --output=* | \
      --mail-type=* | --mail-user=* | --sbatch=*)
      field=${1%%=*} value=${1#*=}
      shift
      ;;
    *)
      arguments+=("$1")
      shift
      [ "$kind" != command ] || { arguments+=("$@"); break; } # the rest is that command's
      continue
      ;;
  esac
  case $field in
    --nodes | --spares | --gpus-per-node | --cpus-per-gpu) whole "$value" || die "$field '$value' must be a whole number" ;;
  esac
  case $field in
    --nodes)
      [ "$value" != 0 ] || die "--nodes 0 is too few: give at least 1"
      case $kind in pretrain | finetune) ;; *) die "--nodes is for pretrain and finetune: $kind takes one node${array:+ per task}" ;; esac
      NODES=$value
      ;;
    --spares)
      case $kind in pretrain | finetune) ;; *) die "--spares is for pretrain and finetune: $kind takes one node${array:+ per task}" ;; esac
      EXTRA=$value
      ;;
    --gpus-per-node)
      case $kind in shard | command) die "--gpus-per-node $value has no effect: $kind takes no GPUs" ;; esac
      GPUS=$value
      export GPUS_PER_NODE=$value
      ;;
    --cpus-per-gpu)
      [ "$value" != 0 ] || die "--cpus-per-gpu 0 is too few: give at least 1"
      CPUS=$value
      ;;
    --mem)
      case $kind in shard | command) more+=("--mem=$value") ;; *) MEMORY_PER_NODE=$value WHOLE=no ;; esac
      ;;
    --time) LIMIT=$value ;;
    --partition) PARTITION=$value ;;
    --account) SBATCH_ACCOUNT=$value ;;
    --qos) SBATCH_QOS=$value ;;
    --reservation) SBATCH_RESERVATION=$value ;;
    --constraint) SBATCH_CONSTRAINT=$value ;;
    --job-name)
      [[ $value != */* ]] || die "--job-name '$value' has a slash: it names the run folder and the log, so leave it out"
      name=$value
      ;;
    --array) array=$value ;;
    --output)
      folder=$(dirname -- "$value")
      [[ $folder == *%* ]] || [ -d "$folder" ] || die "--output '$value': the folder '$folder' does not exist, and Slurm makes none: create it"
      more+=("$field=$value")
      ;;
    --sbatch) read -ra words <<<"$value"; more+=("${words[@]}") ;;
    *) more+=("$field=$value") ;;
  esac
done
[ "$kind" != shard ] || array=${array:-0-15}
last=${array##*[-,]} # of an array's tasks: 3 of 0-3%2
last=${last%%[:%]*}
case $kind in
  command) [ ${#arguments[@]} -gt 0 ] || die "COMMAND is missing: name it last, such as command python -m data_prep.verify DATASET" ;;
  pretrain) [[ -z $array || $array == *%1 ]] || die "--array '$array' would start several jobs in one run folder: give each run a --job-name" ;;
  finetune)
    read -ra rates <<<"$FINETUNE_LRS"
    [ -z "$array" ] || ! whole "$last" || [ "$last" -lt ${#rates[@]} ] ||
      die "--array '$array' has more tasks than FINETUNE_LRS has learning rates (${#rates[@]}: $FINETUNE_LRS): give --array 0-$((${#rates[@]} - 1))"
    ;;
esac
case $kind in
  pretrain | finetune)
    run=$(option --run-dir "${arguments[@]}")
    run=${run%/}
    [ -n "$name" ] || name=${run##*/} # so that the queue shows which run it is
    [ -n "$name" ] || name=$kind-$recipe
    ;;
esac
name=${name:-$kind}

sbatch_options "$kind"
command=(sbatch --job-name="$name" ${array:+--array="$array"} "${OPTIONS[@]}" "${more[@]}" "$REPO/slurm/$kind.sh" "${arguments[@]}")
if [ -z "$dry" ]; then exec "${command[@]}"; fi

printf '%q ' "${command[@]}"
echo
# The job's own script prints what it will run, with Slurm's variables as the job will find them
first=${array%%[-,:%]*}
array_variables=(SLURM_ARRAY_JOB_ID=0 SLURM_ARRAY_TASK_ID="$first" SLURM_ARRAY_TASK_MIN="$first" SLURM_ARRAY_TASK_MAX="$last"
  SLURM_ARRAY_TASK_COUNT="$((last - first + 1))" FINALIZE=no)
[ -n "$array" ] || array_variables=()
cpus=$CPUS
[ "$kind" != evaluate ] || cpus=$((RANKS * CPUS))
ranks=() # evaluate, shard and command are one task
case $kind in pretrain | finetune) ranks=(SLURM_NTASKS_PER_NODE="$RANKS" SLURM_TASKS_PER_NODE="$RANKS(x$((NODES + EXTRA)))") ;; esac
exec env -u SLURM_NTASKS_PER_NODE -u SLURM_TASKS_PER_NODE DRY_RUN=yes SLURM_JOB_ID=0 SLURM_JOB_NAME="$name" SLURM_JOB_NODELIST=NODES \
  SLURM_JOB_NUM_NODES="$((NODES + EXTRA))" SPARE_NODES="$EXTRA" SLURM_GPUS_ON_NODE="$GPUS" SLURM_CPUS_PER_TASK="$cpus" SLURM_CPUS_ON_NODE="$((RANKS * CPUS))" \
  "${ranks[@]}" "${array_variables[@]}" bash "$REPO/slurm/$kind.sh" "${arguments[@]}"
