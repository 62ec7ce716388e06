#!/bin/bash
# A real Slurm cluster of several machines on one Linux host, for tests. Needs root and the Debian packages slurm-wlm,
# munge and iproute2. Each "machine" is a tree of processes in network, UTS, PID, mount and IPC namespaces of its own
# (machine.sh is its pid 1), with its own address, host name, munged and slurmd. All share the host's file system.
# Nothing is made in the host's own network namespace, /etc or /run.
#
#   cluster.sh start [N]          controller and login machine "ctl", and node1 to nodeN (2); returns when all are idle
#   cluster.sh exec COMMAND...    run COMMAND on ctl (sbatch, squeue, ...)
#   cluster.sh on NODE COMMAND... run COMMAND on a node
#   cluster.sh crash NODE         power loss: its network goes first, then every process at once
#   cluster.sh boot NODE          power on again
#   cluster.sh kill-slurmd NODE   SIGKILL for slurmd alone: the tasks live on
#   cluster.sh start-slurmd NODE  slurmd again
#   cluster.sh unplug NODE        cut its network: the tasks live on
#   cluster.sh plug NODE          mend its network
#   cluster.sh status             which machines are up
#   cluster.sh stop               end everything
#
# Environment: CLUSTER_DIR (where its files are; required), CLUSTER_GPUS (8, fake), CLUSTER_CPUS (96, fake) a node.
set -u
HERE=$(dirname "$(readlink -f "$0")")
export CLUSTER_DIR=${CLUSTER_DIR:?name a folder for the files of the cluster}
GPUS=${CLUSTER_GPUS:-8}
CPUS=${CLUSTER_CPUS:-96}
NET=10.213.77 # lives in ctl's namespace alone, so that several clusters don't meet

die() { echo "cluster.sh: $*" >&2; exit 1; }

address() { [ "$1" = ctl ] && echo "$NET.1" || echo "$NET.$((10 + ${1#node}))"; }

machines() { ls "$CLUSTER_DIR/machines" 2>/dev/null; }

pid_of() { # MACHINE: the host's pid of its pid 1, if it is still the process that we started (pids are reused)
  local pid namespace
  [ -r "$CLUSTER_DIR/machines/$1/pid" ] || return 1
  read -r pid namespace <"$CLUSTER_DIR/machines/$1/pid"
  [ "$(readlink "/proc/$pid/ns/pid" 2>/dev/null)" = "$namespace" ] && echo "$pid"
}

inside() { # MACHINE COMMAND...: does not return
  local pid
  pid=$(pid_of "$1") || die "$1 is not running"
  exec nsenter -t "$pid" -n -u -p -m -i --wd="$PWD" -- "${@:2}"
}

wait_until() { # SECONDS COMMAND...
  local tries=$(($1 * 20))
  shift
  until "$@"; do
    ((tries-- > 0)) || return 1
    sleep 0.05
  done
}

