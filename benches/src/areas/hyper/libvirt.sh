#!/bin/bash
# libvirt's daemon in namespaces of its own: mounts (its folders are empty ones below $1) and processes (whatever it starts
# ends with this script, whose death the kernel makes everybody's). Told on standard input: start, stop.
# As the first process of its namespace it is the parent of all orphans: bash takes them in, sh does not.
set -eu
dir=$1
mount --make-rprivate /
for folder in /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do
    mkdir -p "$folder" "$dir$folder"
    mount --bind "$dir$folder" "$folder"
done
mkdir -p "$dir/run" "$dir/socket"
# Its users come with a package that also starts services; here they are told to the daemon alone.
{ cat /etc/passwd; echo 'libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin'; } >"$dir/passwd"
{ cat /etc/group; echo 'libvirt-qemu:x:64055:'; echo 'kvm:x:64056:'; } >"$dir/group"
mount --bind "$dir/passwd" /etc/passwd
mount --bind "$dir/group" /etc/group
mount --bind "$dir/run" /run
mkdir -p /etc/libvirt/qemu /run/libvirt
cat >/etc/libvirt/qemu.conf <<'CONF'
security_driver = "none"
user = "root"
group = "root"
cgroup_controllers = [ ]
namespaces = [ ]
remember_owner = 0
stdio_handler = "file"
CONF
cat >/etc/libvirt/libvirtd.conf <<CONF
unix_sock_dir = "$dir/socket"
auth_unix_rw = "none"
CONF
daemon=
while read -r word; do
    case $word in
    start)
        /usr/sbin/libvirtd 2>"$dir/libvirtd.log" &
        daemon=$!
        echo started
        ;;
    stop)
        kill "$daemon"
        wait "$daemon" || true
        echo stopped
        ;;
    esac
done
