//! The only unsafe code of this library: descriptors out of packets, fork, what ends
//! or confines a forked child, mapped content.

#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::{ForkResult, Pid};
use std::ffi::CString;
use std::io::{self, IoSliceMut};
use std::marker::PhantomData;
use std::ops::Deref;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// Most descriptors that the kernel puts in one packet (`SCM_MAX_FD`). With room
/// for all of them, none can be installed here without our learning of it.
const SCM_MAX_FD: usize = 253;

/// One packet as it was received.
pub(crate) struct Received {
    /// Bytes written to the buffer.
    pub len: usize,
    /// The packet was longer than the buffer, or lost descriptors.
    pub truncated: bool,
    /// Every descriptor that came with it.
    pub fds: Vec<OwnedFd>,
}

/// Receives one packet; descriptors are close-on-exec.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> nix::Result<Received> {
    let mut control = nix::cmsg_space!([i32; SCM_MAX_FD]);
    let mut slices = [IoSliceMut::new(buffer)];
    let packet = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let truncated = packet
        .flags
        .intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
    let mut fds = Vec::new();
    for message in packet.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = message {
            // SAFETY: the kernel has just installed these descriptors for us;
            // nothing else in this process knows their numbers.
            fds.extend(
                received
                    .into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    Ok(Received {
        len: packet.bytes,
        truncated,
        fds,
    })
}

/// Forks. Gives the child's id in the parent and nothing in the child.
///
/// Fails when the process has more than one thread: a lock that another thread
/// holds would stay locked in the child for ever.
pub(crate) fn fork_single_threaded() -> io::Result<Option<Pid>> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!(
            "the zygote has {threads} threads instead of one"
        )));
    }
    // SAFETY: this is the only thread, as has just been checked, so the child may
    // go on as any process would.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// Closes every descriptor but the standard three and `keep`.
///
/// To be called in a forked child only, whose copies of the zygote's descriptors
/// have no owner that would still use them.
pub(crate) fn close_all_but(keep: BorrowedFd<'_>) -> io::Result<()> {
    const FIRST: u32 = 3;
    let keep = u32::try_from(keep.as_raw_fd()).map_err(io::Error::other)?;
    let close = |first: u32, last: u32| {
        if first > last {
            return Ok(());
        }
        // SAFETY: close_range only closes descriptors. The caller owns `keep`, and
        // every other owner in this child has been dropped or is never dropped.
        Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) }).map(drop)
    };
    if keep > FIRST {
        close(FIRST, keep - 1)?;
    }
    close(keep.saturating_add(1).max(FIRST), u32::MAX)?;
    Ok(())
}

/// Ends a forked child at once: no exit handlers, which are the zygote's.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes any code, does not return, and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// Highest capability that a kernel could have.
const LAST_CAPABILITY: libc::c_ulong = 63;

/// Takes every capability out of the bounding and the ambient set. A process
/// without the right to do so is left as it is: it has no capability to keep.
pub(crate) fn drop_bounding_set() -> io::Result<()> {
    for capability in 0..=LAST_CAPABILITY {
        // SAFETY: these operations take integers, and change this thread's
        // credentials only.
        match Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }) {
            Ok(_) => {}
            // Past the last that this kernel has.
            Err(Errno::EINVAL) => break,
            Err(Errno::EPERM) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    let (clear, zero) = (libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0);
    // SAFETY: as above.
    Errno::result(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, clear, zero, zero, zero) })?;
    Ok(())
}

