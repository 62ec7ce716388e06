#!/bin/bash
# pid 1 of a machine of cluster.sh, inside its namespaces. Usage: machine.sh NAME (ctl, node1, ...)
set -u
name=$1
folder=$CLUSTER_DIR/machines/$name

mount --make-rprivate /
read -r host_pid _ </proc/self/stat # /proc is still the host's
hostname "$name"
mount -t proc proc /proc
mount -t sysfs sysfs /sys # shows this machine's network devices; hides the host's cgroup tree
mount -t tmpfs -o mode=1777 shm /dev/shm
mkdir -p "$folder/spool"
mount --bind "$CLUSTER_DIR/etc/slurm" /etc/slurm
for file in hosts resolv.conf nsswitch.conf; do mount --bind "$CLUSTER_DIR/etc/$file" "$(readlink -f /etc/$file)"; done
mount -t tmpfs -o mode=755 run /run
mkdir /run/munge
ip link set lo up
echo "$host_pid $(readlink /proc/self/ns/pid)" >"$folder/pid.tmp"
mv "$folder/pid.tmp" "$folder/pid"
until [ -e "$folder/network-is-up" ]; do sleep 0.02; done

munged -F --key-file="$CLUSTER_DIR/munge.key" --socket=/run/munge/munge.socket.2 --pid-file=/run/munge/pid \
  --log-file=/dev/null --seed-file=/run/munge/seed >"$folder/munged.log" 2>&1 &
for _ in $(seq 200); do [ -S /run/munge/munge.socket.2 ] && break; sleep 0.02; done
# Sessions of their own: a ^C for the tests must not reach the daemons
if [ "$name" = ctl ]; then
  setsid slurmctld -D -i >"$folder/slurmctld.log" 2>&1 </dev/null &
else
  ulimit -l unlimited
  setsid slurmd -D -d "$(dirname "$0")/slurmstepd" >"$folder/slurmd.log" 2>&1 </dev/null &
fi
daemon=$!
trap 'kill -TERM $daemon; for _ in $(seq 30); do kill -0 $daemon || exit 0; sleep 0.05; done; exit 0' TERM 2>/dev/null
while :; do sleep 3600 & wait $!; done # bash as pid 1 also reaps orphans
