//! What a worker that was taken over might try: one table, one line an attempt.
//!
//! Each attempt is made of the system calls that an attacker would use, and so that
//! its success harms nothing: calls that would change the machine are made with
//! arguments that the kernel refuses only after it has checked for the right. The
//! same attempts are made outside the sandbox, where they succeed; those that
//! would be felt there, in namespaces of their own.
//!
//! | module | owns |
//! | --- | --- |
//! | [`files`] | beyond the scratch directory, and more than it holds |
//! | [`network`] | sockets of any kind |
//! | [`processes`] | other processes, and more of them |
//! | [`machine`] | rights, and what belongs to the machine |
//! | [`kernel`] | system calls; the only unsafe code |

mod files;
mod kernel;
mod machine;
mod network;
mod processes;

pub use files::{is_socket, open_descriptors};

use nix::errno::Errno;

/// What the attempts are aimed at; the test prepares it.
#[derive(Debug, Default)]
pub struct Target {
    /// A folder outside the scratch directory, with a file `secret` in it, a socket
    /// `socket` that listens, and room.
    pub folder: String,
    /// A TCP port of 127.0.0.1 that listens.
    pub port: u16,
    /// A process that is not a child: the zygote.
    pub process: i32,
    /// Another: the daemon.
    pub daemon: i32,
}

/// Where an attempt is made outside the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    /// As it is.
    Plain,
    /// In user, mount, network and other namespaces of its own.
    Contained,
}

/// One thing that must not be possible. Its error is what stopped it.
pub type Run = fn(&Target) -> Result<(), Errno>;

/// Name, where it is made outside, how.
pub type Attempt = (&'static str, Outside, Run);

use Outside::{Contained, Plain};

/// All of them.
pub const ATTEMPTS: [Attempt; 77] = [
    ("open-passwd", Plain, files::open_passwd),
    ("open-by-parent-path", Plain, files::open_by_parent_path),
    ("read-proc-1", Plain, files::read_proc_1),
    ("list-processes", Plain, files::list_processes),
    ("write-definitions", Plain, files::write_secret),
    ("stat-outside", Plain, files::stat_outside),
    ("create-outside", Plain, files::create_outside),
    ("rename-out", Plain, files::rename_out),
    ("hard-link-in", Plain, files::hard_link_in),
    ("symlink-out", Plain, files::symlink_out),
    ("mknod", Plain, files::mknod),
    ("open-device", Plain, files::open_device),
    ("open-by-handle", Plain, files::open_by_handle),
    ("scratch-over-its-cap", Plain, files::scratch_over_cap),
    ("files-over-their-number", Plain, files::files_over_number),
    ("descriptors-over-their-number", Plain, files::too_many_open),
    ("use-inherited-descriptors", Plain, files::inherited),
    ("chroot", Plain, files::chroot),
    ("mount", Contained, files::mount),
    ("pivot-root", Contained, files::pivot_root),
    ("mount-api", Contained, files::fsopen),
    ("fanotify", Plain, files::fanotify),
    ("inotify", Plain, files::inotify),
    ("tcp-connect", Plain, network::tcp_connect),
    ("tcp-bind", Plain, network::tcp_bind),
    ("udp-send", Plain, network::udp_send),
    ("unix-connect", Plain, network::unix_connect),
    ("unix-socketpair", Plain, network::socketpair),
    ("netlink", Plain, network::netlink),
    ("packet-socket", Plain, network::packet),
    ("vsock", Plain, network::vsock),
    ("ptrace-the-zygote", Plain, processes::ptrace),
    ("read-the-zygotes-memory", Plain, processes::read_memory),
    ("signal-the-zygote", Plain, processes::signal_zygote),
    ("signal-the-daemon", Plain, processes::signal_daemon),
    ("signal-a-thread", Plain, processes::signal_thread),
    ("signal-by-pidfd", Plain, processes::signal_by_pidfd),
    (
        "signal-by-descriptor",
        Plain,
        processes::signal_by_descriptor,
    ),
    ("take-a-descriptor", Plain, processes::take_descriptor),
    ("compare-with-the-zygote", Plain, processes::compare),
    ("limit-the-zygote", Plain, processes::limits_of_zygote),
    ("fork", Plain, processes::fork),
    ("clone3", Plain, processes::clone3),
    ("thread", Plain, processes::thread),
    (
        "clone-into-namespaces",
        Plain,
        processes::clone_into_namespaces,
    ),
    ("unshare", Plain, processes::unshare),
    ("setns", Plain, processes::setns),
    ("execve", Plain, processes::execve),
    ("exec-a-memory-file", Plain, processes::exec_memory_file),
    ("memory-file", Plain, processes::memory_file),
    ("make-memory-executable", Plain, processes::mprotect_exec),
    ("map-executable-memory", Plain, processes::mmap_exec),
    ("shared-memory", Plain, processes::shared_memory),
    ("system-v-shared-memory", Plain, processes::system_v),
    ("memory-over-its-cap", Plain, processes::memory_over_cap),
    ("become-dumpable", Plain, machine::become_dumpable),
    ("setuid", Plain, machine::setuid),
    ("setgroups", Plain, machine::setgroups),
    ("capset", Plain, machine::capset),
    ("personality", Plain, machine::personality),
    ("real-time", Plain, machine::real_time),
    ("priority", Plain, machine::priority),
    ("bpf", Plain, machine::bpf),
    ("perf-event", Plain, machine::perf_event),
    ("io-uring", Plain, machine::io_uring),
    ("userfaultfd", Plain, machine::userfaultfd),
    ("keyring", Plain, machine::keyring),
    ("io-ports", Plain, machine::io_ports),
    ("kexec", Plain, machine::kexec),
    ("reboot", Plain, machine::reboot),
    ("set-the-clock", Plain, machine::set_clock),
    ("set-the-host-name", Plain, machine::set_host_name),
    ("quota", Plain, machine::quota),
    ("swap", Plain, machine::swap),
    ("load-a-module", Plain, machine::load_module),
    ("remove-a-module", Plain, machine::remove_module),
    ("kernel-log", Plain, machine::kernel_log),
];

impl Target {
    /// From words: folder, port, processes.
    pub fn from_words(words: &[&str]) -> Self {
        let mut words = words.iter();
        let mut next = || words.next().copied().unwrap_or("");
        Self {
            folder: next().to_owned(),
            port: next().parse().unwrap_or(0),
            process: next().parse().unwrap_or(0),
            daemon: next().parse().unwrap_or(0),
        }
    }
}

/// Makes an attempt; gives what came of it, in one line: `escaped`, or `refused`
/// and by what.
pub fn attempt(name: &str, target: &Target) -> String {
    let Some((_, _, run)) = ATTEMPTS.iter().find(|(known, ..)| *known == name) else {
        return format!("unknown attempt {name}");
    };
    match run(target) {
        Ok(()) => "escaped".to_owned(),
        Err(errno) => format!("refused {errno:?}"),
    }
}

/// A call with bad arguments that the kernel refuses with `errno` only if it would
/// have done it with good ones.
fn would(result: Result<i64, Errno>, errno: Errno) -> Result<(), Errno> {
    match result {
        Ok(_) => Ok(()),
        Err(other) if other == errno => Ok(()),
        Err(other) => Err(other),
    }
}
