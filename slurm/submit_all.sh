#!/bin/bash
# The whole campaign of one recipe as Slurm jobs that wait for each other:
#   shard -> merge -> verify (each dataset once, for all campaigns) -> pretrain -> finetune (an array over learning
#   rates) -> pick (the best by the held-out split) -> evaluate -> export
# DeiT III's recipes have one learning rate for each fine-tuning: pretrain -> finetune-224 -> finetune (at 384 px) -> pick ...
#
#   slurm/submit_all.sh l16 --raw fall11_whole.tar --in1k ILSVRC2012_img_train.tar
#   slurm/submit_all.sh l16 --raw fall11_whole.tar --in1k ILSVRC2012_img_train.tar \
#       --pretrain-sbatch "--nodes=16" --pretrain "--optim.lr 3e-4" --shard-sbatch "--array=0-63"
#   slurm/submit_all.sh b16 --raw ... --in1k ... --name b16-seed1 --pretrain "--train.seed 1"
#   slurm/submit_all.sh l16 --raw ... --in1k ... --dry-run         # print the sbatch lines only
#
# Run it again to continue where it stopped: finished stages are skipped, queued ones are waited for, failed or
# cancelled ones are submitted again, and so are those that depend on them: another learning rate in FINETUNE_LRS is
# trained, and the best is picked, evaluated and exported again. `python -m jobs.status` shows the state of everything.
#
# --STAGE "ARGUMENTS" adds arguments to a stage's command, --STAGE-sbatch "OPTIONS" options to its sbatch. Stages: shard-in21k
# and shard-in1k (or shard for both), merge, verify, pretrain, finetune-224 (DeiT III), finetune, pick, evaluate, export. The datasets are IN21K and
# IN1K, the runs RUNS/pretrain-NAME and RUNS/finetune-NAME-lr*, everything else WORK/campaigns/NAME: see env.sh.
set -euo pipefail
REPO=$(unset CDPATH; cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
source "$REPO/slurm/clean.sh"
source "$REPO/slurm/sbatch_options.sh"
read_site
export RUNS IN21K IN1K FINETUNE_LRS

clusters=${SBATCH_CLUSTERS:-${SLURM_CLUSTERS:-$clusters}} # squeue must ask the one that sbatch submits to
unset SBATCH_CLUSTERS SLURM_CLUSTERS
case $clusters in
  "") ;;
  *,* | all) die "SLURM_CLUSTERS '$clusters' names several clusters, but jobs wait for each other only within one: name that" ;;
  *) export SLURM_CLUSTERS=$clusters ;;
esac

recipe=${1:-}
case $recipe in
  b16 | b32 | l16 | l16_strong1 | l32 | b16_deit3 | b32_deit3 | l16_deit3 | l32_deit3 | tiny) shift ;;
  -h | --help) sed -n '2,/^set -/{s/^# \{0,1\}//;/^set -/!p}' "$0"; exit 0 ;;
  "" | -*) die "RECIPE is missing: name it first, such as l16 (see $0 --help)" ;;
  *) die "RECIPE '$recipe' must be one of b16, b32, l16, l16_strong1, l32, {b16,b32,l16,l32}_deit3, tiny (see $0 --help)" ;;
