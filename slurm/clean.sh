# shellcheck shell=bash
# Unset variables from the user's shell, a surrounding job or the site's modules that would change our commands.
# Sourced by launch.sh, submit.sh and submit_all.sh, which call clean_shell before env.sh and clean_slurm after it.

clean_shell() { # before env.sh, which may set any of these again
  # cd prints folders found through CDPATH; old greps read GREP_OPTIONS; POSIXLY_CORRECT changes GNU tools, and bash, which
  # before 5.1 then has no process substitution. A surrounding bash may have exported SHELLOPTS.
  unset CDPATH GLOBIGNORE GREP_OPTIONS GREP_COLOR GREP_COLORS POSIXLY_CORRECT
  set +o posix +o noglob +o noclobber
  # srun options inherited from a surrounding job or step (sbatch in salloc, or a shard array's merge) or set in the shell.
  # Without them, a step gets all memory and GPUs of its job, every variable, our log and our time limit.
  unset "${!SRUN_@}" "${!SLURM_STEP@}" "${!SLURM_CPU_BIND@}" "${!SLURM_MEM_BIND@}" SLURM_CLUSTERS \
    SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SLURM_MEM_PER_NODE SLURM_GPUS SLURM_GPUS_PER_NODE SLURM_GPUS_PER_TASK \
    SLURM_CPUS_PER_GPU SLURM_GRES SLURM_GRES_FLAGS SLURM_TRES_PER_TASK SLURM_CORE_SPEC SLURM_THREAD_SPEC SLURM_HOSTFILE \
    SLURM_CONSTRAINT SLURM_PARTITION SLURM_QOS SLURM_RESERVATION SLURM_TIMELIMIT SLURM_DEPENDENCY SLURM_DELAY_BOOT \
    SLURM_EXCLUSIVE SLURM_EXACT SLURM_OVERLAP SLURM_IMMEDIATE SLURM_SIGNAL SLURM_WAIT SLURM_THREADS SLURM_NO_KILL \
    SLURM_EXPORT_ENV SLURM_STDINMODE SLURM_STDOUTMODE SLURM_STDERRMODE SLURM_OPEN_MODE SLURM_UNBUFFEREDIO SLURM_LABELIO \
    SLURM_KILL_BAD_EXIT SLURM_WORKING_DIR SLURM_REMOTE_CWD SLURM_BCAST SLURM_PROLOG SLURM_EPILOG SLURM_TASK_PROLOG \
    SLURM_TASK_EPILOG SLURM_TEST_EXEC SLURM_MULTI_PROG
}

clean_slurm() { # after env.sh, since modules set some of these: filters, formats and exit codes of Slurm's commands
  unset "${!SQUEUE_@}" "${!SINFO_@}" "${!SCONTROL_@}" SLURM_TIME_FORMAT SLURM_BITSTR_LEN SLURM_EXIT_ERROR SLURM_EXIT_IMMEDIATE
}

sbatch_variables() { # all except those that choose where a job runs: sizes, signals and arrays are set by each script
  local name
  for name in "${!SBATCH_@}"; do
    case $name in
      SBATCH_ACCOUNT | SBATCH_PARTITION | SBATCH_QOS | SBATCH_RESERVATION | SBATCH_CONSTRAINT | SBATCH_WCKEY | \
        SBATCH_NETWORK | SBATCH_CLUSTERS | SBATCH_DEBUG) ;;
      *) echo "$name" ;;
    esac
  done
}

ignore_sbatch_variables() { # they would change every job, for example make each one an array, or make sbatch wait
  local variable
  for variable in $(sbatch_variables); do
    echo "warning: $variable='${!variable}' is ignored: give sbatch's options on the command line"
    unset "$variable"
  done
}

require_site_fields() { # a site's env.sh may be older than a field
  local field wrong
  for field in WORK RUNS IN21K IN1K LAUNCHER DOCTOR DRY_RUN FINETUNE_LRS SRUN_OPTIONS RANK_PREFIX CPU_PARTITION GPUS_PER_NODE \
    CPUS_PER_GPU WHOLE_NODES MEMORY_PER_NODE GPU_REQUEST GPU_TYPE TIME_LIMIT PRETRAIN_NODES FINETUNE_NODES SPARES \
    RESTARTS_IN_JOB ELASTIC; do
    declare -p "$field" >/dev/null 2>&1 && continue
    wrong=$(bash -n "$REPO/slurm/env.sh" 2>&1 | head -n 1) # bash reads no further than that
    echo "error: ${wrong:-$REPO/slurm/env.sh does not set $field: restore that line}"
    return 1
  done
}
