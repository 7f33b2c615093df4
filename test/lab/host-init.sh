#!/bin/busybox sh
# First process of an emulated host, inside its initramfs: loads the modules the host needs, mounts
# the machine's root (9p, read-only) under a tmpfs overlay and hands over to the agent there.
# Every failure is said on the serial console; the lab quotes its last lines.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
stage() { read -r up rest </proc/uptime; echo "lab: $up s: $1"; }
stage "kernel up"
for file in /modules/*; do
    options=
    case $file in
    # Without these two a nested guest of ours sees features the emulated SVM gets wrong.
    *-kvm-amd.ko) options="vgif=0 vls=0" ;;
    esac
    insmod "$file" $options || echo "lab: cannot load $file"
done
stage "modules loaded"
nine() {
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,$3" "$1" "$2" ||
        echo "lab: cannot mount $1"
}
nine root /lower ro,cache=loose
mount -t tmpfs -o mode=0755 upper /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work root /root ||
    echo "lab: cannot mount the overlay"
for name in proc sys dev; do mount --move /$name /root/$name; done
mkdir -p /root/out /root/dev/shm /root/dev/pts
mount -t tmpfs -o mode=1777 shm /root/dev/shm
mount -t tmpfs -o mode=0755 run /root/run
mount -t devpts -o mode=0620,ptmxmode=0666 pts /root/dev/pts
nine out /root/out cache=mmap
mkdir /root/run/lab
cp /bin/busybox /agent /root/run/lab/
echo "lab: root mounted"
exec switch_root /root /run/lab/busybox sh /run/lab/agent
