#!/bin/busybox sh
# What the lab's kernel runs first: modules for the disks, then the root, then the init of this run.
export PATH=/bin
busybox mount -t devtmpfs dev /dev
while read -r module; do
    busybox insmod "/modules/$module" || echo "vbm-lab: module $module was refused"
done </modules/order

# Disks appear a moment after their driver.
tries=0
until [ -b /dev/vda ] && [ -b /dev/vdb ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] || { echo "vbm-lab: no disks"; busybox poweroff -f; }
    busybox usleep 100000
done
busybox mount -t ext4 -o noatime,noinit_itable /dev/vda /new &&
    busybox mount -t ext4 -o noatime /dev/vdb /new/lab &&
    busybox mount -o move /dev /new/dev &&
    exec busybox switch_root /new /lab/init
echo "vbm-lab: the root could not be entered"
busybox poweroff -f
