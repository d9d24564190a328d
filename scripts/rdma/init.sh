# shellcheck shell=dash
# The VM's first program, from where vm.sh has given it this file: mounts, devices, the command.
#
# Read by busybox's shell, on the first file system, with the modules loaded. /exchange is vm.sh's:
# start and settings to read; up, out, err, status and failed to write. A write there is in vm.sh's
# file when it returns, so once there is a status nothing is under way.

: >/exchange/up
echo "<5>vm: modules are loaded" >/dev/kmsg
memlock_kib=unlimited share='' device=rxe net_end=''
# shellcheck source=/dev/null
. /exchange/settings

# vm.sh ends the VM.
stay() { while :; do sleep 60; done; }

give_up() {
    echo "$*" >/exchange/failed
    stay
}

# A program of the root file system, found there: by its name alone busybox would run its own.
in_root() {
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin chroot /new /usr/bin/env "$@"
}

mount_root() {
    mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 host /host &&
        mount -t tmpfs layer /layer && mkdir /layer/upper /layer/aside &&
        mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/aside root /new &&
        mount -t proc proc /new/proc &&
        mount -t sysfs sys /new/sys &&
        mount -t devtmpfs dev /new/dev &&
        mount -t tmpfs run /new/run &&
        mkdir -p /new/dev/shm /new/dev/pts &&
        mount -t tmpfs shm /new/dev/shm &&
        mount -t devpts pts /new/dev/pts &&
        ln -s /proc/self/fd /dev/fd && ln -s fd/0 /dev/stdin &&
        ln -s fd/1 /dev/stdout && ln -s fd/2 /dev/stderr || return
    if [ -n "$share" ]; then
        mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 share "/new$share"
    fi
}

# What not every run needs.
load_modules() {
    [ -d /exchange/modules ] || return 0
    while read -r module; do insmod "/exchange/modules/$module" || return; done \
        </exchange/modules/order
}

make_devices() {
    hostname vm
    case $net_end,$device in
        ,rxe) make_cable ;;
        ,siw) make_networks ;;
        *) make_end ;;
    esac
}

# The neighbours are known, here and below, since asking for one costs a connection a second.

# The ends of a virtual cable, both in this one network: rxe knows no other. Each end accepts
# packets that claim to come from the other.
make_cable() {
    for name in all default; do echo 1 >"/proc/sys/net/ipv4/conf/$name/accept_local"; done
    in_root ip -batch - <<'END' &&
link set lo up
link add rdma0 address 02:00:00:00:00:01 mtu 4200 type veth peer name rdma1 address 02:00:00:00:00:02 mtu 4200
address add 10.9.0.1/24 dev rdma0
address add 10.9.0.2/24 dev rdma1
link set rdma0 up
link set rdma1 up
neighbour add 10.9.0.2 lladdr 02:00:00:00:00:02 dev rdma0
neighbour add 10.9.0.1 lladdr 02:00:00:00:00:01 dev rdma1
END
        in_root rdma link add rxe0 type rxe netdev rdma0 &&
        in_root rdma link add rxe1 type rxe netdev rdma1
}

# The same cable with its ends in two networks. Both see both devices, and reach their own. siw looks
# once whether its end is up, which it is when both are.
make_networks() {
    in_root ip -batch - <<'END' || return
netns add host0
netns add host1
link add rdma0 netns host0 address 02:00:00:00:00:01 mtu 4200 type veth \
peer name rdma1 netns host1 address 02:00:00:00:00:02 mtu 4200
END
    for end in 0 1; do
        other=$((1 - end))
        in_root ip -n "host$end" -batch - <<END &&
link set lo up
address add 10.9.0.$((end + 1))/24 dev rdma$end
link set rdma$end up
neighbour add 10.9.0.$((other + 1)) lladdr 02:00:00:00:00:0$((other + 1)) dev rdma$end
END
            continue
        return 1
    done
    for end in 0 1; do
        in_root ip netns exec "host$end" rdma link add "siw$end" type siw netdev "rdma$end" || return
    done
}

# One end of a cable that leads out of this VM.
make_end() {
    end=2 other=1
    [ "$net_end" = connect ] || end=1 other=2
    hostname "vm$end"
    old=$(ls /sys/bus/virtio/drivers/virtio_net/virtio*/net) || return
    in_root ip -batch - <<END &&
link set lo up
link set $old name rdma0 mtu 4200
address add 10.9.0.$end/24 dev rdma0
link set rdma0 up
neighbour add 10.9.0.$other lladdr 02:00:00:00:00:0$other dev rdma0
END
        in_root rdma link add "${device}0" type "$device" netdev rdma0
}

# Root with CAP_IPC_LOCK has no limit of locked memory.
start() {
    ulimit -H -n 1048576
    if [ "$memlock_kib" = unlimited ]; then
        ulimit -l unlimited
        in_root bash /run/start
    else
        ulimit -l "$memlock_kib"
        in_root setpriv --bounding-set=-ipc_lock bash /run/start
    fi
}

mount_root || give_up "the root file system could not be mounted"
load_modules || give_up "a module could not be loaded"
make_devices || give_up "the RDMA devices could not be made"
cp /exchange/start /new/run/start

mkfifo /out /err
cat /out >/exchange/out &
out=$!
cat /err >/exchange/err &
err=$!
echo "<5>vm: the command starts" >/dev/kmsg
start </dev/null >/out 2>/err
status=$?
echo "<5>vm: the command has ended" >/dev/kmsg
# What it said must be out; but what it left behind may hold its output open.
tenths=0
while [ $tenths -lt 50 ] && { kill -0 $out || kill -0 $err; } 2>/dev/null; do
    usleep 100000
    tenths=$((tenths + 1))
done
echo $status >/exchange/status.new
mv /exchange/status.new /exchange/status
stay