boot() { # MACHINE
  local name=$1 folder=$CLUSTER_DIR/machines/$1 pid ctl
  pid_of "$name" >/dev/null && die "$name runs already"
  mkdir -p "$folder"
  rm -f "$folder/pid" "$folder/network-is-up"
  setsid unshare --net --uts --mount --ipc --pid --fork --kill-child=KILL \
    bash "$HERE/machine.sh" "$name" </dev/null >"$folder/machine.log" 2>&1 &
  wait_until 60 test -e "$folder/pid"
  pid=$(pid_of "$name") || die "$name did not come up: $(cat "$folder/machine.log")"
  if [ "$name" = ctl ]; then # ctl holds the switch
    nsenter -t "$pid" -n sh -c "ip link add br0 type bridge && ip addr add $(address ctl)/24 dev br0 && ip link set br0 up"
  else # a cable from the switch to the node
    ctl=$(pid_of ctl) || die "ctl is not running"
    nsenter -t "$ctl" -n ip link del "v-$name" 2>/dev/null # of a node that crashed: it vanishes late
    # always with the same hardware address, as a machine has: others keep the one they know for half a minute
    ip link add "v-$name" netns "$ctl" type veth peer name eth0 address "$(printf 02:00:00:00:00:%02x "${name#node}")" \
      netns "$pid" || die "no cable for $name"
    nsenter -t "$pid" -n sh -c "ip addr add $(address "$name")/24 dev eth0 && ip link set eth0 up &&
      ip route add default via $(address ctl)"
    nsenter -t "$ctl" -n ip link set "v-$name" master br0 up
  fi
  : >"$folder/network-is-up"
}

cable() { nsenter -t "$(pid_of ctl)" -n ip link set "v-$1" "$2"; } # NODE up|down

configure() { # NODES
  local node gpu
  mkdir -p "$CLUSTER_DIR"/{etc/slurm,machines,state,dev,log}
  chmod 755 "$CLUSTER_DIR"
  (umask 077 && head -c 1024 /dev/urandom >"$CLUSTER_DIR/munge.key")
  {
    echo "127.0.0.1 localhost"
    for node in ctl $(seq -f "node%g" "$1"); do echo "$(address "$node") $node"; done
  } >"$CLUSTER_DIR/etc/hosts"
  # Names come from /etc/hosts alone: gloo looks addresses up in reverse, 10 s each where no name server answers
  : >"$CLUSTER_DIR/etc/resolv.conf"
  echo "hosts: files" >"$CLUSTER_DIR/etc/nsswitch.conf"
  grep -v '^hosts:' /etc/nsswitch.conf >>"$CLUSTER_DIR/etc/nsswitch.conf" 2>/dev/null
  # Fake GPUs. gres.conf needs File=: with Count= alone Slurm 22.05 calls the node invalid. 1,3 is /dev/null
  for ((gpu = 0; gpu < GPUS; gpu++)); do mknod -m 666 "$CLUSTER_DIR/dev/nvidia$gpu" c 1 3; done
  echo "NodeName=node[1-$1] Name=gpu File=$CLUSTER_DIR/dev/nvidia[0-$((GPUS - 1))]" >"$CLUSTER_DIR/etc/slurm/gres.conf"
  # slurmd always loads a cgroup plugin and finds none without a cgroup tree; v1 stays idle with linuxproc + task/none
  echo "CgroupPlugin=cgroup/v1" >"$CLUSTER_DIR/etc/slurm/cgroup.conf"
  # Job ids differ from one cluster to the next, or files named by them would collide; six digits are no other number
  sed -e "s|@DIR@|$CLUSTER_DIR|g; s|@NODES@|$1|g; s|@CPUS@|$CPUS|g; s|@GPUS@|$GPUS|g; s|@CTL@|$(address ctl)|g" \
    -e "s|@FIRST_JOB@|$(($(date +%s) % 800000 + 100000))|g" "$HERE/slurm.conf" >"$CLUSTER_DIR/etc/slurm/slurm.conf"
}

all_idle() { [ "$(inside_quietly ctl sinfo -h -N -p batch -t idle -o %N | grep -c .)" = "$1" ]; }
inside_quietly() { (inside "$@" 2>/dev/null); }

start() { # NODES
  local machine
  for machine in $(machines); do pid_of "$machine" >/dev/null && die "it runs already: cluster.sh stop ends it"; done
  rm -rf "$CLUSTER_DIR"
  configure "$1"
  for machine in ctl $(seq -f "node%g" "$1"); do boot "$machine"; done
  if ! wait_until 120 all_idle "$1"; then
    inside_quietly ctl sinfo -N -l
    tail -n 20 "$CLUSTER_DIR"/log/*.log
    die "the nodes did not become idle"
  fi
}

none_alive() {
  local machine
  for machine in $(machines); do pid_of "$machine" >/dev/null && return 1; done
  return 0
}

signal_all() { # SIGNAL
  local machine pid
  for machine in $(machines); do pid=$(pid_of "$machine") && kill -s "$1" "$pid"; done
}

stop() { # gently, then by force: the kernel ends every process of a machine with its pid 1
  signal_all TERM
  wait_until 2 none_alive && return
  signal_all KILL
  wait_until 60 none_alive || die "machines are still alive"
}

command=${1:-help}
[ $# = 0 ] || shift
case $command in
  start) start "${1:-2}" ;;
  stop) stop ;;
  exec) inside ctl "$@" ;;
  on) inside "$@" ;;
  crash)
    pid=$(pid_of "$1") || die "$1 is not running"
    cable "$1" down
    kill -KILL "$pid"
    ;;
  boot) boot "$1" ;;
  kill-slurmd) inside "$1" pkill -KILL -x slurmd ;;
  start-slurmd) inside "$1" sh -c "setsid slurmd -D -d $HERE/slurmstepd >>$CLUSTER_DIR/machines/$1/slurmd.log 2>&1 </dev/null &" ;;
  unplug) cable "$1" down ;;
  plug) cable "$1" up ;;
  status) for machine in $(machines); do pid_of "$machine" >/dev/null && echo "$machine up" || echo "$machine down"; done ;;
  *)
    sed -n '2,/^set -u/{s/^# \{0,1\}//;/^set -u/!p}' "$0"
    exit 2
    ;;
esac
