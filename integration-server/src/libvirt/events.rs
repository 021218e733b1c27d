//! Events of a connection's domains. The only unsafe code of the crate: the `virt` crate
//! has no wrapper for domain events.
//!
//! Owns the callbacks and their registration. A callback says that something changed, or
//! which domain began to run ([`Event`]); all else is read by the collector, so a lost or
//! doubled event costs a reading at the most, or the grace of a boot. Nothing of libvirt's
//! is kept beyond a [`Subscription`]'s life.
//!
//! | libvirt's event | here |
//! | --- | --- |
//! | lifecycle: started, resumed | [`Event::Began`] |
//! | reboot: the guest restarted from within, or was reset | [`Event::Began`] |
//! | lifecycle: any other; metadata | [`Event::Changed`] |

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::ptr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use uuid::Uuid;
use virt::error::Error;
use virt::sys;

use super::connection::Connection;

/// Events that may wait for the collector. A host has fewer domains, and one that is full
/// of marks loses nothing but graces.
const MAX_EVENTS: usize = 1024;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Something that a reading will show.
    Changed,
    /// This domain began to run, was resumed, or restarted from within.
    Began(Uuid),
}

/// Events on their way from libvirt's thread to a collector.
pub fn queue() -> (SyncSender<Event>, Receiver<Event>) {
    sync_channel(MAX_EVENTS)
}

/// Events of a connection, until it is dropped.
#[derive(Debug)]
pub struct Subscription<'c> {
    connection: sys::virConnectPtr,
    ids: Vec<c_int>,
    // The connection outlives its subscriptions.
    borrowed: PhantomData<&'c Connection>,
}

type Generic = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);
type Lifecycle =
    unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void) -> c_int;
type Metadata =
    unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, *const c_char, *mut c_void);

impl<'c> Subscription<'c> {
    /// Puts what happens to domains into `events`. A driver that has no lifecycle events
    /// is an error; one that lacks the others is polled for what they would tell.
    ///
    /// # Errors
    /// libvirt's, for a connection without events.
    pub fn to_domains(
        connection: &'c Connection,
        events: &SyncSender<Event>,
    ) -> Result<Self, Error> {
        let mut subscription = Self {
            connection: connection.inner().as_ptr(),
            ids: Vec::new(),
            borrowed: PhantomData,
        };
        // SAFETY: libvirt takes every callback as the generic type and casts it back by
        // event id, as its C macro VIR_DOMAIN_EVENT_CALLBACK does; for each id below the
        // function has the arguments that libvirt's header gives that event.
        let (lifecycle, metadata) = unsafe {
            (
                std::mem::transmute::<Lifecycle, Generic>(lifecycle),
                std::mem::transmute::<Metadata, Generic>(metadata),
            )
        };
        subscription.register(sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle, events)?;
        for (id, callback) in [
            (sys::VIR_DOMAIN_EVENT_ID_REBOOT, reboot as Generic),
            (sys::VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, metadata),
        ] {
            if let Err(error) = subscription.register(id, callback, events) {
                tracing::debug!(id, %error, "this host has no such events");
            }
        }
        Ok(subscription)
    }

    fn register(
        &mut self,
        id: sys::virDomainEventID,
        callback: Generic,
        events: &SyncSender<Event>,
    ) -> Result<(), Error> {
        let opaque = Box::into_raw(Box::new(events.clone()));
        // SAFETY: the connection is open for as long as it is borrowed. `callback` has the
        // arguments of this event (see `to_domains`). `opaque` stays valid until libvirt
        // hands it to `free`, once, after the last call back.
        let id = unsafe {
            sys::virConnectDomainEventRegisterAny(
                self.connection,
                ptr::null_mut(),
                id as c_int,
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
        self.ids.push(id);
        Ok(())
    }
}

impl Drop for Subscription<'_> {
    fn drop(&mut self) {
        for id in &self.ids {
            // SAFETY: the connection is still borrowed, so it is open, and `id` was
            // given by it and is deregistered nowhere else. A dead connection answers
            // with an error and frees the callback when it is closed.
            let _ = unsafe { sys::virConnectDomainEventDeregisterAny(self.connection, *id) };
        }
    }
}

/// Called by libvirt's event loop, as the next two. None of them unwinds or blocks.
unsafe extern "C" fn lifecycle(
    _connection: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    _detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    let begins = [sys::VIR_DOMAIN_EVENT_STARTED, sys::VIR_DOMAIN_EVENT_RESUMED];
    let began = c_uint::try_from(event).is_ok_and(|event| begins.contains(&event));
    // SAFETY: libvirt calls back with a domain that is valid until this returns, and with
    // the `opaque` of the registration.
    unsafe {
        tell(
            if began {
                began_of(domain)
            } else {
                Event::Changed
            },
            opaque,
        );
    }
    0
}

unsafe extern "C" fn reboot(
    _connection: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    opaque: *mut c_void,
) {
    // SAFETY: as in `lifecycle`.
    unsafe { tell(began_of(domain), opaque) }
}

unsafe extern "C" fn metadata(
    _connection: sys::virConnectPtr,
    _domain: sys::virDomainPtr,
    _kind: c_int,
    _uri: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: as in `lifecycle`.
    unsafe { tell(Event::Changed, opaque) }
}

/// # Safety
/// The domain is valid.
unsafe fn began_of(domain: sys::virDomainPtr) -> Event {
    let mut uuid = [0_u8; 16];
    // SAFETY: the caller's domain is valid, and libvirt writes VIR_UUID_BUFLEN bytes: 16.
    let done = unsafe { sys::virDomainGetUUID(domain, uuid.as_mut_ptr()) };
    if done < 0 {
        return Event::Changed;
    }
    Event::Began(Uuid::from_bytes(uuid))
}

/// # Safety
/// `opaque` is a registration's.
unsafe fn tell(event: Event, opaque: *mut c_void) {
    // SAFETY: `opaque` is the box of `register`, not yet freed; libvirt calls back from its
    // one event loop thread, and a `SyncSender` may be shared anyway.
    let events = unsafe { &*opaque.cast::<SyncSender<Event>>() };
    // Full: a reading is due already. Disconnected: nobody waits any more.
    let _ = events.try_send(event);
}

/// Called by libvirt once, when the callback is gone.
unsafe extern "C" fn free(opaque: *mut c_void) {
    // SAFETY: `opaque` is the box of `register`, and this is its only release.
    drop(unsafe { Box::from_raw(opaque.cast::<SyncSender<Event>>()) });
}
