//! The container that a process's cgroup names: pure.
//!
//! ```text
//!  0::/system.slice/docker-<64 hex>.scope/init.scope   ─► docker:<64 hex>
//!     └ outermost part that is a container's ┘ └ what is inside names what it likes
//! ```
//!
//! Who runs containers names their cgroups; who is inside one, or has a part of the tree
//! as an own one, makes and names further ones below. So the outermost match counts, over
//! all hierarchies. Where a user starts containers without root, all of the name is the
//! user's word: it helps to find the opener, and proves nothing.

use palisade_protocol::control::{ContainerName, MAX_CONTAINER_BYTES};

/// Digits of the ids that docker, podman, containerd and CRI-O give.
const ID_DIGITS: usize = 64;
/// Hierarchies that are looked at: the kernel has fewer.
const MAX_HIERARCHIES: usize = 64;
/// Parts of one path that are looked at.
const MAX_DEPTH: usize = 64;

/// The container that a text like `/proc/PID/cgroup` names, if it names one:
/// `docker:…`, `podman:…`, `containerd:…`, `cri-o:…`, `kubernetes:…` with an id,
/// `lxc:…` or `machine:…` with a name.
pub fn of(cgroups: &[u8]) -> Option<ContainerName> {
    let hierarchies = cgroups.split(|&byte| byte == b'\n').take(MAX_HIERARCHIES);
    let found = hierarchies.filter_map(|line| of_path(path(line)?));
    // The first of those that are equally far out: `min_by_key` keeps it.
    found.min_by_key(|(depth, _)| *depth).map(|(_, name)| name)
}

/// `NUMBER:CONTROLLERS:PATH`; a path may have colons of its own.
fn path(line: &[u8]) -> Option<&[u8]> {
    let path = line.splitn(3, |&byte| byte == b':').nth(2)?;
    // As the kernel writes it once the cgroup was removed.
    Some(path.strip_suffix(b" (deleted)").unwrap_or(path))
}

/// The outermost part that names a container, and how deep it is.
fn of_path(path: &[u8]) -> Option<(usize, ContainerName)> {
    let parts: Vec<&[u8]> = path
        .split(|&byte| byte == b'/')
        .filter(|part| !part.is_empty())
        .take(MAX_DEPTH)
        .collect();
    let mut below_kubepods = false;
    let mut parent: &[u8] = b"";
    for (depth, part) in parts.into_iter().enumerate() {
        if let Some(name) = of_part(parent, part, below_kubepods) {
            return Some((depth, name));
        }
        below_kubepods |= matches!(part, b"kubepods" | b"kubepods.slice");
        parent = part;
    }
    None
}

fn of_part(parent: &[u8], part: &[u8], below_kubepods: bool) -> Option<ContainerName> {
    let scope = part.strip_suffix(b".scope");
    let bare = scope.unwrap_or(part);
    for (prefix, runtime) in [
        (&b"docker-"[..], "docker"),
        (b"libpod-", "podman"),
        (b"libpod-payload-", "podman"),
        (b"cri-containerd-", "containerd"),
        (b"crio-", "cri-o"),
    ] {
        if let Some(id) = bare.strip_prefix(prefix).and_then(id) {
            return Some(named(runtime, id));
        }
    }
    if let Some(id) = id(part) {
        if parent == b"docker" {
            return Some(named("docker", id));
        }
        if below_kubepods {
            return Some(named("kubernetes", id));
        }
    }
    let by_prefix = part.strip_prefix(b"lxc.payload.").or_else(|| {
        let below = matches!(parent, b"lxc" | b"lxc.payload");
        below.then_some(part)
    });
    if let Some(name) = by_prefix.filter(|name| !name.is_empty()) {
        return Some(named("lxc", name));
    }
    let machine = scope
        .and_then(|scope| scope.strip_prefix(b"machine-"))
        .or_else(|| {
            let unit = part.strip_suffix(b".service")?;
            unit.strip_prefix(b"systemd-nspawn@")
        });
    let machine = unescaped(machine.filter(|name| !name.is_empty())?);
    // What runs in such a one is an emulator: the guest's own files are not seen here.
    (!machine.starts_with(b"qemu-")).then(|| named("machine", &machine))
}

/// An id as it stands in a name: digits of lower case, as many as it has.
fn id(text: &[u8]) -> Option<&[u8]> {
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (text.len() == ID_DIGITS && text.iter().all(is_digit)).then_some(text)
}

/// Bounded, and nothing in it that drives a terminal or ends a word.
fn named(runtime: &str, name: &[u8]) -> ContainerName {
    let mut text = format!("{runtime}:");
    for &byte in name.iter().take(MAX_CONTAINER_BYTES) {
        match byte {
            b'\\' => text.push_str(r"\\"),
            0x21..=0x7e => text.push(char::from(byte)),
            _ => text.push_str(&format!(r"\x{byte:02x}")),
        }
    }
    ContainerName::cut(&text)
}

/// A unit's name as it was before it was escaped: `\x2d` is `-`.
fn unescaped(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let [first, after @ ..] = rest {
        let (byte, after) = escape(rest).unwrap_or((*first, after));
        plain.push(byte);
        rest = after;
    }
    plain
}

