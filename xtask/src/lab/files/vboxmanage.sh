#!/bin/sh
# VirtualBox's own VBoxManage, out of the lab's folder, on this machine: everything works but running a VM.
#
# It sees Debian sid from ROOT (read-only), this machine's devices and processes, and one directory of this machine
# at the same path: VBM_VBOX_WORK. Settings are in VBOX_USER_HOME, which must be below it (default: WORK/home);
# VirtualBox looks for nothing in HOME: it asks for the home of root, which is that directory in there as well. So
# each such directory has a VirtualBox of its own, with a VBoxSVC of its own, which ends 5 s after its last caller.
set -eu
root=@ROOT@
work=${VBM_VBOX_WORK:-@WORK@}
home=${VBOX_USER_HOME:-$work/home}
case $home/ in
    "$work"/*) ;;
    *) echo "error: VBOX_USER_HOME=$home is not below VBM_VBOX_WORK=$work, so VirtualBox could not see it" >&2; exit 2 ;;
esac
mkdir -p "$home/tmp" "$root$work"
# What is mounted is seen by this process alone, and gone when it ends.
exec unshare --mount --propagation private -- sh -ec '
    root=$1 work=$2 home=$3; shift 3
    mount --bind "$root" "$root"
    for place in dev proc sys; do mount --rbind "/$place" "$root/$place"; done
    mount -t tmpfs -o mode=755 run "$root/run"
    mount --bind "$home/tmp" "$root/tmp"
    mount --bind "$home" "$root/root"
    mount --bind "$work" "$root$work"
    mount -o remount,bind,ro "$root"
    cd "$root"
    exec env -i HOME="$home" VBOX_USER_HOME="$home" USER=root LOGNAME=root LC_ALL=C.UTF-8 \
        PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" /usr/bin/VBoxManage "$@"
' vboxmanage "$root" "$work" "$home" "$@"
