#!/bin/bash
# Runs every test of a program, named on stdin, a process each and a few at a time: suite PROGRAM SECONDS JOBS TRIES
# /run/suite/NAME.said is what a test says; NAME.done, "<exit status> <milliseconds> <tries>", is there once it has ended.
# A test whose VM VirtualBox itself gave up on is ended and tried again, and so is one whose guest never said a word: NAME.again says
# why. When VirtualBox gave up at the last try, the exit status is 75; a guest that is silent at the last try is a failure.
export PROGRAM=$1 LIMIT=$2 TRIES=$4
# Ends the VirtualBox of a test that was ended: it knows the test's directory by its environment.
end_virtualbox() {
    for pid in $(pgrep 'VBox'); do
        tr '\0' '\n' <"/proc/$pid/environ" 2>/dev/null | grep -q "^VBOX_USER_HOME=$1/" && kill -9 "$pid"
    done
}
one() {
    begun=$(date +%s%N)
    for try in $(seq "$TRIES"); do
        export TMPDIR=/tmp/suite.$BASHPID.$try
        mkdir "$TMPDIR"
        timeout --kill-after=5 "$LIMIT" "$PROGRAM" --exact "$1" --nocapture >"/run/suite/$1.said" 2>&1 </dev/null &
        gave_up=
        # The test removes VirtualBox's log with its directory, so it is read while it is there.
        while kill -0 $! 2>/dev/null; do
            gave_up=$(grep -rhoE --include='VBox.log*' 'Guru Meditation [0-9]+ \([A-Z0-9_]+\)' "$TMPDIR" 2>/dev/null | head -n 1)
            [ -n "$gave_up" ] && kill $! && break
            sleep 1
        done
        wait $!
        status=$?
        end_virtualbox "$TMPDIR"
        rm -rf "$TMPDIR"
        if [ -n "$gave_up" ]; then
            echo "VirtualBox itself gave up on its VM: $gave_up" >"/run/suite/$1.again"
            status=75
        elif [ $status != 0 ] && grep -q ' did not come, but: $' "/run/suite/$1.said"; then
            echo "its guest said nothing" >"/run/suite/$1.again"
        else
            break
        fi
    done
    echo "$status $((($(date +%s%N) - begun) / 1000000)) $try" >"/run/suite/$1.new"
    mv "/run/suite/$1.new" "/run/suite/$1.done"
}
export -f one end_virtualbox
exec xargs -P "$3" -I{} bash -c 'one {}'
