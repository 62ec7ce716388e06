#!/bin/bash
# Requeue a job that has lost the node that runs its script: with --no-kill, Slurm would let it hold its other nodes
# until the time limit. nodes.sh starts this on two of them. Usage: slurm/guard.sh JOB RESTART LOG
set -u
PERIOD=10 # seconds between checks
while sleep $PERIOD; do
  facts=$(scontrol show job "$1") || continue # the controller may be restarting
  fact() { sed -n "s/.*[ (]*\b$1=\([^ ]*\).*/\1/p" <<<"$facts" | head -n 1; }
  [ "$(fact Restarts)" = "$2" ] || exit 0
  case $(fact JobState) in
    RUNNING) ;;
    SIGNALING | SUSPENDED | STOPPED | RESIZING | COMPLETING) continue ;;
    *) exit 0 ;;
  esac
  host=$(fact BatchHost)
  scontrol show hostnames "$(sed -n 's/^ *NodeList=//p' <<<"$facts")" | grep -qx "$host" && continue
  echo "$(date '+%F %T') $1: $host, which ran the job's script, is lost: requeueing (guard on $(hostname))" >>"$3"
  scontrol requeue "$1" && exit 0
done
