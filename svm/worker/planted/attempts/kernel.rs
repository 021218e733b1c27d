//! The only unsafe code of this program: system calls by number, and what the
//! attempts need to lay before them.

#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::libc;
use std::os::fd::BorrowedFd;

/// One argument of a system call.
pub enum Arg {
    /// A number.
    Number(i64),
    /// Bytes that the kernel reads or writes: a structure, or a string with its NUL.
    Bytes(Vec<u8>),
}

impl From<i32> for Arg {
    fn from(number: i32) -> Self {
        Self::Number(number.into())
    }
}

impl From<i64> for Arg {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<&Vec<u8>> for Arg {
    fn from(bytes: &Vec<u8>) -> Self {
        Self::Bytes(bytes.clone())
    }
}

impl<const N: usize> From<&[u8; N]> for Arg {
    fn from(bytes: &[u8; N]) -> Self {
        Self::Bytes(bytes.to_vec())
    }
}

/// A system call. What it writes into `Bytes` is not to be looked at.
pub fn call(number: i64, args: &[Arg]) -> Result<i64, Errno> {
    let mut words = [0_i64; 6];
    // What the kernel writes must not land in what Rust holds to be constant.
    let mut copies: Vec<Vec<u8>> = Vec::new();
    for (word, arg) in words.iter_mut().zip(args) {
        *word = match arg {
            Arg::Number(number) => *number,
            Arg::Bytes(bytes) => {
                copies.push(bytes.clone());
                copies.last_mut().map_or(0, |copy| copy.as_mut_ptr() as i64)
            }
        };
    }
    let [a, b, c, d, e, f] = words;
    // SAFETY: pointers among the arguments are to copies that live for the call and
    // are as long as the attempts' tables say that the kernel needs. This program
    // makes calls that are meant to fail, and runs for tests only.
    Errno::result(unsafe { libc::syscall(number, a, b, c, d, e, f) })
}

/// A child that ends at once, made by a call that is to make it.
pub fn child_ends(made: Result<i64, Errno>) -> Result<(), Errno> {
    match made? {
        // SAFETY: ends this process, which is the child, and touches nothing.
        0 => unsafe { libc::_exit(0) },
        child => {
            let _ = call(
                libc::SYS_wait4,
                &[child.into(), 0.into(), 0.into(), 0.into()],
            );
            Ok(())
        }
    }
}

/// A structure of native integers, as bytes.
pub fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// A string with its NUL.
pub fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

/// Memory whose address can stand in a structure. Never freed: the process is short.
pub fn address_of(bytes: Vec<u8>) -> u64 {
    bytes.leak().as_ptr() as u64
}

/// A descriptor by its number, which was just seen to be open.
pub fn borrow(fd: i32) -> BorrowedFd<'static> {
    // SAFETY: nothing in this process closes it while it is looked at.
    unsafe { BorrowedFd::borrow_raw(fd) }
}
