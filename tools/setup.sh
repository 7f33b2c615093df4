#!/bin/sh
# Brings what the build needs into this checkout: Bun, Zig, npm packages; with `test` also the
# Debian packages of tools/packages.txt and the API's fuzzer. Everything is pinned and goes to
# .tools and node_modules; what is there already is not fetched again: a second call is instant and
# needs no network.
# POSIX sh: nothing else can be relied on yet. Usage: tools/setup.sh build|test

set -eu
cd "$(dirname "$0")/.."

bun_version=$(sed -n 's/.*"bun": "\([0-9.]*\)".*/\1/p' tools/bun/package.json)
zig_version=$(sed -n 's/^ziglang==\([0-9.]*\) .*/\1/p' tools/zig-requirements.txt)
bun=.tools/bun/node_modules/.bin/bun
zig=.tools/zig-$zig_version/ziglang/zig
started=$(date +%s)

say() { printf 'set-up: %s\n' "$*"; }
fail() {
    printf 'set-up: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '        %s\n' "$line" >&2; done
    exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }
is() { [ "$("$1" "$2" 2>/dev/null || true)" = "$3" ]; }

# fetch WHAT COMMAND...: runs a download, with its newest line of output every five seconds.
fetch() {
    say "$1"
    shift
    # The sleep outlives its killed shell: it must not hold our output open.
    (while sleep 5 >/dev/null 2>&1; do
        say "  $(($(date +%s) - started)) s: $(tail -n 1 .tools/fetch.log | cut -c 1-70)"
    done) &
    ticker=$!
    code=0
    "$@" >.tools/fetch.log 2>&1 || code=$?
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    return "$code"
}
fetch_failed() {
    tail -n 15 .tools/fetch.log >&2
    fail "$1 failed (the whole output: .tools/fetch.log)" \
        "Is the network up, and do HTTPS_PROXY and the registry settings fit this network?" \
        "Calling make again goes on where this stopped."
}

check_machine() {
    [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] ||
        fail "this machine is $(uname -s) on $(uname -m)" \
            "SSI-HV builds and runs on Linux on x86-64 only."
    free_kib=$(df -Pk . | awk 'NR == 2 { print $4 }')
    [ -x "$zig" ] || [ "$free_kib" -ge 1500000 ] ||
        fail "only $((free_kib / 1024)) MB free here" \
            "Tools, packages and build need about 1500 MB."
}

get_bun() {
    is "$bun" --version "$bun_version" && return
    for own in "${BUN:-}" "$(command -v bun || true)"; do
        if [ -n "$own" ] && is "$own" --version "$bun_version"; then
            say "Bun $bun_version: taking $own"
            mkdir -p "$(dirname "$bun")"
            ln -sf "$(readlink -f "$own")" "$bun"
            return
        fi
    done
    has npm || fail "npm is missing (Bun $bun_version comes by npm)" \
        "Debian: apt-get install npm; or put bun $bun_version in PATH."
    mkdir -p .tools/bun
    cp tools/bun/package.json tools/bun/package-lock.json .tools/bun/
    fetch "Bun $bun_version by npm: 40 MB to fetch, 105 MB on disk" \
        npm ci --prefix .tools/bun --cache .tools/npm-cache --no-audit --no-fund ||
        fetch_failed "npm ci of Bun"
    rm -rf .tools/npm-cache
    is "$bun" --version "$bun_version" ||
        fail "$bun does not run or is not version $bun_version" \
            "Does npm run install scripts here (npm config get ignore-scripts)?" \
            "Bun needs a CPU with AVX2."
}

