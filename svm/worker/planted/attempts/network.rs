//! Sockets of any kind.

use super::Target;
use super::kernel::{call, text};
use nix::errno::Errno;
use nix::libc;

fn socket(family: i32, kind: i32, protocol: i32) -> Result<i64, Errno> {
    call(
        libc::SYS_socket,
        &[family.into(), kind.into(), protocol.into()],
    )
}

/// `struct sockaddr_in` of 127.0.0.1.
fn loopback(port: u16) -> Vec<u8> {
    let family = (libc::AF_INET as u16).to_ne_bytes();
    [&family[..], &port.to_be_bytes(), &[127, 0, 0, 1], &[0; 8]].concat()
}

fn with_address(number: i64, fd: i64, address: &Vec<u8>) -> Result<(), Errno> {
    let args = [fd.into(), address.into(), (address.len() as i64).into()];
    call(number, &args).map(drop)
}

pub fn tcp_connect(target: &Target) -> Result<(), Errno> {
    let fd = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    with_address(libc::SYS_connect, fd, &loopback(target.port))
}

pub fn tcp_bind(_: &Target) -> Result<(), Errno> {
    let fd = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    with_address(libc::SYS_bind, fd, &loopback(0))?;
    call(libc::SYS_listen, &[fd.into(), 1.into()]).map(drop)
}

pub fn udp_send(target: &Target) -> Result<(), Errno> {
    let fd = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    let to = loopback(target.port);
    let args = [
        fd.into(),
        b"out".into(),
        3.into(),
        0.into(),
        (&to).into(),
        (to.len() as i64).into(),
    ];
    call(libc::SYS_sendto, &args).map(drop)
}

pub fn unix_connect(target: &Target) -> Result<(), Errno> {
    let fd = socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)?;
    let family = (libc::AF_UNIX as u16).to_ne_bytes();
    let path = text(&format!("{}/socket", target.folder));
    with_address(libc::SYS_connect, fd, &[&family[..], &path].concat())
}

pub fn socketpair(_: &Target) -> Result<(), Errno> {
    let args = [
        libc::AF_UNIX.into(),
        libc::SOCK_STREAM.into(),
        0.into(),
        (&[0; 8]).into(),
    ];
    call(libc::SYS_socketpair, &args).map(drop)
}

pub fn netlink(_: &Target) -> Result<(), Errno> {
    socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE).map(drop)
}

pub fn packet(_: &Target) -> Result<(), Errno> {
    socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0).map(drop)
}

pub fn vsock(_: &Target) -> Result<(), Errno> {
    socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0).map(drop)
}
