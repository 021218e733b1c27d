//! Sockets by which a daemon is asked from its own machine.
//!
//! Owns how such a socket is opened and who may use it; does not own what is said.
//! The socket's mode lets root and the daemon's own user in and nobody else, and
//! [`is_trusted`] holds if somebody changed that.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tokio::net::{UnixListener, UnixStream};

/// Opens a socket (mode 0600) in a folder that is made if need be. What is there is
/// taken for left over: whoever calls knows that no other daemon serves it.
///
/// # Errors
/// The file system's.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Whether somebody serves the socket.
pub fn is_served(path: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(path).is_ok()
}

/// Whether the other end is root's, or of the user `own`, who runs this daemon.
///
/// # Errors
/// The kernel's.
pub fn is_trusted(stream: &UnixStream, own: u32) -> io::Result<bool> {
    let peer = stream.peer_cred()?.uid();
    let trusted = peer == 0 || peer == own;
    if !trusted {
        tracing::warn!(uid = peer, "a command of another user was turned away");
    }
    Ok(trusted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[tokio::test]
    async fn what_is_left_over_is_replaced_and_only_the_owner_may_use_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/daemon.sock");
        let first = listen(&path).unwrap();
        assert!(is_served(&path));
        drop(first);
        assert!(!is_served(&path), "it is left over");
        let listener = listen(&path).unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        let client = UnixStream::connect(&path).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        assert!(is_trusted(&stream, metadata.uid()).unwrap());
        let others = is_trusted(&stream, metadata.uid() + 1).unwrap();
        assert_eq!(others, metadata.uid() == 0, "root may always ask");
        drop(client);
    }
}
