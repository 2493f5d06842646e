#!/usr/bin/env bash
# README's two commands on a machine that has nothing: a new Debian 13 (Python 3.13) in build/bare with the packages that
# README names, a clone of the last commit, and a home that was never used. FFmpeg isn't there, nor a compiler. What is
# missing in README, and there on every machine that has been worked on, shows here.
#   .ci/bare.sh [COMMANDS]     run in the clone; "make test && make demo" if not given
# Needs root, debootstrap, a network and 8 GB. From this machine come its kernel, resolv.conf and certificates.
set -euo pipefail
cd "$(dirname "$0")/.."
commands=${1:-make test && make demo}
root=$PWD/build/bare
packages=$(sed -n 's/^apt-get install \([^#]*[^ #]\).*/\1/p' README.md | head -n 1)

test "$(id -u)" = 0 || { echo "make bare: a root of its own can only be made by root; try sudo make bare"; exit 1; }
command -v debootstrap >/dev/null || { echo "make bare: debootstrap is missing: apt-get install debootstrap"; exit 1; }
test -n "$packages" || { echo "make bare: README.md has no line 'apt-get install ...' any more"; exit 1; }

echo "Debian with $packages"
rm -rf --one-file-system "$root"
mkdir -p "$root"
debootstrap --variant=minbase trixie "$root" >build/bare.log || { tail -n 20 build/bare.log; exit 1; }
install --mode=644 /etc/resolv.conf "$root/etc/resolv.conf"
git clone --quiet --no-hardlinks . "$root/root/world-modality"

# In namespaces of its own, so that neither a mount nor a process is left behind. /proc has to be mounted inside.
inside() {
    root=$root unshare --mount --pid --fork --kill-child bash -euc '
        mount --rbind /dev "$root/dev"
        mount -t tmpfs tmpfs "$root/dev/shm"
        mount -t proc proc "$root/proc"
        exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root chroot "$root" bash -euc "$1"' bash "$1"
}
inside "export DEBIAN_FRONTEND=noninteractive; apt-get update && apt-get install --yes $packages" >>build/bare.log 2>&1 ||
    { tail -n 20 build/bare.log; exit 1; }
# Those of the network this machine is in, where it has its own.
install -D --mode=644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
inside "cd ~/world-modality; $commands"
