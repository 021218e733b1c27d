//! Files: beyond the scratch directory, and more than it may hold.

use super::kernel::{borrow, call, text, words};
use super::{Target, would};
use nix::errno::Errno;
use nix::libc;

/// Bytes that no test's scratch directory has room for.
const OVER_SCRATCH: usize = 24 << 20;
/// Files that no test's scratch directory has room for.
const OVER_FILES: usize = 400;
/// Descriptors that no test's worker may have.
const OVER_OPEN: usize = 400;
const HERE: i64 = libc::AT_FDCWD as i64;

fn open(path: &str, flags: i32) -> Result<i64, Errno> {
    call(
        libc::SYS_openat,
        &[
            HERE.into(),
            (&text(path)).into(),
            flags.into(),
            0o600.into(),
        ],
    )
}

fn read_some(fd: i64) -> Result<(), Errno> {
    let read = call(libc::SYS_read, &[fd.into(), (&[0; 64]).into(), 64.into()])?;
    if read > 0 {
        Ok(())
    } else {
        Err(Errno::ENODATA)
    }
}

pub fn open_passwd(_: &Target) -> Result<(), Errno> {
    read_some(open("/etc/passwd", libc::O_RDONLY)?)
}

pub fn open_by_parent_path(_: &Target) -> Result<(), Errno> {
    let up = "../".repeat(40);
    read_some(open(&format!("{up}etc/passwd"), libc::O_RDONLY)?)
}

pub fn read_proc_1(_: &Target) -> Result<(), Errno> {
    read_some(open("/proc/1/status", libc::O_RDONLY)?)
}

pub fn list_processes(_: &Target) -> Result<(), Errno> {
    let fd = open("/proc", libc::O_RDONLY | libc::O_DIRECTORY)?;
    let args = [fd.into(), (&[0; 4096]).into(), 4096.into()];
    call(libc::SYS_getdents64, &args).map(drop)
}

pub fn write_secret(target: &Target) -> Result<(), Errno> {
    let fd = open(&format!("{}/secret", target.folder), libc::O_WRONLY)?;
    call(libc::SYS_write, &[fd.into(), b"changed".into(), 7.into()]).map(drop)
}

pub fn stat_outside(target: &Target) -> Result<(), Errno> {
    let path = text(&format!("{}/secret", target.folder));
    let args = [HERE.into(), (&path).into(), (&[0; 256]).into(), 0.into()];
    call(libc::SYS_newfstatat, &args).map(drop)
}

pub fn create_outside(target: &Target) -> Result<(), Errno> {
    let flags = libc::O_CREAT | libc::O_WRONLY;
    open(&format!("{}/created", target.folder), flags).map(drop)
}

pub fn rename_out(target: &Target) -> Result<(), Errno> {
    open("to-be-moved", libc::O_CREAT | libc::O_WRONLY)?;
    let to = text(&format!("{}/moved", target.folder));
    let args = [
        HERE.into(),
        (&text("to-be-moved")).into(),
        HERE.into(),
        (&to).into(),
        0.into(),
    ];
    call(libc::SYS_renameat2, &args).map(drop)
}

pub fn hard_link_in(target: &Target) -> Result<(), Errno> {
    let from = text(&format!("{}/secret", target.folder));
    let args = [
        HERE.into(),
        (&from).into(),
        HERE.into(),
        (&text("linked")).into(),
        0.into(),
    ];
    call(libc::SYS_linkat, &args).map(drop)
}

pub fn symlink_out(target: &Target) -> Result<(), Errno> {
    let to = text(&format!("{}/secret", target.folder));
    let args = [(&to).into(), HERE.into(), (&text("symlink")).into()];
    call(libc::SYS_symlinkat, &args)?;
    read_some(open("symlink", libc::O_RDONLY)?)
}

/// A second `/dev/null`.
pub fn mknod(_: &Target) -> Result<(), Errno> {
    let mode = i64::from(libc::S_IFCHR | 0o600);
    let device = libc::makedev(1, 3) as i64;
    let args = [
        HERE.into(),
        (&text("device")).into(),
        mode.into(),
        device.into(),
    ];
    call(libc::SYS_mknodat, &args).map(drop)
}

pub fn open_device(_: &Target) -> Result<(), Errno> {
    open("/dev/mem", libc::O_RDONLY)
        .or_else(|_| open("/dev/kmsg", libc::O_RDONLY))
        .map(drop)
}

