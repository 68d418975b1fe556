#!/bin/busybox sh
# The first process of the machine that `cargo xtask test vm` boots: runs the tests that SUITES names, says what it does
# in lines that begin with @@, and switches off.
busybox() { /bin/busybox "$@"; }
busybox mkdir -p /proc /sys /dev /tmp /root /run
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs dev /dev
busybox ln -s /proc/self/fd/1 /dev/stdout
# /tmp stays what it is, in memory like everything here: the sources that came along may lie below it.
busybox mount -t tracefs tracefs /sys/kernel/tracing
busybox ifconfig lo up
# The kernel's own messages come at the end, and not between the lines of the tests.
busybox dmesg -n 1
export PATH=/usr/bin:/bin HOME=/root LANG=C.UTF-8
export HEAPTAP_BIN=/heaptap HEAPTAP_GUESTS=/guests RUST_BACKTRACE=0
# One of the emulator's processors may stand still for a tenth of a second while the other allocates.
export HEAPTAP_RING_BYTES=33554432

# Runs the test binary $name.
run() {
    # A session of its own: there is no terminal whose signals could reach it. Options are words.
    busybox setsid "/tests/$name" --test-threads=1 $options </dev/null 2>&1
    echo "@@ end $name $?"
}

/heaptap doctor 2>&1
echo "@@ doctor $?"
while read -r name options; do
    case ",$SUITES," in *",$name,"*) ;; *) continue ;; esac
    echo "@@ begin $name"
    run | busybox tee /tmp/said
    # An emulated processor may stand still for longer than the ring buffer lasts while the other one goes on: the emulator is a
    # process of a busy machine. heaptap has said so then, and is asked once more.
    if ! busybox grep -q "^@@ end $name 0" /tmp/said && busybox grep -q "counter: ring_full" /tmp/said; then
        echo "@@ again $name"
        run
    fi
done </suites
echo "@@ dmesg"
busybox dmesg
echo "@@ done"
busybox poweroff -f
