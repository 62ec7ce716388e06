# shellcheck shell=bash disable=SC2034
# What differs from site to site. This is the one file to edit; each job reads it on its first node.
# A value already in the environment wins: IN21K=/data/in21k sbatch slurm/pretrain_b16.sh

# 1. What to ask Slurm for. `vit submit` and submit_all.sh turn it into sbatch's options (slurm/sbatch_options.sh).
#    Plain sbatch doesn't read it: `sbatch slurm/pretrain_l16.sh` takes whole nodes and starts one rank per GPU that it
#    finds there; give it --partition, --account and --qos yourself, or export these three in your shell's start-up file.
#export SBATCH_PARTITION=gpu SBATCH_ACCOUNT=mylab SBATCH_QOS=normal # also SBATCH_RESERVATION, _CONSTRAINT, _CLUSTERS
CPU_PARTITION=${CPU_PARTITION:-}           # of jobs without GPUs (shard, verify, export); empty: SBATCH_PARTITION
GPUS_PER_NODE=${GPUS_PER_NODE:-8}          # ranks per node; 0: a rehearsal on CPUs, one rank per node
CPUS_PER_GPU=${CPUS_PER_GPU:-12}           # of the rank and its data loader workers
WHOLE_NODES=${WHOLE_NODES:-yes}            # yes: --exclusive and all memory; no: share nodes with other jobs
MEMORY_PER_NODE=${MEMORY_PER_NODE:-}       # --mem of shared nodes, such as 400G; empty: the partition's default
GPU_REQUEST=${GPU_REQUEST:-gpus-per-node}  # gpus-per-node, gres (--gres=gpu:8), or none where Slurm doesn't count GPUs
GPU_TYPE=${GPU_TYPE:-}                     # Slurm's name of the type, such as h100: --gpus-per-node=h100:8
GPU_MODEL=${GPU_MODEL:-}                   # A100, H100, H200 ...: `vit submit` checks that the recipe fits its memory
TIME_LIMIT=${TIME_LIMIT:-}                 # --time of all jobs; empty: 24 h to train and shard, 2 h to evaluate, 12 h else
PRETRAIN_NODES=${PRETRAIN_NODES:-}         # empty: 8 for L/16, 4 for B/16 and L/32, 2 for B/32
FINETUNE_NODES=${FINETUNE_NODES:-}         # empty: 2 for L/16, else 1
SPARES=${SPARES:-0}                        # extra nodes of a pretraining, to replace lost ones; for one job: --spares 1
#    Examples. 4 A100 with 64 CPUs per node, allocated whole:   GPUS_PER_NODE=4 CPUS_PER_GPU=16 GPU_MODEL=A100
#    8 H100 per node, nodes shared, GPUs by --gres and type:    WHOLE_NODES=no MEMORY_PER_NODE=900G GPU_REQUEST=gres GPU_TYPE=h100
#    Whole nodes only, GPUs unknown to Slurm (no gres.conf):    GPU_REQUEST=none GPUS_PER_NODE=8
#    Partitions of at most 8 hours (jobs save and requeue):     TIME_LIMIT=08:00:00

# 2. Folders that every node sees under the same path.
WORK=${VIT_WORK:-$REPO/work}
RUNS=${RUNS:-$WORK/runs}           # run folders: checkpoints, metrics, logs
IN21K=${IN21K:-$WORK/shards/in21k} # datasets, made by slurm/shard.sh
IN1K=${IN1K:-$WORK/shards/in1k}

# 3. Python: the repository's virtual environment if there is one. Load modules here too.
#module purge; module load cuda/12.8
[ -d "$REPO/.venv/bin" ] && PATH=$REPO/.venv/bin:$PATH

# 4. A container, if Python is in one: apptainer for a .sif, else what pyxis (enroot) accepts: a .sqsh or the name of
#    a registry's image. The image holds the packages of constraints.txt, bash and procps; the code comes from REPO.
CONTAINER=${CONTAINER:-}                            # /images/vit.sif, /images/vit.sqsh, nvcr.io#nvidia/pytorch:25.08-py3
CONTAINER_PATHS=${CONTAINER_PATHS:-$REPO:$WORK:$PWD} # seen inside under the same paths; add those of your datasets
SRUN_OPTIONS=() # of each srun
RANK_PREFIX=()  # before each rank's command
mounts=$(tr : '\n' <<<"$CONTAINER_PATHS" | sort -u | sed 's/.*/&:&/' | paste -sd,)
case $CONTAINER in
  "") ;;
  *.sif) RANK_PREFIX=(apptainer exec --nv --bind "$mounts" --pwd "$PWD" "$CONTAINER") ;;
  *)
    # An image's own PYTHONPATH would override ours
    SRUN_OPTIONS=(--container-image="$CONTAINER" --container-mounts="$mounts" --container-workdir="$PWD"
      --container-env=PYTHONPATH)
    ;;
esac

# 5. How the ranks start: srun, one task per GPU; or torchrun, one agent per node, for sites that prefer it.
LAUNCHER=${LAUNCHER:-srun}

# 6. Network. NCCL finds InfiniBand by itself on most clusters; look here if jobs.doctor reports a slow all-reduce.
#export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
#export NCCL_IB_HCA=mlx5
#export NCCL_DEBUG=INFO

# 7. Node-local scratch, for torch's and Triton's caches.
#export TMPDIR=/local/$SLURM_JOB_ID TRITON_CACHE_DIR=/local/$SLURM_JOB_ID/triton

# 8. Tracking: an MLflow server; without it, a SQLite file in RUNS.
#export MLFLOW_TRACKING_URI=https://mlflow.example.org

# 9. Check nodes, network, storage and GPUs before the first attempt of a run (jobs.doctor). no: start at once.
DOCTOR=${DOCTOR:-yes}

#    DRY_RUN=yes sbatch ...: the job prints the srun line that it would run, and ends. `vit submit --dry-run` needs no job.
DRY_RUN=${DRY_RUN:-no}

# 10. A rank that crashes or hangs, or a lost node: the ranks start again in the same job, from the newest checkpoint.
RESTARTS_IN_JOB=${RESTARTS_IN_JOB:-3} # at most this many in a row without a new checkpoint, then requeue; 0: always requeue
ELASTIC=${ELASTIC:-yes}               # with too few nodes: yes: continue on fewer until the next requeue; no: requeue and wait

# 11. Learning rates that a fine-tuning array tries: --array=0-3 takes them all.
FINETUNE_LRS=${FINETUNE_LRS:-0.003 0.01 0.03 0.06}