get_zig() {
    is "$zig" version "$zig_version" && return
    for own in "${ZIG:-}" "$(command -v zig || true)"; do
        if [ -n "$own" ] && is "$own" version "$zig_version"; then
            say "Zig $zig_version: taking $own"
            mkdir -p "$(dirname "$zig")"
            ln -sf "$(readlink -f "$own")" "$zig"
            return
        fi
    done
    has python3 || fail "python3 is missing (Zig $zig_version comes from PyPI)" \
        "Debian: apt-get install python3; or put zig $zig_version in PATH."
    folder=.tools/zig-$zig_version
    rm -rf "$folder.part"
    what="Zig $zig_version from PyPI: 101 MB to fetch, 413 MB on disk"
    if python3 -m pip --version >/dev/null 2>&1; then
        fetch "$what" python3 -m pip install --no-deps --no-cache-dir --no-input \
            --require-hashes --target "$folder.part" -r tools/zig-requirements.txt ||
            fetch_failed "pip install of Zig"
    else
        fetch "$what (no pip here: by tools/fetch_zig.py)" \
            python3 tools/fetch_zig.py tools/zig-requirements.txt "$folder.part" ||
            fetch_failed "the download of Zig"
    fi
    rm -rf "$folder"
    mv "$folder.part" "$folder"
    is "$zig" version "$zig_version" || fail "$zig does not run or is not version $zig_version"
}

get_packages() {
    wanted=$(cat package.json bun.lock | cksum)
    [ "$(cat node_modules/.ssihv 2>/dev/null || true)" = "$wanted" ] && return
    fetch "npm packages of bun.lock: about 25 MB to fetch" \
        env BUN_INSTALL_CACHE_DIR="$PWD/.tools/bun-cache" "$bun" install --frozen-lockfile ||
        fetch_failed "bun install"
    rm -rf .tools/bun-cache
    rm -f node_modules/.ssihv
    echo "$wanted" >node_modules/.ssihv
}

# Debian packages whose program is absent.
absent_packages() {
    while read -r group package program; do
        case $group in '' | '#'*) continue ;; esac
        PATH=$PATH:/usr/sbin:/sbin
        has "$program" || printf ' %s' "$package"
    done <tools/packages.txt
}

get_debian_packages() {
    absent=$(absent_packages)
    [ -n "$absent" ] || return 0
    if ! has apt-get || [ "$(id -u)" != 0 ]; then
        say "not installed (needs root and apt):$absent"
        say "  tests that need them say so; the lab unpacks its own copies"
        return 0
    fi
    export DEBIAN_FRONTEND=noninteractive
    # A fresh image has no package lists: a first failure is worth one update.
    # shellcheck disable=SC2086
    fetch "Debian packages by apt:$absent" \
        sh -c 'apt-get install -y --no-install-recommends "$@" ||
            { apt-get update && apt-get install -y --no-install-recommends "$@"; }' sh $absent ||
        fetch_failed "apt-get install"
}

# The API's fuzzer. Its wheels are for one version of Python, that of Debian 12.
get_fuzzer() {
    version=$(sed -n 's/^schemathesis==\([0-9.]*\) .*/\1/p' tools/fuzz-requirements.txt)
    folder=.tools/schemathesis-$version
    [ ! -d "$folder" ] || return 0
    is_311='import sys, pip; sys.exit(sys.version_info[:2] != (3, 11))'
    if ! python3 -c "$is_311" >/dev/null 2>&1; then
        say "not installed (needs Python 3.11 with pip): schemathesis, which fuzzes the API"
        return 0
    fi
    rm -rf "$folder.part"
    fetch "schemathesis $version from PyPI: 16 MB to fetch, 68 MB on disk" \
        python3 -m pip install --no-deps --no-cache-dir --no-input --only-binary :all: \
        --require-hashes --target "$folder.part" -r tools/fuzz-requirements.txt ||
        fetch_failed "pip install of schemathesis"
    mv "$folder.part" "$folder"
}

purpose=${1:-build}
case $purpose in
build | test) ;;
*) fail "unknown purpose '$purpose'" "Usage: tools/setup.sh build|test" ;;
esac
check_machine
mkdir -p .tools
get_bun
get_zig
get_packages
if [ "$purpose" = test ]; then
    get_debian_packages
    get_fuzzer
fi
rm -f .tools/fetch.log
say "ready (Bun $bun_version, Zig $zig_version, $(($(date +%s) - started)) s)"
