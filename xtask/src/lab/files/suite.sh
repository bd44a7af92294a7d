#!/bin/bash
# Runs every test of a program, named on stdin, a process each and a few at a time: suite PROGRAM SECONDS JOBS TRIES
# /run/suite/NAME.said is what a test says; NAME.done, "<exit status> <milliseconds> <tries>", is there once it has ended.
# A test that failed while VirtualBox itself gave up on a VM is tried again: NAME.guru has what VirtualBox wrote then.
export PROGRAM=$1 LIMIT=$2 TRIES=$4
one() {
    begun=$(date +%s%N)
    for try in $(seq "$TRIES"); do
        export TMPDIR=/tmp/suite.$BASHPID.$try
        mkdir "$TMPDIR"
        timeout --kill-after=5 "$LIMIT" "$PROGRAM" --exact "$1" --nocapture >"/run/suite/$1.said" 2>&1 </dev/null &
        gave_up=
        # The test removes VirtualBox's log with its directory, so it is read while it is there.
        while kill -0 $! 2>/dev/null; do
            said=$(grep -rhoE --include='VBox.log*' 'Guru Meditation [0-9]+ \([A-Z0-9_]+\)' "$TMPDIR" 2>/dev/null | head -n 1)
            gave_up=${said:-$gave_up}
            sleep 1
        done
        wait $!
        status=$?
        rm -rf "$TMPDIR"
        [ $status != 0 ] && [ -n "$gave_up" ] || break
        echo "$gave_up" >"/run/suite/$1.guru"
    done
    echo "$status $((($(date +%s%N) - begun) / 1000000)) $try" >"/run/suite/$1.new"
    mv "/run/suite/$1.new" "/run/suite/$1.done"
}
export -f one
exec xargs -P "$3" -I{} bash -c 'one {}'
