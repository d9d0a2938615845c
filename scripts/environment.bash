# Sourced by demo, test, check and bench: Debian packages, the virtual environment .venv, the build.
# Everything here may run twice; the second time it only looks. It knows nothing of what the scripts do.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
BUILD_PACKAGES=(gcc libc6-dev pkg-config fuse3 liburing-dev libaio-dev libfuse3-dev)
SANITIZE_PACKAGES=(clang libclang-rt-14-dev valgrind libc6-dbg) # valgrind needs the loader's symbols
PYTHON_PACKAGES=(python3 python3-venv python3-dev)

say() { printf '%s\n' "$*"; }
fail() { printf '%s\n' "$*" >&2; exit 2; }

# Version 3.11 or later, able to make a virtual environment and to build an extension.
python_is_good() {
    "$1" - >/dev/null 2>&1 <<'PY'
import ensurepip, pathlib, sys, sysconfig, venv
good = sys.version_info >= (3, 11) and pathlib.Path(sysconfig.get_path("include"), "Python.h").exists()
sys.exit(not good)
PY
}

# Sets PYTHON. The one the caller named, else the PATH's when it will do, else Debian's with its packages.
choose_python() {
    if [ -n "${PYTHON:-}" ]; then
        python_is_good "$PYTHON" ||
            fail "PYTHON=$PYTHON: must be Python 3.11 or later with venv, ensurepip and Python.h"
    elif python_is_good python3; then
        PYTHON=python3
    else
        PYTHON=/usr/bin/python3
        need_packages "${PYTHON_PACKAGES[@]}"
        python_is_good "$PYTHON" || fail "$PYTHON is older than 3.11; name a newer one: PYTHON=... $0"
    fi
}

# need_packages NAME...: installs those that are missing; without root it says how and stops.
need_packages() {
    local missing=() name
    if ! command -v dpkg-query >/dev/null; then
        say "Not a Debian system; what these Debian packages hold must be there: $*"
        return
    fi
    for name in "$@"; do
        dpkg-query -W -f '${db:Status-Abbrev}' "$name" 2>/dev/null | grep -q '^.i' || missing+=("$name")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" -ne 0 ]; then
        say "Debian packages are missing. Install them, then run $0 again:" >&2
        fail "  sudo apt-get install ${missing[*]}"
    fi
    say "Installing Debian packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    quietly apt-get update
    quietly apt-get install -y --no-install-recommends "${missing[@]}"
}

# unpack PACKAGE DIRECTORY: what a Debian package holds, without installing it. Fails when it cannot be fetched.
unpack() {
    local package=$1 directory=$2 fetched status=0
    fetched=$(mktemp -d)
    if ! (cd "$fetched" && apt-get download -qq "$package") 2>/dev/null && [ "$(id -u)" -eq 0 ]; then
        apt-get update >/dev/null 2>&1 || true
        (cd "$fetched" && apt-get download -qq "$package") >/dev/null 2>&1 || true
    fi
    dpkg-deb -x "$fetched"/*.deb "$directory" 2>/dev/null || status=1
    rm -rf "$fetched"
    return $status
}

# borrow_program PACKAGE PROGRAM: puts a program of a Debian package on the PATH without installing the package,
# for one that would start a service on a machine with systemd. After `build`, because it is kept in .venv.
borrow_program() {
    local package=$1 program=$2 borrowed=$VENV/borrowed
    export PATH="$PATH:$borrowed/usr/bin"
    if command -v "$program" >/dev/null || ! command -v apt-get >/dev/null; then
        return 0
    fi
    say "Borrowing $program from the Debian package $package"
    unpack "$package" "$borrowed" || say "$package cannot be fetched: tests that need $program will be skipped."
}

# Debian's cloud kernel in .venv/guest, for tests with virtual machines; installed it would become this machine's.
borrow_kernel() {
    local package
    if compgen -G "$VENV/guest/boot/vmlinuz-*" >/dev/null || ! command -v apt-get >/dev/null; then
        return 0
    fi
    package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
        awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ {print $2}')
    say "Borrowing the kernel of ${package:=linux-image-cloud-amd64} for virtual machines"
    unpack "$package" "$VENV/guest" || say "It cannot be fetched: nothing can be done with virtual machines."
}

# Run a command silently; show what it printed only when it fails.
quietly() {
    local log
    log=$(mktemp)
    if ! "$@" </dev/null >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        fail "failed: $*"
    fi
    rm -f "$log"
}

# Says why mounting cannot work here and returns 1, or returns 0.
fuse_works() {
    if [ ! -e /dev/fuse ] && [ "$(id -u)" -eq 0 ]; then
        modprobe fuse 2>/dev/null || true
    fi
    if [ ! -e /dev/fuse ]; then
        say "/dev/fuse is not here: load the module (modprobe fuse), or give the container the device" \
            "(--device /dev/fuse --cap-add SYS_ADMIN)" >&2
        return 1
    fi
    return 0
}

# What pip has to install beside aiofs itself: build requirements, dependencies, extra `dev`.
requirements() {
    "$PYTHON" - "$ROOT/pyproject.toml" <<'PY'
import sys, tomllib
with open(sys.argv[1], "rb") as file:
    config = tomllib.load(file)
project = config["project"]
every = config["build-system"]["requires"] + project["dependencies"] + project["optional-dependencies"]["dev"]
print("\n".join(sorted(set(every))))
PY
}

python_stamp() {
    "$PYTHON" -c 'import sys; print(sys.version, sys.base_prefix)'
    requirements
}

# .venv is there, works, and is of the Python that was chosen.
venv_works() {
    local which='import sys; print(sys.version, sys.base_prefix)'
    [ "$("$VENV/bin/python" -c "$which" 2>/dev/null)" = "$("$PYTHON" -c "$which")" ]
}

source_stamp() {
    (cd "$ROOT" &&
        find pyproject.toml aiofs/dataplane \( -name '*.toml' -o -name '*.[ch]' -o -name build.py \) \
            ! -name _plane.c -exec sha256sum {} + | sort -k 2)
    say "AIOFS_CFLAGS=${AIOFS_CFLAGS:-}"
}

# .venv with all that pyproject.toml asks for, and aiofs in it, editable. PATH then begins with it.
build() {
    choose_python
    exec 9<"$ROOT/pyproject.toml"
    flock 9 # two scripts at once: the second waits, then finds all done
    local stamp
    stamp=$(python_stamp)
    if [ "$stamp" != "$(cat "$VENV/stamp-python" 2>/dev/null)" ] || ! venv_works; then
        say "Setting up the virtual environment .venv"
        venv_works || quietly "$PYTHON" -m venv --clear "$VENV"
        requirements >"$VENV/requirements.txt"
        quietly "$VENV/bin/python" -m pip install -q -r "$VENV/requirements.txt"
        say "$stamp" >"$VENV/stamp-python"
    fi
    stamp=$(source_stamp)
    if [ "$stamp" != "$(cat "$VENV/stamp-source" 2>/dev/null)" ] ||
        ! compgen -G "$ROOT/aiofs/dataplane/_plane.*.so" >/dev/null; then
        say "Building aiofs"
        # Isolation would fetch setuptools and cffi anew for every build; they are in .venv already.
        quietly "$VENV/bin/python" -m pip install -q --no-build-isolation --no-deps -e "$ROOT"
        say "$stamp" >"$VENV/stamp-source"
    fi
    # As pip does for packages that are not editable: a start without byte code takes 0.1 s longer.
    quietly "$VENV/bin/python" -m compileall -q "$ROOT/aiofs"
    exec 9<&-
    export PATH="$VENV/bin:$PATH"
}
