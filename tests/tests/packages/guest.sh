#!/bin/busybox sh
# The first process of a guest with another kernel: has the agent protect a file system,
# tries what that kernel does differently, and says on the console what came of it, in
# lines of RESULT and STATUS. Whatever fails is a result; it always comes to its end.
PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
dmesg -n 1
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci \
    failover net_failover virtio_net overlay; do
    insmod /modules/$module.ko
done
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0

say() { echo "RESULT $*"; }
agent() { /bin/palisade-agent --site /site "$@"; }
status() { agent status -o json | tr -d '\n'; }
# tries NAME FILE: whether it can be read.
tries() { if cat "$2" >/dev/null 2>&1; then say "$1" read; else say "$1" denied; fi; }
# waits SECONDS COMMAND…: until it is so, or the time is over.
waits() {
    left=$1
    shift
    while [ "$left" -gt 0 ]; do
        if "$@"; then return 0; fi
        left=$((left - 1))
        sleep 1
    done
    return 1
}
blocks() { status | grep -q '"state":"blocking"'; }

say kernel "$(uname -r)"
mkdir -p /home /mnt /run /tmp
mount -t tmpfs tmpfs /home
agent supervise >/tmp/log 2>&1 &
if waits 180 blocks; then
    say protection blocking
else
    say protection off
    sed 's/^/LOG /' /tmp/log
    poweroff -f
fi

cp /malware /home/bad
echo good >/home/good
tries malware /home/bad
tries clean /home/good
cat /bin/busybox /malware >/home/false
cp /bin/busybox /home/true
chmod 755 /home/false /home/true
if /home/true; then say clean-program ran; else say clean-program denied; fi
/home/false 2>/dev/null
case $? in 126) say bad-program denied ;; *) say bad-program ran ;; esac

# A device on a protected file system: its opens are events on older kernels.
mknod /home/null c 1 3
if timeout 60 cat /home/null; then say device read; else say device stuck; fi
tries malware-beside-a-device /home/bad

# An overlay whose layers are protected, below a protected path.
mkdir /home/lower /home/upper /home/work /home/merged
cp /malware /home/lower/bad
echo good >/home/lower/good
mount -t overlay overlay -o lowerdir=/home/lower,upperdir=/home/upper,workdir=/home/work /home/merged
sleep 12
tries overlay /home/merged/bad
tries overlay-clean /home/merged/good
tries overlays-layer /home/lower/bad

# A file system of another mount namespace alone.
unshare -m sh -c 'mount -t tmpfs none /mnt && cp /malware /mnt/bad && echo good >/mnt/good &&
    sleep 15 && { cat /mnt/bad >/dev/null 2>&1 && echo RESULT namespace read ||
    echo RESULT namespace denied; } && cat /mnt/good >/dev/null && echo RESULT namespace-clean read'

n=0
while [ $n -lt 200 ]; do
    n=$((n + 1))
    echo "file $n" >/home/f$n
    cat /home/f$n >/dev/null || say many denied
done
say many "$n"
echo "STATUS $(status)"

# An agent that stands still lets nobody wait for ever, and comes back.
pid=$(status | sed 's/.*"pid":\([0-9]*\).*/\1/')
echo new >/home/new
kill -STOP "$pid"
from=$(date +%s)
cat /home/new >/dev/null
say stalled-for $(($(date +%s) - from))
if waits 90 blocks; then say protection-again blocking; else say protection-again off; fi
cp /malware /home/bad-again
tries malware-again /home/bad-again
tail -n 5 /tmp/log | sed 's/^/LOG /'
say end 0
poweroff -f
