# Process 1 of an emulated host after boot: sets up the network, then takes orders from the lab over
# a virtio-serial port, one per line: `run ID` starts /out/.lab/ID.sh, `kill ID` ends it. It answers
# `ready` once and `exit ID STATUS` per job. Output goes to /out/.lab/ID.log. `run ID input` gives
# the job a second port as stdin, from the byte after a line with its ID.
# When the lab goes away the port closes and the host powers itself off.
busybox() { /run/lab/busybox "$@"; }
stage() { read -r up rest </proc/uptime; echo "lab: $up s: $1"; }
argument() {
    for word in $(busybox cat /proc/cmdline); do
        case $word in "lab.$1="*) echo "${word#*=}" ;; esac
    done
}

export LABNODE="$(argument node)" LABHOSTS="$(argument hosts)"
export HOME=/root TERM=dumb LANG=C.UTF-8
# Last on the path: busybox for what this machine does not have (ping, modprobe).
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/lab/bin
/run/lab/busybox mkdir /run/lab/bin
/run/lab/busybox --install -s /run/lab/bin
checkout="$(argument checkout)"
busybox hostname "lab$LABNODE"
busybox ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    busybox ip link set eth0 mtu 9000 up
    busybox ip addr add "10.9.0.$LABNODE/24" dev eth0
    # Acknowledge at once on the segment: a held-back ACK costs a small message 40 ms.
    # (Named by its path: this shell would take busybox's own ip, which knows no quickack.)
    for ip in /usr/sbin/ip /sbin/ip /usr/bin/ip /bin/ip; do
        [ -x $ip ] || continue
        $ip route change 10.9.0.0/24 dev eth0 src "10.9.0.$LABNODE" quickack 1 && break
    done
fi
# The emulated host's own modules, so that modprobe works in it; the machine's belong to its kernel.
modules="$(argument modules)"
[ -d /lib/modules ] || busybox mkdir -p /lib/modules
[ -n "$modules" ] && busybox mount -o bind "$modules" /lib/modules
echo 1 >/proc/sys/vm/unprivileged_userfaultfd

for entry in /sys/class/virtio-ports/*; do
    read -r name <"$entry/name"
    case $name in
    ssihv.lab) exec 3<>"/dev/${entry##*/}" ;;
    ssihv.input) input_port="/dev/${entry##*/}" ;;
    esac
done
# The lab connects a moment after boot or long before it; only an end of file after its first word
# means that it is gone.
heard=
job() {
    line=
    # Reads by the byte, so what follows is the job's. No line yet: the lab is about to connect.
    [ -n "$2" ] && until [ "$line" = "$1" ]; do read -r line || busybox sleep 0.1; done
    # Own session: `kill` reaches everything the job started in it.
    exec /run/lab/busybox setsid /bin/bash "/out/.lab/$1.sh"
}
start() {
    cd "$checkout" || cd /
    stdin=/dev/null
    [ "$2" = input ] && stdin=$input_port
    job "$@" >"/out/.lab/$1.log" 2>&1 <"$stdin" 3>&- &
    child=$!
    echo "$child" >"/run/lab/$1.pid"
    wait "$child"
    echo "exit $1 $?" >&3
}
stage "ready"
echo ready >&3
orders() {
    while :; do
        if ! read -r verb id input <&3; then
            [ -n "$heard" ] && return
            busybox sleep 0.1
            continue
        fi
        heard=1
        case $verb in
        run) start "$id" "$input" & ;;
        kill)
            until [ -s "/run/lab/$id.pid" ]; do busybox sleep 0.1; done
            # Before it has its session, a job is one process.
            read -r group <"/run/lab/$id.pid"
            kill -KILL "-$group" || kill -KILL "$group"
            ;;
        off) return ;;
        esac
    done
}
# In the background, because process 1 has to collect whatever loses its parent: `wait` does.
orders &
wait $!
busybox sync
busybox poweroff -f