/// Gives up every effective, permitted and inheritable capability.
pub(crate) fn clear_capabilities() -> io::Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3`, whose sets are two words each.
    const VERSION: u32 = 0x2008_0522;
    let header = [VERSION, 0];
    let none = [0_u32; 6];
    // SAFETY: header and sets have the layout of this version (version and pid; two
    // times three words), and are only read.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) })?;
    Ok(())
}

/// Joins a new, empty session keyring.
pub(crate) fn new_session_keyring() -> io::Result<()> {
    /// `KEYCTL_JOIN_SESSION_KEYRING`
    const JOIN: libc::c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring; nothing is written.
    Errno::result(unsafe { libc::syscall(libc::SYS_keyctl, JOIN, std::ptr::null::<u8>()) })?;
    Ok(())
}

/// Has the C library give memory back that a scan no longer uses.
///
/// By default its allocator learns from the first large block that is freed to take
/// such blocks from the heap, and keeps what is free there: one large picture would
/// cost a worker 30 MB for the rest of its life.
pub(crate) fn give_memory_back() {
    /// From this size on blocks are mapped, and unmapped when freed (bytes). Blocks
    /// that every scan needs are smaller, and stay cheap.
    const MAPPED_FROM: libc::c_int = 1 << 20;
    /// Free memory at the heap's end that is kept (bytes).
    const KEPT: libc::c_int = 1 << 20;
    // SAFETY: sets numbers of the allocator, in a process of one thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

/// Closes the heap before it is shared: what loading freed goes back to the kernel,
/// and the gaps that are left are taken, and never used.
///
/// A worker's allocations would go into these gaps otherwise, all over the heap, and
/// copy a page of definitions for every few bytes of its own. So they go to the
/// heap's end, side by side.
pub(crate) fn close_heap() {
    /// Sizes of blocks that gaps are filled with, the largest first (bytes).
    const LARGE: [usize; 7] = [65_536, 32_768, 16_384, 8192, 4096, 2048, 1024];
    /// Smaller ones: every size that the allocator has (bytes).
    const STEP: usize = 16;
    /// What the allocator may keep at the heap's end (bytes).
    const KEPT: usize = 8192;
    let small = (1..1024 / STEP).rev().map(|n| n * STEP);
    // SAFETY: all of it is the allocator's own business. No block is written to, and
    // the one that is freed is not used after it.
    unsafe {
        libc::malloc_trim(0);
        let end = (libc::sbrk(0) as usize).saturating_sub(KEPT);
        for size in LARGE.into_iter().chain(small) {
            loop {
                let block = std::hint::black_box(libc::malloc(size));
                if block.is_null() || block as usize >= end {
                    libc::free(block);
                    break;
                }
            }
        }
    }
}

/// Has the C library load its converters from these character sets to UTF-8, and
/// keep them: a worker that needs one could not load it any more. Those that this
/// system does not have are passed over.
pub fn keep_charsets(names: &[&str]) {
    for name in names {
        let Ok(name) = CString::new(*name) else {
            continue;
        };
        // SAFETY: both names are C strings. What is opened is never closed, which is
        // what keeps the converter loaded.
        let _ = unsafe { libc::iconv_open(c"UTF-8".as_ptr(), name.as_ptr()) };
    }
}

/// Bytes of a file that cannot change, mapped.
#[derive(Debug)]
pub struct Mapped<'a> {
    start: NonNull<libc::c_void>,
    size: usize,
    file: PhantomData<BorrowedFd<'a>>,
}

impl<'a> Mapped<'a> {
    /// Maps `size` bytes of a file that is sealed, or nobody else's: nobody can
    /// shrink it or write to it while it is mapped.
    pub(crate) fn new(file: BorrowedFd<'a>, size: usize) -> io::Result<Self> {
        let mut start = NonNull::dangling();
        if size > 0 {
            let (read, private) = (libc::PROT_READ, libc::MAP_PRIVATE);
            // SAFETY: a new mapping at an address of the kernel's choice touches
            // nothing that there is.
            let mapped = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    size,
                    read,
                    private,
                    file.as_raw_fd(),
                    0,
                )
            };
            if mapped == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            start = NonNull::new(mapped).ok_or(io::ErrorKind::AddrNotAvailable)?;
        }
        Ok(Self {
            start,
            size,
            file: PhantomData,
        })
    }
}

impl Deref for Mapped<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `size` bytes are mapped at `start`, or it is dangling and they are
        // none; they are not written to, by the contract of `new`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.size) }
    }
}

impl Drop for Mapped<'_> {
    fn drop(&mut self) {
        if self.size > 0 {
            // SAFETY: the mapping is ours, and no slice of it outlives this.
            unsafe { libc::munmap(self.start.as_ptr(), self.size) };
        }
    }
}
