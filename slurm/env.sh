# shellcheck shell=bash disable=SC2034
# What differs from site to site. This is the one file to edit; each job reads it on its first node.
# A value already in the environment wins: IN21K=/data/in21k sbatch slurm/pretrain_b16.sh

# 1. Where sbatch sends the jobs. sbatch reads these from your shell, so `source slurm/env.sh` before it, or put them
#    into your shell's start-up file. slurm/shard.sh and slurm/submit_all.sh read this file by themselves, and pass on
#    SBATCH_PARTITION, _ACCOUNT, _QOS, _RESERVATION, _CONSTRAINT, _WCKEY, _NETWORK and _CLUSTERS, no other of SBATCH_*.
#export SBATCH_PARTITION=gpu
#export SBATCH_ACCOUNT=mylab
#export SBATCH_QOS=normal

# 2. Folders that every node sees under the same path.
WORK=${VIT_WORK:-$REPO/work}
RUNS=${RUNS:-$WORK/runs}           # run folders: checkpoints, metrics, logs
IN21K=${IN21K:-$WORK/shards/in21k} # data sets, made by slurm/shard.sh
IN1K=${IN1K:-$WORK/shards/in1k}

# 3. Python: the repository's virtual environment where there is one. Load modules here too.
#module purge; module load cuda/12.8
[ -d "$REPO/.venv/bin" ] && PATH=$REPO/.venv/bin:$PATH

# 4. A container, where Python lives in one: apptainer for a .sif, else what pyxis (enroot) takes: a .sqsh or the name of
#    a registry's image. The image holds the packages of constraints.txt, bash and procps; the code comes from REPO.
CONTAINER=${CONTAINER:-}                            # /images/vit.sif, /images/vit.sqsh, nvcr.io#nvidia/pytorch:25.08-py3
CONTAINER_PATHS=${CONTAINER_PATHS:-$REPO:$WORK:$PWD} # seen inside under the same paths; add those of your data sets
SRUN_OPTIONS=() # of each srun
RANK_PREFIX=()  # before each rank's command
mounts=$(tr : '\n' <<<"$CONTAINER_PATHS" | sort -u | sed 's/.*/&:&/' | paste -sd,)
case $CONTAINER in
  "") ;;
  *.sif) RANK_PREFIX=(apptainer exec --nv --bind "$mounts" --pwd "$PWD" "$CONTAINER") ;;
  *)
    # An image's own PYTHONPATH would win over ours
    SRUN_OPTIONS=(--container-image="$CONTAINER" --container-mounts="$mounts" --container-workdir="$PWD"
      --container-env=PYTHONPATH)
    ;;
esac

# 5. One srun task a GPU is how the ranks start. torchrun (one agent a node) does the same for sites that prefer it.
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

#    DRY_RUN=yes sbatch ...: the job prints the srun line that it would run, and ends.
DRY_RUN=${DRY_RUN:-no}

# 10. Learning rates that a fine-tuning array tries: --array=0-3 takes them all.
FINETUNE_LRS=${FINETUNE_LRS:-0.003 0.01 0.03 0.06}
