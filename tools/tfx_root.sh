#!/usr/bin/env bash
# Runs a command where TFX can run: tools/tfx_root.sh make in-tfx-test
#
# The wheels of ml-metadata and tensorflow-data-validation need glibc 2.38 (Debian 13, Ubuntu 24.04). There the command runs as it is. On an
# older Debian or Ubuntu, and as root, it runs in a Debian 13 that debootstrap unpacks once into TFX_ROOT (by default ~/.cache/sela_tf/debian13;
# 600 MB, and 3 GB that uv keeps). The checkout has the same path in it. All mounts belong to a mount namespace that ends with the command, however
# that ends, so nothing has to be undone.
set -euo pipefail

ROOT=${TFX_ROOT:-$HOME/.cache/sela_tf/debian13}
CHECKOUT=$(cd "$(dirname "$0")/.." && pwd)
MIRROR=${TFX_MIRROR:-http://deb.debian.org/debian}
PACKAGES=ca-certificates,g++,make,python3,python3-dev,python3-venv
WANTED=2.38

fail() {
  echo "error: $1" >&2
  exit 1
}

[ $# -gt 0 ] || fail 'usage: tools/tfx_root.sh COMMAND …'

glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d' ' -f2) || fail 'TFX runs on Linux with glibc, and this machine has none'
if [ "$(printf '%s\n' "$WANTED" "$glibc" | sort -V | head -n 1)" = "$WANTED" ]; then
  cd "$CHECKOUT"
  exec "$@"
fi
[ "$(id -u)" = 0 ] || fail "TFX needs glibc $WANTED, and this machine has $glibc. Take Debian 13 or Ubuntu 24.04, or repeat the command as root: it then runs in a Debian 13 below $ROOT"
command -v debootstrap >/dev/null || fail "TFX needs glibc $WANTED, and this machine has $glibc. For a Debian 13 below $ROOT: apt-get install debootstrap debian-archive-keyring"
case "$ROOT/" in "$CHECKOUT"/*) fail "TFX_ROOT=$ROOT lies in the checkout: name a directory elsewhere" ;; esac

if [ ! -d "$ROOT" ]; then
  echo "A Debian 13 is unpacked into $ROOT, once: some minutes" >&2
  rm -rf "$ROOT.unfinished"
  mkdir -p "$(dirname "$ROOT")"
  # debootstrap mounts things of its own.
  unshare --mount --propagation private debootstrap --variant=minbase --include="$PACKAGES" trixie "$ROOT.unfinished" "$MIRROR" >"$ROOT.log" 2>&1 ||
    fail "debootstrap failed, the end of $ROOT.log: $(tail -n 3 "$ROOT.log")"
  mv "$ROOT.unfinished" "$ROOT"
fi

# shellcheck disable=SC2016 # the inner shell expands them
exec unshare --mount --propagation private bash -euo pipefail -c '
  root=$1 checkout=$2
  shift 2
  mount --rbind /dev "$root/dev"
  mount -t proc proc "$root/proc"
  mount --rbind /sys "$root/sys"
  mkdir -p "$root$checkout"
  mount --bind "$checkout" "$root$checkout"
  # How this machine reaches the package registries.
  for file in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/ssl/certs; do
    [ -e "$file" ] || continue
    if [ -d "$file" ]; then mkdir -p "$root$file"; else touch "$root$file"; fi
    mount --bind "$(readlink -f "$file")" "$root$file"
  done
  exec chroot "$root" /usr/bin/env --chdir="$checkout" PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root "$@"
' tfx_root "$ROOT" "$CHECKOUT" "$@"
