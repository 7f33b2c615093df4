#!/bin/busybox sh
# First process of the guest under test: says what the kernel found, runs what the command line asks
# for (`ssihv.run=` base64 of a shell script), says its status and powers off; without that, or when
# `ssihv.shell` asks for it too, gives a shell on the console before. Nothing else, so that a boot
# measures the kernel.
export PATH=/bin HOME=/ PS1='guest# '
/bin/busybox mkdir -p /tmp
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs tmp /tmp
cpus=$(grep -c ^processor /proc/cpuinfo)
nodes=$(ls -d /sys/devices/system/node/node* 2>/dev/null | wc -l)
read -r up rest </proc/uptime
echo "ssihv-guest: ready cpus=$cpus nodes=$nodes uptime=$up"
# reboot(8) and poweroff(8) ask process 1 by signal, as busybox documents for its init.
trap 'sync; busybox reboot -f' TERM
trap 'sync; busybox poweroff -f' USR1 USR2
script= shell=
for word in $(cat /proc/cmdline); do
    case $word in
    ssihv.run=*) script=${word#ssihv.run=} ;;
    ssihv.shell) shell=yes ;;
    esac
done
# In the background, because a shell runs its traps only between foreground commands.
if [ -n "$script" ]; then
    echo "$script" | base64 -d >/tmp/run
    sh /tmp/run </dev/null &
    wait $!
    echo "ssihv-guest: exit $?"
fi
if [ -z "$script" ] || [ -n "$shell" ]; then
    # Not by `&`, which makes whatever the shell starts deaf to Ctrl-C: there is no job control yet.
    echo "ssihv-guest: shell"
    mkfifo /tmp/over
    start-stop-daemon -S -b -p /tmp/none -a /bin/sh -- -c 'setsid cttyhack sh; echo >/tmp/over'
    read -r rest </tmp/over &
    wait $!
fi
sync
poweroff -f
