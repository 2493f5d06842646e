#!/usr/bin/env bash
# Build the image of Dockerfile by buildah, without a daemon and without a registry, and look into it.
#   .ci/image.sh DEVICE [BUILD_ARG=VALUE ...]     DEVICE is cuda or cpu; TORCH_INDEX=... for cpu
# The base image is made here, and tagged with the name that FROM asks for: Debian by debootstrap, and a Python 3.12
# copied to /usr/local. Which one: PYTHON=..., else python3.12. It must have been built for this Debian or an older one.
# Needs root, buildah and debootstrap (apt-get install buildah debootstrap), a network, and 40 GB in build/image.
# COMMANDS='wm-doctor' says what is run inside afterwards; KEEP=1 keeps what was built.
set -euo pipefail
cd "$(dirname "$0")/.."
device=${1:?cuda or cpu}
shift
commands=${COMMANDS:-wm-doctor}
work=$PWD/build/image
from=$(sed -n 's/^FROM \(python:.*\) AS base/\1/p' Dockerfile | sed 's/\${PYTHON}/3.12/')
suite=${from##*-}
python=$(readlink -f "$(command -v "${PYTHON:-python3.12}")")

for program in buildah debootstrap; do
    command -v $program >/dev/null || { echo "make image: $program is missing: apt-get install buildah debootstrap"; exit 1; }
done
test "$(id -u)" = 0 || { echo "make image: a root of its own can only be made by root; try sudo make image"; exit 1; }
mkdir -p "$work/tmp"
export TMPDIR=$work/tmp BUILDAH_ISOLATION=chroot
b() { buildah --storage-driver vfs --root "$work/storage" --runroot "$work/run" "$@"; }

if ! b inspect --type image "docker.io/library/$from" >/dev/null 2>&1; then
    echo "Base image $from: Debian $suite with $python"
    rm -rf --one-file-system "$work/base"
    # What that Python is linked with.
    libraries=ca-certificates,libbz2-1.0,libexpat1,libffi8,liblzma5,libncursesw6,libreadline8,libsqlite3-0,libssl3,libuuid1,netbase,zlib1g
    debootstrap --variant=minbase --include=$libraries "$suite" "$work/base" >"$work/base.log" ||
        { tail -n 20 "$work/base.log"; exit 1; }
    cp -a "$(dirname "$(dirname "$python")")/." "$work/base/usr/local/"
    ln -sf python3.12 "$work/base/usr/local/bin/python3"
    echo /usr/local/lib >"$work/base/etc/ld.so.conf.d/python.conf"
    chroot "$work/base" /sbin/ldconfig
    chroot "$work/base" /usr/local/bin/python3 -c 'import ssl, sqlite3, lzma, bz2, ctypes, venv, ensurepip'
    # Those of the network that this machine is in, where it has its own.
    install -D --mode=644 /etc/ssl/certs/ca-certificates.crt "$work/base/etc/ssl/certs/ca-certificates.crt"
    test ! -f /etc/pip.conf || install --mode=644 /etc/pip.conf "$work/base/etc/pip.conf"
    container=$(b from scratch)
    b copy --quiet "$container" "$work/base" / >/dev/null
    b config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    b commit --quiet --rm "$container" "docker.io/library/$from" >/dev/null
    rm -rf --one-file-system "$work/base"
fi

arguments=(--build-arg "DEVICE=$device")
for each in "$@"; do arguments+=(--build-arg "$each"); done
SECONDS=0
b build --pull-never --layers=false "${arguments[@]}" --tag "world-modality:$device" . >"$work/$device.log" 2>&1 ||
    { tail -n 30 "$work/$device.log"; exit 1; }
echo "world-modality:$device, built in $SECONDS s: $(b images --format '{{.Size}}' "world-modality:$device")"
container=$(b from --pull-never "world-modality:$device")
b run "$container" -- du -sh --total /opt/venv /usr /opt/world-modality
b run "$container" -- bash -c "cd /opt/world-modality && $commands"
test -n "${KEEP:-}" || { b rm "$container"; b rmi "world-modality:$device"; } >/dev/null
