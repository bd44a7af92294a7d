#!/bin/bash
# Runs every test of a program, named on stdin, a process each and a few at a time: suite PROGRAM SECONDS JOBS
# /run/suite/NAME.said is what a test says; NAME.done, "<exit status> <milliseconds>", is there once it has ended.
export PROGRAM=$1 LIMIT=$2
one() {
    begun=$(date +%s%N)
    timeout --kill-after=5 "$LIMIT" "$PROGRAM" --exact "$1" --nocapture >"/run/suite/$1.said" 2>&1 </dev/null
    status=$?
    echo "$status $((($(date +%s%N) - begun) / 1000000))" >"/run/suite/$1.new"
    mv "/run/suite/$1.new" "/run/suite/$1.done"
}
export -f one
exec xargs -P "$3" -I{} bash -c 'one {}'
