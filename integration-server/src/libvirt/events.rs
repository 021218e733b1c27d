//! Lifecycle events of a connection's domains. The only unsafe code of the crate:
//! the `virt` crate has no wrapper for domain events.
//!
//! Owns the callback and its registration. The callback does nothing but leave a
//! mark; what happened is read by the collector, so a lost or doubled event costs
//! nothing. Nothing of libvirt's is kept beyond a [`Subscription`]'s life.

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::ptr;
use std::sync::mpsc::SyncSender;

use virt::error::Error;
use virt::sys;

use super::connection::Connection;

/// Events of a connection, until it is dropped.
#[derive(Debug)]
pub struct Subscription<'c> {
    connection: sys::virConnectPtr,
    id: c_int,
    // The connection outlives its subscriptions.
    borrowed: PhantomData<&'c Connection>,
}

impl<'c> Subscription<'c> {
    /// Leaves a mark in `wake` with every lifecycle event; a full channel holds
    /// the mark already.
    ///
    /// # Errors
    /// libvirt's, for a connection without events.
    pub fn to_lifecycle(connection: &'c Connection, wake: SyncSender<()>) -> Result<Self, Error> {
        let pointer = connection.inner().as_ptr();
        let opaque = Box::into_raw(Box::new(wake));
        // SAFETY: `pointer` is open for as long as `connection` is borrowed. For the
        // event id VIR_DOMAIN_EVENT_ID_LIFECYCLE libvirt calls back with the five
        // arguments of `lifecycle`; it takes every callback as the generic type and
        // casts it back by event id, as its C macro VIR_DOMAIN_EVENT_CALLBACK does.
        // `opaque` stays valid until libvirt hands it to `free`, once, after the
        // last call back.
        let id = unsafe {
            let callback: unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void) =
                std::mem::transmute::<Lifecycle, _>(lifecycle);
            sys::virConnectDomainEventRegisterAny(
                pointer,
                ptr::null_mut(),
                sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE as c_int,
                Some(callback),
                opaque.cast(),
                Some(free),
            )
        };
        if id < 0 {
            let error = Error::last_error();
            // SAFETY: a failed registration keeps nothing and never calls `free`, so
            // the box is still ours alone.
            drop(unsafe { Box::from_raw(opaque) });
            return Err(error);
        }
        Ok(Self {
            connection: pointer,
            id,
            borrowed: PhantomData,
        })
    }
}

impl Drop for Subscription<'_> {
    fn drop(&mut self) {
        // SAFETY: the connection is still borrowed, so it is open, and `id` was
        // given by it and is deregistered nowhere else. A dead connection answers
        // with an error and frees the callback when it is closed.
        let _ = unsafe { sys::virConnectDomainEventDeregisterAny(self.connection, self.id) };
    }
}

type Lifecycle =
    unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void) -> c_int;

/// Called by libvirt's event loop. It neither unwinds nor blocks.
unsafe extern "C" fn lifecycle(
    _connection: sys::virConnectPtr,
    _domain: sys::virDomainPtr,
    _event: c_int,
    _detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: `opaque` is the box of `to_lifecycle`, not yet freed; libvirt calls
    // back from its one event loop thread, and a `SyncSender` may be shared anyway.
    let wake = unsafe { &*opaque.cast::<SyncSender<()>>() };
    // Full: the mark is there. Disconnected: nobody waits any more.
    let _ = wake.try_send(());
    0
}

/// Called by libvirt once, when the callback is gone.
unsafe extern "C" fn free(opaque: *mut c_void) {
    // SAFETY: `opaque` is the box of `to_lifecycle`, and this is its only release.
    drop(unsafe { Box::from_raw(opaque.cast::<SyncSender<()>>()) });
}
