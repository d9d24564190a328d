#!/usr/bin/env bash
# Runs a command in a throw-away virtual machine that has two RDMA devices; this machine needs none.
#
#   scripts/rdma/vm.sh [OPTION...] [--] COMMAND [ARGUMENT...]
#
#   --limit SECONDS   end it after so long, start included (300); the status is then 124
#   --memory MIB      the VM's memory (1024)
#   --cpus N          its processors (2)
#   --cpu MODEL       their kind, by QEMU's name; max has AVX2
#   --memlock KIB     limit of locked memory, and no CAP_IPC_LOCK, which knows none
#   --share FOLDER    what the command writes there stays
#   --package NAME    a Debian package that the command needs; may be given several times
#   --siw             software iWARP in place of RoCE: siw0 and siw1
#   --net END:SOCKET  the cable leads to another VM; END is listen in the one that is started first,
#                     connect in the other
#   --pid FILE        where QEMU's process is written
#   --verbose         the kernel's messages, and what the package client says, on standard error
#   --help            this
#
# The VM runs a kernel of Debian under QEMU. Its root is this machine's, read-only, below a layer in
# memory: programs, libraries, working directory and environment are the caller's, and what the
# command writes is gone afterwards. Only /dev, /proc, /run and /sys are the VM's own. The command
# is root, without input; its output, errors and exit status are passed on. Status 125 and one line
# on standard error: no VM could be had, or it died.
#
# rxe0 is 10.9.0.1 on rdma0 and rxe1 is 10.9.0.2 on rdma1: software RoCE v2 on the ends of a virtual
# cable. The GID of an IPv4 address has index 1. What goes from one device to the other crosses the
# cable, so `ip link set rdma1 down` and `tc qdisc add dev rdma0 root netem loss 1%` are its faults.
# siw0 and siw1 have the same addresses, each in a network of its own, host0 and host1: in one their
# TCP would not use the cable. With --net there is one device, rxe0 or siw0 on rdma0; 10.9.0.1 is
# the VM that listens.
#
# Needs Debian on x86-64. Packages that are missing are installed where this is root. The kernel is
# downloaded once and unpacked to unisono-rdma-vm in $XDG_CACHE_HOME (~/.cache), never installed;
# without that folder the newest one is fetched. Debian does not build siw: it is built once, with
# Debian's source and headers of that very kernel, and kept there too.
set -uo pipefail

# Part of the cache's name: what was unpacked otherwise is not used.
format=2
cache=${XDG_CACHE_HOME:-${HOME:-}/.cache}/unisono-rdma-vm
packages=(qemu-system-x86 iproute2 ibverbs-providers librdmacm1 xz-utils)
# With all that they depend on. rxe asks for its checksum by name, which no dependency tells.
modules=(virtio_pci 9pnet_virtio 9p overlay veth sch_netem crc32_generic rdma_ucm rdma_rxe)
# For --net and --siw, loaded with these alone.
more_modules=(virtio_net crc32c_generic libcrc32c)
# More than a start takes on a machine that does other things; KVM that takes longer is none.
tcg_start_s=180 kvm_start_s=20

no_vm() {
    echo "vm.sh: $*" >&2
    exit 125
}

usage() { sed -n '/^#   /s/^#   //p' "$0"; }

limit_s=300 memory_mib=1024 cpus=2 cpu='' memlock_kib=unlimited share='' verbose=''
device=rxe net_end='' net_socket='' pid_file=''
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help)
            usage
            exit
            ;;
        --verbose) verbose=1 ;;
        --siw) device=siw ;;
        --)
            shift
            break
            ;;
        --limit | --memory | --cpus | --cpu | --memlock | --share | --package | --net | --pid)
            [ $# -gt 1 ] || no_vm "$1 needs a value"
            case $1 in
                --limit | --memory | --cpus | --memlock)
                    [[ $2 =~ ^[1-9][0-9]{0,8}$ ]] || no_vm "$1: \"$2\" is no number"
                    ;;&
                --limit) limit_s=$2 ;;
                --memory) memory_mib=$2 ;;
                --cpus) cpus=$2 ;;
                --memlock) memlock_kib=$2 ;;
                --cpu) cpu=$2 ;;
                --share) share=$(realpath -e -- "$2" 2>/dev/null) || no_vm "there is no $2" ;;
                --package) packages+=("$2") ;;
                --pid) pid_file=$2 ;;
                --net)
                    net_end=${2%%:*} net_socket=${2#*:}
                    [[ $2 =~ ^(listen|connect):. ]] || no_vm "--net: \"$2\" is no end of a cable"
                    ;;
            esac
            shift
            ;;
        -*) no_vm "$1 is not known (see --help)" ;;
        *) break ;;
    esac
    shift
