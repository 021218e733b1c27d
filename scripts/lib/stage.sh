# shellcheck shell=bash
# The files of the Light Agent's packages, in one folder as they are installed.
# Sourced by scripts/package; owns nothing else.

# refuse_unless_static PROGRAM: ends with an error if it needs anything of a system's
# libraries at its start. (The C library would load plug-ins of the very version that was
# linked for names of hosts and users; the agent is given addresses, and resolves none.
# A test uses it where no such plug-in is.)
refuse_unless_static() {
    local needs
    needs=$(readelf -d -l "$1" | grep -E 'NEEDED|INTERP' || true)
    if [ -n "$needs" ]; then
        echo "scripts/package: $1 is not static: $needs" >&2
        return 1
    fi
}

# fill VERSION FILE: the file with its placeholder filled in.
fill() {
    sed "s/@VERSION@/$1/" "$2"
}

# stage ROOT BUILT VERSION: lays out ROOT from the programs in BUILT.
stage() {
    local root=$1 built=$2 version=$3 made shared=$1/usr/share
    local documents=$shared/doc/palisade-agent
    made=$(mktemp -d)
    "$built/palisade-documents" "$made" "$(date -u -d "@$SOURCE_DATE_EPOCH" +%F)"

    install -d "$root/usr/bin" "$root/etc/palisade/agent.conf.d" \
        "$root/var/lib/palisade" "$documents"
    install -d -m 700 "$root/var/lib/palisade/agent"
    install -m 755 "$built/palisade-agent" "$root/usr/bin/palisade-agent"
    strip "$root/usr/bin/palisade-agent"
    # A token that is put there is used; without one nothing is asked for it.
    sed 's|^#\(join_token_file = "/etc/palisade/join-token"\)$|\1|' light-agent/agent.toml \
        >"$root/etc/palisade/agent.toml"
    grep -q '^join_token_file' "$root/etc/palisade/agent.toml"
    chmod 644 "$root/etc/palisade/agent.toml"
    install -D -m 644 packaging/agent/palisade-agent.service \
        "$root/usr/lib/systemd/system/palisade-agent.service"

    local page
    for page in "$made"/man?/*; do
        install -D -m 644 "$page" "$shared/man/$(basename "$(dirname "$page")")/$(basename "$page")"
    done
    # The generator names a command below a program with a hyphen in two ways, of which
    # bash would find one only.
    sed -i 's/palisade__subcmd__agent/palisade__agent/g' "$made/palisade-agent.bash"
    install -D -m 644 "$made/palisade-agent.bash" \
        "$shared/bash-completion/completions/palisade-agent"
    install -D -m 644 "$made/_palisade-agent" "$shared/zsh/vendor-completions/_palisade-agent"
    install -D -m 644 "$made/palisade-agent.fish" \
        "$shared/fish/vendor_completions.d/palisade-agent.fish"

    {
        cat packaging/agent/copyright LICENSE-MIT
        echo
        cat LICENSE-APACHE
    } >"$documents/copyright"
    {
        echo "palisade-agent ($version) stable; urgency=medium"
        echo
        echo "  * What has changed is in the commit log of Palisade's sources."
        echo
        echo " -- Palisade maintainers <maintainers@palisade.invalid>  $(date -u -R -d "@$SOURCE_DATE_EPOCH")"
    } >"$documents/changelog"
    third_party >"$documents/THIRD-PARTY"
    gzip -9n "$documents/changelog" "$documents/THIRD-PARTY" "$shared"/man/man?/*
    chmod 644 "$documents"/*
    find "$root" -newermt "@$SOURCE_DATE_EPOCH" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
    rm -r "$made"
}

# third_party: the crates that are linked, their licences, and the notices that these
# want kept.
third_party() {
    local name version licence folder notice
    echo "palisade-agent contains these crates:"
    echo
    linked_crates | while IFS='|' read -r name version licence; do
        echo "$name $version: $licence"
    done
    linked_crates | while IFS='|' read -r name version licence; do
        for folder in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"$name-$version"; do
            for notice in "$folder"/LICENSE* "$folder"/LICENCE* "$folder"/COPYING* "$folder"/NOTICE*; do
                [ -f "$notice" ] || continue
                printf '\n---- %s %s: %s\n\n' "$name" "$version" "$(basename "$notice")"
                cat "$notice"
            done
        done
    done
}

# linked_crates: name|version|licence of each crate in the program, Palisade's own left out.
linked_crates() {
    cargo tree --locked --package palisade-light-agent --edges normal,no-proc-macro --prefix none \
        --target "$(rustc -vV | sed -n 's/^host: //p')" --format '{p}|{l}' |
        sed -n 's/ (\*)$//; s/^\([^ ]*\) v\([^ |]*\)|/\1|\2|/p' |
        grep -v '^palisade-' | LC_ALL=C sort -u
}