pub fn open_by_handle(_: &Target) -> Result<(), Errno> {
    // A handle without content: what matters is who may ask. Eight bytes of it.
    let handle = words(&[8 | 1 << 32, 0]);
    let root = open(".", libc::O_RDONLY)?;
    let args = [root.into(), (&handle).into(), libc::O_RDONLY.into()];
    would(call(libc::SYS_open_by_handle_at, &args), Errno::ESTALE)
}

pub fn scratch_over_cap(_: &Target) -> Result<(), Errno> {
    let fd = open("large", libc::O_CREAT | libc::O_WRONLY)?;
    let part = vec![0x55; 1 << 20];
    for _ in 0..OVER_SCRATCH >> 20 {
        let args = [fd.into(), (&part).into(), (part.len() as i64).into()];
        let written = call(libc::SYS_write, &args)?;
        if written < part.len() as i64 {
            return Err(Errno::ENOSPC);
        }
    }
    Ok(())
}

pub fn files_over_number(_: &Target) -> Result<(), Errno> {
    for number in 0..OVER_FILES {
        let fd = open(&format!("many-{number}"), libc::O_CREAT | libc::O_WRONLY)?;
        call(libc::SYS_close, &[fd.into()])?;
    }
    Ok(())
}

pub fn too_many_open(_: &Target) -> Result<(), Errno> {
    open("open", libc::O_CREAT | libc::O_WRONLY)?;
    for _ in 0..OVER_OPEN {
        open("open", libc::O_RDONLY)?;
    }
    Ok(())
}

/// Anything that is open besides the channel, the content, and nothing at all.
pub fn inherited(_: &Target) -> Result<(), Errno> {
    let allowed = ["socket", "memory"];
    let found: Vec<_> = open_descriptors().filter_map(kind_of).collect();
    let mut foreign: Vec<_> = found
        .iter()
        .filter(|kind| **kind != "null" && !allowed.contains(kind))
        .collect();
    // Of sockets there is one.
    let sockets = found.iter().filter(|kind| **kind == "socket").count();
    if sockets > 1 {
        foreign.push(&"socket");
    }
    if foreign.is_empty() {
        Err(Errno::EBADF)
    } else {
        Ok(())
    }
}

/// The numbers of this process's descriptors.
pub fn open_descriptors() -> impl Iterator<Item = i32> {
    (0..1024)
        .filter(|fd: &i32| call(libc::SYS_fcntl, &[(*fd).into(), libc::F_GETFD.into()]).is_ok())
}

/// Whether a descriptor that is open is a socket: in a worker, its channel.
pub fn is_socket(fd: i32) -> bool {
    kind_of(fd) == Some("socket")
}

fn kind_of(fd: i32) -> Option<&'static str> {
    let stat = nix::sys::stat::fstat(borrow(fd)).ok()?;
    Some(match stat.st_mode & libc::S_IFMT {
        libc::S_IFCHR if stat.st_rdev == libc::makedev(1, 3) => "null",
        libc::S_IFSOCK => "socket",
        libc::S_IFREG => "memory",
        _ => "other",
    })
}

pub fn chroot(target: &Target) -> Result<(), Errno> {
    call(libc::SYS_chroot, &[(&text(&target.folder)).into()])
        .or_else(|_| call(libc::SYS_chroot, &[(&text(".")).into()]))
        .map(drop)
}

fn mount_tmpfs() -> Result<i64, Errno> {
    let _ = call(
        libc::SYS_mkdirat,
        &[HERE.into(), (&text("mounted")).into(), 0o700.into()],
    );
    let args = [
        (&text("none")).into(),
        (&text("mounted")).into(),
        (&text("tmpfs")).into(),
        0.into(),
        0.into(),
    ];
    call(libc::SYS_mount, &args)
}

pub fn mount(_: &Target) -> Result<(), Errno> {
    mount_tmpfs().map(drop)
}

pub fn pivot_root(_: &Target) -> Result<(), Errno> {
    // Inside the sandbox the mount fails, and the call itself is still tried.
    if mount_tmpfs().is_ok() {
        call(libc::SYS_chdir, &[(&text("mounted")).into()])?;
    }
    let here = text(".");
    call(libc::SYS_pivot_root, &[(&here).into(), (&here).into()]).map(drop)
}

pub fn fsopen(_: &Target) -> Result<(), Errno> {
    call(libc::SYS_fsopen, &[(&text("tmpfs")).into(), 0.into()]).map(drop)
}

pub fn fanotify(_: &Target) -> Result<(), Errno> {
    call(libc::SYS_fanotify_init, &[0.into(), 0.into()]).map(drop)
}

pub fn inotify(_: &Target) -> Result<(), Errno> {
    call(libc::SYS_inotify_init1, &[0.into()]).map(drop)
}