done
[ $# -gt 0 ] || no_vm "no command (see --help)"
[ "$memory_mib" -ge 256 ] || no_vm "--memory: the VM does not start with less than 256 MiB"
[ -z "$share" ] || [ -d "$share" ] || no_vm "$share is no folder"
[ -n "${XDG_CACHE_HOME:-${HOME:-}}" ] || no_vm "neither HOME nor XDG_CACHE_HOME is set"
here=$(cd -- "$(dirname -- "$0")" && pwd) || exit 125

# ---- what ends with this script, however it ends ------------------------------------------------

folder='' unpacked='' vm='' others=()

# shellcheck disable=SC2317 # a trap runs it
clean_up() {
    trap '' HUP INT TERM
    stop_vm
    local pid
    for pid in "${others[@]}"; do kill "$pid" 2>/dev/null; done
    rm -rf -- ${folder:+"$folder"} ${unpacked:+"$unpacked"}
}

is_running() { kill -0 "$1" 2>/dev/null; }

stop_vm() {
    [ -n "$vm" ] || return 0
    kill "$vm" 2>/dev/null
    local tenths=50
    while is_running "$vm" && [ $((tenths--)) -gt 0 ]; do sleep 0.1; done
    kill -KILL "$vm" 2>/dev/null
    wait "$vm" 2>/dev/null
    vm=''
}

trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# ---- packages -----------------------------------------------------------------------------------

# What the package client says matters only to whoever asked for everything.
quietly() { if [ -n "$verbose" ]; then "$@" >&2; else "$@" >/dev/null 2>&1; fi; }

# The same, ended by a signal at once: what it leaves is ours and is removed.
quietly_for_now() {
    quietly "$@" &
    others+=($!)
    wait $!
}

is_root() { [ "$(id -u)" -eq 0 ]; }

is_installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

install_packages() {
    local missing=() name
    for name in "${packages[@]}"; do is_installed "$name" || missing+=("$name"); done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || no_vm "this is no Debian, so it lacks ${missing[*]}"
    is_root || no_vm "missing: apt-get install --no-install-recommends ${missing[*]}"
    local install=(env DEBIAN_FRONTEND=noninteractive
        apt-get install -q -y --no-install-recommends "${missing[@]}")
    quietly "${install[@]}" || { quietly apt-get update -q && quietly "${install[@]}"; } ||
        no_vm "could not be installed: ${missing[*]}"
}

# Downloads packages to the working directory and unpacks them below `root`.
unpack() {
    local archive
    # The folder is the caller's alone: apt's own user could not write there.
    local download=(apt-get -q -o APT::Sandbox::User=root download "$@")
    quietly_for_now "${download[@]}" ||
        { is_root && quietly_for_now apt-get update -q && quietly_for_now "${download[@]}"; } ||
        return
    for archive in ./*.deb; do quietly_for_now dpkg-deb --extract "$archive" root || return; done
}

# ---- the kernel and the first file system: made once --------------------------------------------

# Sets `boot` to the newest kernel of the cache. False where there is none, or not the whole of it.
find_kernel() {
    boot=$(printf '%s\n' "$cache/$format"/*/ | sort -V | tail -n 1)
    boot=${boot%/}
    (cd -- "$boot" 2>/dev/null && sha256sum --check --status sums 2>/dev/null)
}

kernel_package() {
    apt-cache depends linux-image-amd64 2>/dev/null | awk '$1 == "Depends:" { print $2; exit }'
}

number_at() { od -A n -t "u$3" -j "$2" -N "$3" "$1" | tr -d ' '; }