fn escape(text: &[u8]) -> Option<(u8, &[u8])> {
    let (digits, after) = text.strip_prefix(br"\x")?.split_at_checked(2)?;
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let [high, low] = digits else { return None };
    let byte = u8::try_from(digit(high)? * 16 + digit(low)?).ok()?;
    Some((byte, after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const OTHER: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";

    fn named_by(path: &str) -> Option<String> {
        of(format!("0::{path}\n").as_bytes()).map(|name| name.to_string())
    }

    /// Places as the runtimes make them, and what they are called; `ID` stands for an id.
    const PLACES: &[(&str, &str)] = &[
        ("/docker/ID", "docker:ID"),
        ("/system.slice/docker-ID.scope", "docker:ID"),
        ("/machine.slice/libpod-ID.scope/container", "podman:ID"),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope",
            "podman:ID",
        ),
        ("/libpod_parent/libpod-ID", "podman:ID"),
        ("/system.slice/web.service/libpod-payload-ID", "podman:ID"),
        (
            "/kubepods.slice/kubepods-pod1.slice/cri-containerd-ID.scope",
            "containerd:ID",
        ),
        (
            "/kubepods.slice/kubepods-pod1.slice/crio-ID.scope",
            "cri-o:ID",
        ),
        ("/kubepods/burstable/pod12-34/ID", "kubernetes:ID"),
        (
            "/kubepods.slice/kubepods-besteffort.slice/pod1/ID",
            "kubernetes:ID",
        ),
        ("/lxc.payload.web/system.slice/cron.service", "lxc:web"),
        ("/lxc.payload/web", "lxc:web"),
        ("/lxc/101/ns/init.scope", "lxc:101"),
        (
            r"/machine.slice/machine-my\x2dweb.scope/payload",
            "machine:my-web",
        ),
        (
            r"/machine.slice/systemd-nspawn@my\x2dweb.service/payload",
            "machine:my-web",
        ),
    ];

    fn with_id(text: &str, id: &str) -> String {
        text.replace("ID", id)
    }

    #[test]
    fn each_runtime_names_its_containers() {
        for (path, name) in PLACES {
            let expected = Some(with_id(name, ID));
            assert_eq!(named_by(&with_id(path, ID)), expected, "{path}");
            let deleted = with_id(path, ID) + " (deleted)";
            assert_eq!(named_by(&deleted), expected, "{deleted}");
        }
    }

    #[test]
    fn what_is_no_container_has_no_name() {
        for path in [
            "/",
            "/init.scope",
            "/system.slice/docker.service",
            "/user.slice/user-1000.slice/session-2.scope",
            "/machine.slice/libpod-conmon-ID.scope",
            "/kubepods.slice/crio-conmon-ID.scope",
            "/docker/buildx",
            "/elsewhere/ID",
            "/lxc.monitor.web",
            "/lxc",
            "/lxc.payload.",
            "/machine.slice/machine-.scope",
            r"/machine.slice/machine-qemu\x2d1\x2dweb.scope/libvirt/emulator",
        ] {
            assert_eq!(named_by(&with_id(path, ID)), None, "{path}");
        }
        for id in [&ID[1..], &ID.to_uppercase(), &format!("{ID}0")] {
            let path = format!("/system.slice/docker-{id}.scope");
            assert_eq!(named_by(&path), None, "{path}");
        }
        for text in [
            &b""[..],
            b"\n",
            b"0:",
            b"0::",
            b"x",
            b"::",
            b"\xff\xfe:\xff:/",
        ] {
            assert_eq!(of(text), None, "{text:?}");
        }
    }

    #[test]
    fn names_that_somebody_chose_are_printable() {
        let name = |raw: &[u8]| {
            let text = [b"0::/lxc.payload.", raw].concat();
            of(&text).unwrap().to_string()
        };
        assert_eq!(name(b"a b\x1b[2J\xff\\"), r"lxc:a\x20b\x1b[2J\xff\\");
        assert_eq!(name(&[b'x'; 4000]).len(), MAX_CONTAINER_BYTES);
        assert_eq!(
            named_by(r"/machine-a\x0ab\x2.scope").unwrap(),
            r"machine:a\x0ab\\x2"
        );
    }

    #[test]
    fn over_several_hierarchies_the_outermost_counts() {
        let text = format!(
            "12:memory:/a/b/docker/{OTHER}\n1:name=systemd:/docker/{ID}\n0::/x/lxc/inner\n"
        );
        assert_eq!(
            of(text.as_bytes()).unwrap().to_string(),
            format!("docker:{ID}")
        );
    }

    fn place() -> impl Strategy<Value = (String, String)> {
        prop::sample::select(PLACES).prop_map(|(path, name)| (with_id(path, ID), with_id(name, ID)))
    }

    proptest! {
        /// Whatever is below a container's cgroup: who made it is inside.
        #[test]
        fn nobody_inside_renames_a_container((path, name) in place(), below in prop_oneof![
            "[^\n]{0,200}".boxed(),
            prop::collection::vec(prop::sample::select(PLACES), 1..4)
                .prop_map(|places| places.iter().map(|(path, _)| with_id(path, OTHER)).collect())
                .boxed(),
        ]) {
            prop_assert_eq!(named_by(&format!("{path}/{below}")), Some(name));
        }

        #[test]
        fn the_result_is_bounded_and_printable(text in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..2000),
            r"(0::(/(lxc|lxc\.payload\.[^\n]{0,200}|machine-[^\n]{0,200}\.scope|docker|[^\n]{0,80})){0,80}\n){0,4}"
                .prop_map(String::into_bytes),
        ]) {
            if let Some(name) = of(&text) {
                prop_assert!(name.len() <= MAX_CONTAINER_BYTES);
                prop_assert!(name.bytes().all(|byte| byte.is_ascii_graphic()), "{}", name);
                prop_assert!(name.split_once(':').is_some_and(|(_, name)| !name.is_empty()));
            }
        }
    }
}