esac
raw='' in1k='' name=$recipe dry=
declare -A more=()
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=yes; shift; continue ;;
    --raw | --in1k | --name | --shard | --shard-in21k | --shard-in1k | --verify | --merge | --pretrain | --finetune-224 | --finetune | --pick | \
      --evaluate | --export | --shard-sbatch | --shard-in21k-sbatch | --shard-in1k-sbatch | --merge-sbatch | \
      --verify-sbatch | --pretrain-sbatch | --finetune-224-sbatch | --finetune-sbatch | --pick-sbatch | --evaluate-sbatch | --export-sbatch)
      [ $# -ge 2 ] || die "$1 needs a value" ;;
    *) die "option $1 is unknown (see $0 --help)" ;;
  esac
  case $1 in
    --raw) raw=$2 ;;
    --in1k) in1k=$2 ;;
    --name) name=$2 ;;
    *)
      [[ $1 != *-sbatch || ! " $2" =~ \ (--clusters|-M) ]] ||
        die "$1 '$2' names its own cluster, but jobs wait for each other only within one: set SLURM_CLUSTERS instead"
      more[${1#--}]=$2
      ;;
  esac
  shift 2
done
[[ $name != */* ]] || die "--name '$name' has a slash: it names run folders and logs, so leave it out"
[ -e "$raw" ] || [ -e "$IN21K/dataset.json" ] || die "--raw '$raw' does not exist: name the ImageNet-21K release as downloaded"
[ -e "$in1k" ] || [ -e "$IN1K/dataset.json" ] || die "--in1k '$in1k' does not exist: name ILSVRC2012's training tar as downloaded"

campaigns=$WORK/campaigns
campaign=$campaigns/$name
if [ -z "$dry" ]; then
  mkdir -p "$campaign" "$campaigns/data-in21k" "$campaigns/data-in1k"
  exec 9>"$campaigns/.lock" # two of these at once would submit everything twice
  flock -n -E 75 9 || case $? in
    75) die "another submit_all.sh is running in $campaigns: wait for it" ;;
    *) echo "warning: $campaigns can't be locked (above): run one submit_all.sh at a time" >&2 ;;
  esac
fi

pretrain_run=$RUNS/pretrain-$name
parent=$pretrain_run parent_stage=$campaign/pretrain # of the fine-tuning
finetune_runs=() array='' sweep=()
case $recipe in
  *_deit3)
    finetune_runs=("$RUNS/finetune-$name")
    parent=$RUNS/finetune-${name}_224 parent_stage=$campaign/finetune-224
    ;;
  *)
    read -ra rates <<<"$FINETUNE_LRS"
    for rate in "${rates[@]}"; do finetune_runs+=("$RUNS/finetune-$name-lr$rate"); done
    array=--array=0-$((${#rates[@]} - 1)) sweep=(--sweep "$RUNS/finetune-$name")
    ;;
esac

finished() { grep -q '"state": *"finished"' "$1/status.json" 2>/dev/null; } # RUN

done_already() { # STAGE_FILE AFTER... -- RESULT...: whether the stage needs no job
  local file=$1 after=() run before
  shift
  while [ "$1" != -- ]; do after+=("$1"); shift; done
  shift
  case ${file##*/} in
    shard | merge) [ -e "$1/dataset.json" ] ;;
    pretrain | finetune-224 | finetune) for run in "$@"; do finished "$run" || return 1; done ;;
    *)
      for before in "${after[@]}"; do [ -z "${active[$before]:-}" ] || return 1; done # its source is being made again
      [ -e "$file.done" ]
      ;;
  esac
}

queued() { # STAGE_FILE: the id of its job, if that is still in Slurm's queue
  local job
  job=$(head -n 1 "$1.job" 2>/dev/null) || return 1
  grep -qx "$job" <<<"$queue" && echo "$job"
}
queue=''
if [ -z "$dry" ]; then # an array's tasks by the id of the array
  queue=$(squeue -h --all -o %F) || die "squeue failed (above), so it is unknown which jobs are queued: try again when Slurm answers"
fi

