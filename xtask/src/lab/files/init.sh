#!/bin/bash
# The lab's init: brings the machine up, then does what it is told over the channel, until nobody listens.
#
#   host -> "<id> <seconds> <shell line>\n"      machine -> "<id> <exit status> <bytes>\n" and that many bytes
export HOME=/root USER=root LOGNAME=root PATH=/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
say() { echo "vbm-lab: $* ($(cut -d' ' -f1 /proc/uptime) s)" >/dev/console; }

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t cgroup2 cgroup /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for place in /dev/shm /run /tmp; do mount -t tmpfs tmpfs "$place"; done
chmod 1777 /tmp /dev/shm

echo vbm-lab >/proc/sys/kernel/hostname
printf '127.0.0.1 localhost\n127.0.1.1 vbm-lab\n' >/etc/hosts
ip link set lo up
# No udev here: it would have made /dev/net/tun, which loads its module when opened.
modprobe -a virtio_net tun
ip address add 10.0.2.15/24 dev eth0 && ip link set eth0 up && ip route add default via 10.0.2.2 ||
    say "no network card"
# Both at once would fight for the processor's virtualisation.
modprobe -a vboxdrv vboxnetflt || say "VirtualBox's modules were refused"

port=
for path in /sys/class/virtio-ports/*; do
    [ "$(cat "$path/name")" = vbm.lab ] && port=/dev/${path##*/}
done
if [ -n "$port" ]; then
    exec 3<>"$port"
    say ready
    echo ready >&3
    while IFS=' ' read -r id seconds line <&3; do
        timeout --kill-after=5 "$seconds" bash -c "$line" >/run/answer 2>&1 </dev/null 3>&-
        status=$?
        echo "$id $status $(stat -c %s /run/answer)" >&3
        cat /run/answer >&3
    done
else
    say "no channel"
fi
say "down"
echo o >/proc/sysrq-trigger
sleep 10
