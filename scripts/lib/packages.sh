# shellcheck shell=bash disable=SC2034 # sourced: the lists are used by whoever sources
# What Palisade needs of a Debian 12 machine besides Rust, and why; installs what is missing.
# Sourced by scripts/up, scripts/test, scripts/soak, scripts/bench and scripts/package; owns nothing else.

# package|why, one a line
build_packages='
gcc|links Rust programs, compiles the C parts of crates
libc6-dev|headers for the same
pkg-config|finds the libraries below
libclamav-dev|the ClamAV engine that the Protection Server runs
libvirt-dev|the Integration Server reads the inventory through libvirt
'

test_packages='
clamav|clamscan, the peer that scan results are compared with
tzdata|time zones, whose daylight saving the schedules meet
clamav-testfiles|44 packed and archived test files
zip|makes archives with markers in them
p7zip-full|makes 7z archives with markers in them
libvirt-daemon-system|libvirtd, for a real qemu:///system inventory
libvirt-clients|virsh, which checks the inventory from outside
qemu-system-x86|domains for that inventory, by emulation
nftables|counts bytes on the wire from outside
iproute2|network namespaces and links for tests
python3|holds a file lease against the agent, as a hostile process would; writes through a mapping
e2fsprogs|makes a file system that is frozen under the agent, and files that cannot be changed
squashfs-tools|makes a file system that cannot be written
erofs-utils|makes another one
faketime|has the clock of an agent jump by a day, and no other one
make|builds programs on a protected file system
git|lists the tree for the checks of documents
shellcheck|checks the scripts
busybox-static|all there is, but the agent, in a guest with another kernel
mmdebstrap|a small Debian that packages are installed on
systemd|checks the unit of the agent, and is started in that Debian
groff|shows the man pages
mandoc|checks the man pages
zsh|checks its completions
fish|checks its completions
postgresql|the Integration Server'"'"'s second database; tests start one of their own
'

# What scripts/package needs.
package_packages='
gcc|links Rust programs, compiles the C parts of crates
libc6-dev|the C library that is linked statically
binutils|strip, and readelf and nm, which check that the agent is static
dpkg|packs the deb
rpm|packs the rpm
'

# Benches and the test of the bench itself.
bench_packages='
clamav-daemon|clamd and clamonacc, the peers that are measured against
clamdscan|clamd'"'"'s client
zip|makes archives of the corpus
p7zip-full|makes 7z archives of the corpus
nftables|counts bytes on the wire from outside
'

# as_root COMMAND…: runs it as root, by sudo where needed.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "Not root, and no sudo. Run as root: $*" >&2
        return 3
    fi
}

# install_packages LIST: installs those of the list that are missing, saying which and why.
install_packages() {
    local package why missing=()
    while IFS='|' read -r package why; do
        [ -n "$package" ] || continue
        if ! dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed'; then
            echo "needs $package: $why" >&2
            missing+=("$package")
        fi
    done <<<"$1"
    [ ${#missing[@]} -gt 0 ] || return 0
    echo "installing: ${missing[*]}" >&2
    local status=0 database=
    if [[ " ${missing[*]} " == *" postgresql "* ]]; then
        database=yes
        no_cluster
    fi
    if ! as_root apt-get update -qq >&2 ||
        ! as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
            --no-install-recommends "${missing[@]}" >&2; then
        echo "apt-get could not install: ${missing[*]}" >&2
        status=3
    fi
    [ -z "$database" ] || clusters_again
    return "$status"
}

# no_cluster: Debian's postgresql makes a database at once and serves it on port 5432, unless
# this file says otherwise. What is tested starts its own; the machine's user asked for none.
cluster_settings=/etc/postgresql-common/createcluster.conf
no_cluster() {
    as_root mkdir -p "${cluster_settings%/*}"
    [ ! -e "$cluster_settings" ] || as_root cp -p "$cluster_settings" "$cluster_settings.palisade"
    echo 'create_main_cluster = false' | as_root tee -a "$cluster_settings" >/dev/null
}

# clusters_again: the settings are as they were, or as the package brings them.
clusters_again() {
    if [ -e "$cluster_settings.palisade" ]; then
        as_root mv "$cluster_settings.palisade" "$cluster_settings"
    elif [ -e /usr/share/postgresql-common/createcluster.conf ]; then
        as_root cp /usr/share/postgresql-common/createcluster.conf "$cluster_settings"
        as_root rm -f "$cluster_settings.ucf-dist"
    fi
}

# install_quietly LIST: the same, and no service that a package brings is started: what is
# measured starts its own. policy-rc.d is Debian's way to say so; one that is there stays.
install_quietly() {
    local policy=/usr/sbin/policy-rc.d status=0 own=
    if [ -d /run/systemd/system ] && [ ! -e "$policy" ]; then
        own=yes
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
    fi
    install_packages "$1" || status=$?
    [ -z "$own" ] || as_root rm -f "$policy"
    return "$status"
}

# need_rust: Rust is the one thing that is expected to be there.
need_rust() {
    if ! command -v cargo >/dev/null; then
        echo "Rust is not installed (cargo is not found); install it with rustup, version $(rust_version) or later." >&2
        return 3
    fi
}

rust_version() {
    sed -n 's/^channel = "\(.*\)"/\1/p' "$(dirname "${BASH_SOURCE[0]}")/../../rust-toolchain.toml"
}

# need_nextest: the test runner, from the same registry as every crate.
need_nextest() {
    if ! cargo nextest --version >/dev/null 2>&1; then
        echo "needs cargo-nextest: runs the tests, each in a process of its own" >&2
        cargo install --locked cargo-nextest --version 0.9.143 >&2
    fi
}

# need_deny: checks licences, sources and banned crates by deny.toml.
need_deny() {
    if ! cargo deny --version >/dev/null 2>&1; then
        echo "needs cargo-deny: checks licences, sources and banned crates" >&2
        # It runs for seconds: it is to be built soon, not to be fast.
        CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off \
            CARGO_PROFILE_RELEASE_CODEGEN_UNITS=256 CARGO_PROFILE_RELEASE_STRIP=none \
            cargo install --locked cargo-deny --version 0.20.2 >&2
    fi
}