# stage STAGE_FILE CONDITION AFTER... -- RESULT... -- SBATCH_OPTIONS... SCRIPT ARGUMENTS...
# Submits the stage unless it is done or queued. CONDITION: afterok or afterany. AFTER: stage files it waits for.
# RESULT: folders that it makes.
stage() {
  local file=$1 condition=$2 after=() results=() dependency='' before job options=()
  shift 2
  while [ "$1" != -- ]; do after+=("$1"); shift; done
  shift
  while [ "$1" != -- ]; do results+=("$1"); shift; done
  shift
  if done_already "$file" "${after[@]}" -- "${results[@]}"; then
    [ -n "$dry" ] || echo "${file#"$campaigns/"}: done"
    return
  fi
  if [ -z "$dry" ] && job=$(queued "$file"); then
    active[$file]=$job
    echo "${file#"$campaigns/"}: job $job is queued"
    return
  fi
  for before in "${after[@]}"; do
    [ -z "${active[$before]:-}" ] || dependency+=:${active[$before]}
  done
  options=(--parsable --export=ALL --kill-on-invalid-dep=yes --output="$campaign/%x-%j.out")
  [ -z "$dependency" ] || options+=(--dependency="$condition$dependency")
  if [ -n "$dry" ]; then
    active[$file]=${file#"$campaigns/"}
    printf '%q ' sbatch "${options[@]}" "$@"; echo
    return
  fi
  rm -f "$file.done"
  job=$(DONE_MARK=$file.done sbatch "${options[@]}" "$@") || die "sbatch refused ${file#"$campaigns/"}: see above"
  job=${job##*$'\n'} # a site's own sbatch may print more before it
  [[ $job =~ ^[0-9]+(;.*)?$ ]] || die "sbatch answered '$job' instead of a job's id for ${file#"$campaigns/"}: look at squeue"
  active[$file]=${job%%;*}
  printf '%s\n' "${job%%;*}" "${results[@]}" >"$file.job"
  echo "${file#"$campaigns/"}: submitted job ${job%%;*}"
}
declare -A active=() # stage file -> its job, if it is queued

sized() { # KIND NAME MORE: sets OPTIONS to sbatch's for a stage: the site's sizes (env.sh), then the user's
  local words
  default_sizes "$1" "$recipe"
  sbatch_options "$1"
  read -ra words <<<"$3"
  OPTIONS=(--job-name="$2" "${OPTIONS[@]}" "${words[@]}")
}

prepare() { # DATA INPUT OUTPUT ARGUMENTS...: shard, merge and verify one dataset
  local folder=$campaigns/data-$1 input=$2 output=$3 arguments
  read -ra arguments <<<"${more[shard]:-} ${more[shard-$1]:-}"
  arguments=("${@:4}" "${arguments[@]}")
  if [ -e "$folder/input" ] && [ -n "$input" ] && [ "$(cat "$folder/input")" != "$input" ]; then
    die "$output is being made from $(cat "$folder/input"), not from $input: name that, or set another ${1^^} (env.sh)"
  fi
  [ -n "$dry" ] || echo "$input" >"$folder/input"
  sized shard "shard-$1" "${more[shard-sbatch]:-} ${more[shard-$1-sbatch]:-}"
  stage "$folder/shard" afterok -- "$output" -- "${OPTIONS[@]}" \
    --export="ALL,FINALIZE=no,DONE_MARK=" "$REPO/slurm/shard.sh" "$input" "$output" "${arguments[@]}"
  sized command "merge-$1" "${more[merge-sbatch]:-}"
  stage "$folder/merge" afterok "$folder/shard" -- "$output" -- "${OPTIONS[@]}" \
    "$REPO/slurm/command.sh" python -m data_prep.shard "$input" "$output" "${arguments[@]}" --finalize
  sized command "verify-$1" "${more[verify-sbatch]:-}"
  # shellcheck disable=SC2086 # arguments are split into words
  stage "$folder/verify" afterok "$folder/merge" -- -- "${OPTIONS[@]}" \
    "$REPO/slurm/command.sh" python -m data_prep.verify "$output" ${more[verify]:-}
}

in21k_classes=() in1k_classes=()
if [ "$recipe" != tiny ]; then in21k_classes=(--classes google21k) in1k_classes=(--classes imagenet1k); fi
prepare in21k "$raw" "$IN21K" "${in21k_classes[@]}"
prepare in1k "$in1k" "$IN1K" "${in1k_classes[@]}" --val-fraction 0.01

sized pretrain "pretrain-$name" "${more[pretrain-sbatch]:-}"
# shellcheck disable=SC2086
stage "$campaign/pretrain" afterok "$campaigns/data-in21k/verify" -- "$pretrain_run" -- \
  "${OPTIONS[@]}" "$REPO/slurm/pretrain.sh" "$recipe" ${more[pretrain]:-}
if [ "$parent" != "$pretrain_run" ]; then
  sized finetune "finetune-${name}_224" "${more[finetune-224-sbatch]:-}"
  # shellcheck disable=SC2086
  stage "$parent_stage" afterok "$campaign/pretrain" "$campaigns/data-in1k/verify" -- "$parent" -- \
    "${OPTIONS[@]}" "$REPO/slurm/finetune.sh" "${recipe}_224" --parent "$pretrain_run" ${more[finetune-224]:-}
fi
sized finetune "finetune-$name" "$array ${more[finetune-sbatch]:-}"
# shellcheck disable=SC2086
stage "$campaign/finetune" afterok "$parent_stage" "$campaigns/data-in1k/verify" -- "${finetune_runs[@]}" -- \
  "${OPTIONS[@]}" "$REPO/slurm/finetune.sh" "$recipe" --parent "$parent" ${more[finetune]:-}
# A learning rate that diverges must not stop the others: pick looks at how each ended
sized command "pick-$name" "${more[pick-sbatch]:-}"
# shellcheck disable=SC2086
stage "$campaign/pick" afterany "$campaign/finetune" -- -- "${OPTIONS[@]}" \
  "$REPO/slurm/command.sh" python -m jobs.pick "${finetune_runs[@]}" --link "$campaign/best" \
  "${sweep[@]}" ${more[pick]:-}
sized evaluate "evaluate-$name" "${more[evaluate-sbatch]:-}"
# shellcheck disable=SC2086
stage "$campaign/evaluate" afterok "$campaign/pick" -- -- "${OPTIONS[@]}" \
  "$REPO/slurm/evaluate.sh" "$campaign/best" --data "$IN1K" --log ${more[evaluate]:-}
if [ -z "$dry" ] && [ -e "$campaign/timm" ] && ! queued "$campaign/export" >/dev/null &&
  ! done_already "$campaign/export" "$campaign/pick" --; then
  mv "$campaign/timm" "$campaign/timm-before-$(date +%F-%H%M%S)" # jobs.export overwrites nothing
fi
sized command "export-$name" "${more[export-sbatch]:-}"
# shellcheck disable=SC2086
stage "$campaign/export" afterok "$campaign/pick" -- -- "${OPTIONS[@]}" \
  "$REPO/slurm/command.sh" python -m jobs.export "$campaign/best" "$campaign/timm" --format timm ${more[export]:-}
[ -n "$dry" ] || echo "see: python -m jobs.status $campaigns $RUNS"
