#!/bin/busybox sh
# First process of the emulated KVM host, in its initial RAM file system. It loads what mounting
# needs, puts a memory file system over the machine's own root, and hands over to `xtask`.
B=/bin/busybox
fail() { $B echo "host init: $*"; $B poweroff -f; }
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
for module in $($B cat /mod/order); do
  $B insmod "/mod/$module" || fail "cannot load $module"
done
$B mount -t virtiofs -o ro root /lower || fail "cannot mount the machine's root"
$B mount -t tmpfs -o size=90%,mode=755 layer /layer
$B mkdir /layer/upper /layer/work
$B mount -t overlay -o lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work root /root ||
  fail "cannot mount the overlay"
for name in proc sys dev; do $B mount --move /$name /root/$name; done
cd /root
$B mount -t tmpfs -o size=25%,mode=755 run run
# An overlay cannot be the upper layer of another: stores and scratch lie on plain memory.
for name in var/lib/bulkhead var/lib/containerd var/lib/containers var/lib/docker var/tmp; do
  $B mkdir -p "/layer/plain/$name" $name
  $B mount -o bind "/layer/plain/$name" $name
done
$B chmod 1777 var/tmp
$B mkdir run/lock run/target run/modules
$B mkdir dev/pts dev/shm dev/mqueue dev/net
$B mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts dev/pts
$B mount -t tmpfs -o mode=1777 shm dev/shm
$B mount -t mqueue mqueue dev/mqueue
$B mount -t cgroup2 cgroup2 sys/fs/cgroup || fail "cannot mount cgroup2"
for controller in $($B cat sys/fs/cgroup/cgroup.controllers); do
  $B echo "+$controller" > sys/fs/cgroup/cgroup.subtree_control
done
# The kernel loads the modules behind these when they are first opened.
$B mknod dev/net/tun c 10 200
[ -e dev/loop-control ] || $B mknod dev/loop-control c 10 237
$B ln -s /proc/self/fd dev/fd
$B ln -s /proc/self/fd/0 dev/stdin
$B ln -s /proc/self/fd/1 dev/stdout
$B ln -s /proc/self/fd/2 dev/stderr
$B ifconfig lo 127.0.0.1 up
$B mount -t virtiofs target run/target || fail "cannot mount target/"
$B mount -t virtiofs -o ro modules run/modules || fail "cannot mount the kernel modules"
$B mkdir -p lib/modules
$B mount -o bind run/modules lib/modules
exec $B switch_root /root /run/target/host/xtask host-inside
