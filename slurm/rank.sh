#!/bin/bash
# One rank (or one torchrun agent): run COMMAND with its own log. launch.sh starts it with srun, once per task.
# Usage: RUN=folder LAUNCHER=srun|torchrun slurm/rank.sh COMMAND...
set -u +o posix # bash before 5.1 has no >(...) under POSIXLY_CORRECT
log=$RUN/slurm/rank-$(printf %04d "$SLURM_PROCID").log
# The log's writer ignores signals: it must outlive a COMMAND that is saving.
exec > >(trap '' INT TERM USR1; exec tee -a "$log") 2>&1

# Slurm signals every process of a task. COMMAND saves and exits by itself; this shell waits for it. USR1 would kill
# a torchrun agent, which doesn't pass it on: the agent ignores it, and this shell signals its ranks.
trap : TERM
trap '[ "$LAUNCHER" != torchrun ] || pkill -USR1 -P "$command"' USR1
if [ "$LAUNCHER" = torchrun ]; then
  (trap '' USR1; exec "$@") &
else
  "$@" &
fi
command=$!
while kill -0 $command 2>/dev/null; do wait $command; done 2>/dev/null
wait $command 2>/dev/null
code=$?
# 75: stopped early with everything saved. Reported as success, or srun would kill the ranks that are a moment slower.
[ $code != 75 ] || code=0
if [ $code != 0 ]; then
  reason="exited with code $code"
  [ $code -le 128 ] || reason="was killed by signal $((code - 128))"
  echo "rank $SLURM_PROCID on $SLURMD_NODENAME $reason"
  # The first rank to fail is the one to look at; the others fail because of it. noclobber lets one writer in.
  (set -C; echo "$SLURMD_NODENAME $SLURM_PROCID $code" >"$RUN/slurm/failed") 2>/dev/null
fi
exit $code