# The kernel inside an image that unpacks itself, which takes seconds under emulation. The head of
# the image says where it is (Linux x86 boot protocol), its last word how long it is unpacked.
unpack_kernel() {
    local image=$1 out=$2 setup at bytes size
    setup=$(number_at "$image" 497 1)
    bytes=$(number_at "$image" 588 4)
    at=$(((setup + 1) * 512 + $(number_at "$image" 584 4)))
    size=$(number_at "$image" $((at + bytes - 4)) 4)
    tail -c +$((at + 1)) "$image" | head -c $((bytes - 4)) | xz -dc >"$out" 2>/dev/null
    [ "$(stat -c %s "$out")" = "$size" ] || cp -- "$image" "$out"
}

# Adds a module to a folder, behind those that it needs, unless the first file system has it. Files
# may have dashes where names have underscores.
add_module() {
    local name=$1 folder=$2 pattern=${1//_/[-_]} out=$2/$1.ko file need
    [ ! -e "$out" ] && [ ! -e "tree/modules/$name.ko" ] || return 0
    file=$(find root -name "$pattern.ko*" -print -quit)
    case $file in
        *.ko) cp -- "$file" "$out" || return ;;
        *.ko.xz) xz -dc "$file" >"$out" || return ;;
        *)
            grep -qs "/$pattern\.ko$" root/lib/modules/*/modules.builtin && return
            no_vm "$kernel has no module $name"
            ;;
    esac
    for need in $(tr '\0' '\n' <"$out" | sed -n 's/^depends=//p' | tr , ' '); do
        add_module "$need" "$folder" || return
    done
    echo "$name.ko" >>"$folder/order"
}

# What the kernel starts: loads the modules and goes on with what this run has for it.
write_first_program() {
    cat >tree/init <<'END'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module"; done </modules/order
mount -t 9p -o trans=virtio,version=9p2000.L exchange /exchange && . /exchange/init.sh
END
    chmod 755 tree/init
}

# From packages that are not installed, in the working directory, to `made`.
make_kernel() {
    local busybox module
    unpack "$kernel" busybox-static || no_vm "$kernel and busybox-static could not be downloaded"
    mkdir -p made/modules tree/{bin,modules,proc,sys,dev,exchange,host,layer,new} || return
    unpack_kernel "root/boot/vmlinuz-${kernel#linux-image-}" made/kernel || return
    busybox=$(find root -path '*/bin/busybox' -print -quit)
    cp -- "$busybox" tree/bin && write_first_program || return
    for module in "${modules[@]}"; do add_module "$module" tree/modules || return; done
    for module in "${more_modules[@]}"; do
        # Newer kernels have some of these in others: whoever needs them learns of it at the start.
        [ -z "$(find root -name "${module//_/[-_]}.ko*" -print -quit)" ] ||
            add_module "$module" made/modules || return
    done
    touch made/modules/order
    (cd tree && find . | ./bin/busybox cpio -o -H newc 2>/dev/null) >made/initramfs || return
    (cd made && sha256sum kernel initramfs modules/* >sums)
}

fetch_kernel() {
    local version
    kernel=$(kernel_package)
    if [ -z "$kernel" ] && is_root; then
        quietly_for_now apt-get update -q
        kernel=$(kernel_package)
    fi
    [ -n "$kernel" ] || no_vm "no package linux-image-amd64 is known; apt-get update may help"
    enter_new_folder || return
    make_kernel || no_vm "$kernel could not be unpacked"
    version=$(dpkg-deb --field "./${kernel}"_*.deb Version) || return
    popd >/dev/null || return
    # Not there before it is whole.
    boot=$cache/$format/${kernel}_$version
    mkdir -p -- "$cache/$format" && rm -rf -- "$boot" && mv -T -- "$unpacked/made" "$boot" || return
    rm -rf -- "$unpacked"
    unpacked=''
}

# Whoever has the lock is alone, so what one that was killed has left goes.
enter_new_folder() {
    rm -rf -- "$cache"/new.*
    unpacked=$(mktemp -d "$cache/new.XXXXXX") || no_vm "cannot write to $cache"
    pushd "$unpacked" >/dev/null || return
}

# ---- siw: built once for that kernel ------------------------------------------------------------

find_siw() { (cd -- "$boot/siw" 2>/dev/null && sha256sum --check --status sums 2>/dev/null); }

# What a package of headers needs: more of this version, and the newest of the tools.
headers_needed() {
    apt-cache show "$1=$2" 2>/dev/null | sed -n 's/^Depends: //p' | head -n 1 |
        grep -oE 'linux-(headers|kbuild)-[^ ,]+' | sed "/^linux-headers/s/$/=$2/"
}

# In the working directory, to `made`. False where the packages of this kernel are not to be had.
make_siw() {
    local name=${boot##*/} release version series headers needed compiler
    version=${name##*_} release=${name%_*} release=${release#linux-image-}
    series=$(cut -d . -f 1,2 <<<"$release") headers=linux-headers-$release
    mapfile -t needed < <(headers_needed "$headers" "$version")
    unpack "$headers=$version" "${needed[@]}" "linux-source-$series=$version" || return
    headers=$PWD/root/usr/src/$headers
    compiler=$(grep -oE 'gcc-[0-9]+' "$headers/.kernelvariables" 2>/dev/null | head -n 1)
    packages+=(make "${compiler:-gcc}")
    install_packages
    sed -i "s#/usr/src#$PWD/root/usr/src#" "$headers/Makefile" || return
    quietly_for_now tar -xJf "root/usr/src/linux-source-$series.tar.xz" --strip-components 4 \
        --wildcards '*/drivers/infiniband/sw/siw/*' || no_vm "there is no siw in Linux $series"
    quietly_for_now make -C "$headers" M="$PWD/siw" CONFIG_RDMA_SIW=m modules ||
        no_vm "siw could not be built for $release (--verbose says why)"
    mkdir made && cp -- siw/siw.ko made && (cd made && sha256sum siw.ko >sums)
}

fetch_siw() {
    enter_new_folder || return
    if ! make_siw; then
        popd >/dev/null || return
        return 1
    fi
    popd >/dev/null && rm -rf -- "$boot/siw" && mv -T -- "$unpacked/made" "$boot/siw" || return
    rm -rf -- "$unpacked"
    unpacked=''
}

# One at a time, so that what is missing is fetched once.
prepare() {
    mkdir -p -- "$cache" 2>/dev/null || no_vm "cannot write to $cache"
    exec {lock}>"$cache/lock" || no_vm "cannot write to $cache"
    until flock -n "$lock"; do sleep 0.2; done
    install_packages
    if ! find_kernel; then
        fetch_kernel || no_vm "$kernel could not be kept in $cache"
        find_kernel || no_vm "$boot is damaged"
    fi
    if [ "$device" = siw ] && ! find_siw && ! fetch_siw; then
        # The archive may have a newer kernel only.
        if ! fetch_kernel || ! fetch_siw; then
            no_vm "source and headers of ${boot##*/} could not be downloaded"
        fi
    fi
    exec {lock}>&-
}

# ---- one run ------------------------------------------------------------------------------------

# What the guest reads, and where it writes.
write_exchange() {
    local environment
    mapfile -d '' -t environment < <(env -0)
    mkdir "$folder/exchange" && cp -- "$here/init.sh" "$folder/exchange" || return
    touch "$folder"/{console,exchange/out,exchange/err}
    printf '%s=%q\n' memlock_kib "$memlock_kib" share "$share" device "$device" \
        net_end "$net_end" >"$folder/exchange/settings"
    if [ "$device" = siw ] || [ -n "$net_end" ]; then
        cp -r -- "$boot/modules" "$folder/exchange" || return
    fi
    if [ "$device" = siw ]; then
        cp -- "$boot/siw/siw.ko" "$folder/exchange/modules" &&
            echo siw.ko >>"$folder/exchange/modules/order" || return
    fi
    {
        printf 'cd -- %q || exit\nexec env -i' "$PWD"
        printf ' %q' "${environment[@]}" "$@"
    } >"$folder/exchange/start"
}

# Adds a folder of this machine, by a tag. A comma in a name is written twice.
add_folder() {
    machine+=(-fsdev "local,id=$1,path=${2//,/,,},security_model=none,multidevs=remap$3"
        -device "virtio-9p-pci,fsdev=$1,mount_tag=$1")
}

# Adds the card that leads to the other VM. It carries packets as large as the cable does.
add_card() {
    local server=off mac=02:00:00:00:00:02
    [ "$net_end" = connect ] || server=on mac=02:00:00:00:00:01
    machine+=(-netdev "stream,id=net,server=$server,addr.type=unix,addr.path=${net_socket//,/,,}"
        -device "virtio-net-pci,netdev=net,host_mtu=4200,mac=$mac")
}

# Starts the VM and waits until its first program runs.
start_vm() {
    local accelerator=$1 model=$2 start_s=$3 until=$((SECONDS + $3)) level=4
    [ -z "$verbose" ] || level=6
    # A VM that dies says so and ends. What protects or measures a machine that stays is off.
    local words=(console=ttyS0 quiet "loglevel=$level" panic=-1 mitigations=off
        cryptomgr.notests=1 tsc=reliable no_timer_check random.trust_cpu=on)
    local machine=(-accel "$accelerator" -cpu "$model" -smp "$cpus" -m "$memory_mib"
        -nodefaults -no-user-config -no-reboot -display none -serial "file:$folder/console"
        -kernel "$boot/kernel" -initrd "$boot/initramfs" -append "${words[*]}")
    add_folder exchange "$folder/exchange" ''
    add_folder host / ,readonly=on
    [ -z "$share" ] || add_folder share "$share" ''
    [ -z "$net_end" ] || add_card
    # It does not outlive this script, even where that is killed.
    setpriv --pdeathsig KILL qemu-system-x86_64 "${machine[@]}" \
        </dev/null >"$folder/qemu.log" 2>&1 &
    vm=$!
    [ -z "$pid_file" ] || echo "$vm" >"$pid_file"
    while is_running "$vm" && [ "$SECONDS" -lt "$deadline" ]; do
        [ ! -e "$folder/exchange/up" ] || return 0
        if [ "$SECONDS" -ge "$until" ]; then
            echo "it did not start in $start_s s" >"$folder/exchange/failed"
            break
        fi
        sleep 0.1
    done
    stop_vm
    return 1
}

# KVM only where the processor itself can: others claim it and interpret, slower than QEMU does.
start_best() {
    if [ -w /dev/kvm ] && grep -qwE 'vmx|svm' /proc/cpuinfo; then
        start_vm kvm "${cpu:-host}" "$kvm_start_s" && return
        rm -f -- "$folder/exchange/failed"
    fi
    # Nehalem has no AVX, and is fast. A kernel told of fast string moves would make all its copies
    # with them, and emulation moves them byte by byte. Without rdrand random numbers take seconds.
    [ "$cpu" != max ] || cpu=max,-erms,-fsrm
    start_vm tcg,thread=multi "${cpu:-Nehalem,+rdrand}" "$tcg_start_s"
}

# Shows a file as it grows, while the VM lives.
follow() {
    setpriv --pdeathsig TERM tail -c +1 -s 0.1 -f --pid="$vm" -- "$1" &
    others+=($!)
}

is_over() {
    [ -e "$folder/exchange/status" ] || [ -e "$folder/exchange/failed" ] ||
        [ "$SECONDS" -ge "$deadline" ] || ! is_running "$vm"
}

# Nobody wants the rest once a reader has gone.
is_read() {
    local pid
    for pid in "${others[@]}"; do is_running "$pid" || return; done
}

# There is no exit status: says why.
end_early() {
    local file said
    if [ "$SECONDS" -ge "$deadline" ]; then
        echo "vm.sh: stopped after $limit_s s" >&2
        exit 124
    fi
    for file in exchange/failed console qemu.log; do
        said=$(grep -av '^[[:space:]]*$' "$folder/$file" 2>/dev/null | tail -n 1 | tr -d '\r')
        [ -z "$said" ] || break
    done
    no_vm "the VM died: ${said:-it said nothing}"
}

run() {
    start_best || end_early
    others=()
    follow "$folder/exchange/out"
    follow "$folder/exchange/err" >&2
    [ -z "$verbose" ] || follow "$folder/console" >&2
    until is_over; do
        is_read || ! is_running "$vm" || exit 141
        sleep 0.1
    done
    stop_vm
    # These end by themselves, with all that was written.
    wait "${others[@]}"
    others=()
    [ ! -e "$folder/exchange/status" ] || exit "$(<"$folder/exchange/status")"
    end_early
}

[ "$(uname -m)" = x86_64 ] || no_vm "the VM is x86-64, this machine is $(uname -m)"
prepare
folder=$(mktemp -d) || no_vm "cannot write to ${TMPDIR:-/tmp}"
write_exchange "$@" || no_vm "cannot write to $folder"
deadline=$((SECONDS + limit_s))
run
