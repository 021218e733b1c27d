//! What is known of an open file, by its descriptor.
//!
//! Owns the questions to the kernel, and which mounts are the agent's own; what follows
//! is [`policy`](super::policy)'s. Whatever cannot be found out speaks against a mark.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, IFlags, StatVfsMountFlags, StatxFlags};
use rustix::io::Errno;

use super::policy::Facts;
use crate::fanotify::mountinfo::Followed;

/// File systems that cannot be written, however they are mounted: by `statfs`'s type.
const NEVER_WRITTEN: [u64; 2] = [0xE0F5_E1E2, 0x7371_7368]; // erofs, squashfs
/// The flag of `FS_IOC_GETFLAGS` that says that fs-verity guards the content.
const VERITY: u32 = 0x0010_0000;

/// What is known of a file.
///
/// # Errors
/// The kernel's: the file is not marked.
pub fn of(file: BorrowedFd<'_>, mounts: &mut Mounts) -> Result<Facts, Errno> {
    let wanted = StatxFlags::UID | StatxFlags::MODE | StatxFlags::MNT_ID;
    let stat = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, wanted)?;
    if !StatxFlags::from_bits_retain(stat.stx_mask).contains(wanted) {
        return Err(Errno::NOSYS);
    }
    Ok(Facts {
        owner: stat.stx_uid,
        mode: u32::from(stat.stx_mode),
        acl: has_acl(file),
        plain_mount: mounts.is_plain(stat.stx_mnt_id),
        unchangeable: unchangeable(file),
    })
}

fn has_acl(file: BorrowedFd<'_>) -> bool {
    let mut none = [0_u8; 0];
    let size = rustix::fs::fgetxattr(file, c"system.posix_acl_access", &mut none[..]);
    !matches!(size, Err(Errno::NODATA | Errno::OPNOTSUPP))
}

fn unchangeable(file: BorrowedFd<'_>) -> bool {
    let flags = rustix::fs::ioctl_getflags(file).unwrap_or(IFlags::empty());
    if flags.contains(IFlags::IMMUTABLE) || flags.bits() & VERITY != 0 {
        return true;
    }
    // A mount that is read-only may be written through another one.
    let kind = rustix::fs::fstatfs(file).map(|stat| u64::try_from(stat.f_type).unwrap_or(0));
    kind.is_ok_and(|kind| NEVER_WRITTEN.contains(&kind))
        && rustix::fs::fstatvfs(file)
            .is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// The mounts of the agent's own namespace that map no ids. Through any other, owner
/// and permissions may be other ones than those that count elsewhere.
#[derive(Debug, Default)]
pub struct Mounts {
    table: Followed,
    plain: HashSet<u64>,
}

impl Mounts {
    /// Without a table no mount is known, and no file is marked.
    fn is_plain(&mut self, id: u64) -> bool {
        if let Some(table) = self.table.news() {
            self.plain = table.map(|table| plain(&table)).unwrap_or_default();
        }
        self.plain.contains(&id)
    }
}

/// The ids of mounts that map no ids, of a table as the kernel writes it.
fn plain(table: &str) -> HashSet<u64> {
    let id = |line: &str| {
        let mut words = line.split(' ');
        let id = words.next()?.parse().ok()?;
        let options = words.nth(4)?;
        let mapped = options.split(',').any(|option| option == "idmapped");
        (!mapped).then_some(id)
    };
    table.lines().filter_map(id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    #[test]
    fn mounts_that_map_ids_are_not_plain() {
        let table = "22 1 0:21 / /proc rw,nosuid shared:5 - proc proc rw\n\
                     31 22 8:1 /a\\040b /mnt rw,idmapped,relatime - ext4 /dev/sda1 rw\n\
                     nonsense\n32 22 8:1 / /idmapped rw - ext4 idmapped rw\n33 1";
        assert_eq!(plain(table), HashSet::from([22, 32]));
    }

    #[test]
    fn a_file_of_this_namespace_is_seen_as_it_is() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let facts = of(file.as_file().as_fd(), &mut Mounts::default()).unwrap();
        assert_eq!(facts.owner, nix::unistd::getuid().as_raw());
        assert_eq!(facts.mode & 0o777, 0o600);
        assert!(facts.plain_mount && !facts.acl && !facts.unchangeable);
    }
}
