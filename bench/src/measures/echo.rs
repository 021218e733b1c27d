//! What this machine itself does to requests that are sent by the clock: datagrams
//! that a thread sends back as they are, at the same rate. Whatever serves requests
//! here is at least as late as this.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// How long the last answers are waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of a datagram: the request's number.
const NUMBER_BYTES: usize = 8;
/// Ends the thread that sends back.
const END: u64 = u64::MAX;

/// Milliseconds from the moment at which each datagram was due to its return; those
/// that got lost are left out.
pub(super) fn by_the_clock(rate: u32, span: Duration) -> Result<Vec<f64>> {
    let open = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("no port for the echo");
    let (near, far) = (open()?, open()?);
    near.connect(far.local_addr()?)?;
    far.connect(near.local_addr()?)?;
    near.set_read_timeout(Some(PATIENCE))?;
    let total = (f64::from(rate) * span.as_secs_f64()) as u64;
    let started = Instant::now();
    let due = move |number: u64| started + Duration::from_secs_f64(number as f64 / f64::from(rate));
    let echo = thread::spawn(move || send_back(&far));
    let receiving = near.try_clone()?;
    let answers = thread::spawn(move || receive(&receiving, total, due));
    for number in 0..total {
        if let Some(early) = due(number).checked_duration_since(Instant::now()) {
            thread::sleep(early);
        }
        near.send(&number.to_le_bytes())?;
    }
    let answered = answers.join().ok().context("the echo's receiver died")??;
    near.send(&END.to_le_bytes())?;
    echo.join().ok().context("the echo died")??;
    ensure!(!answered.is_empty(), "the echo answered nothing");
    Ok(answered)
}

fn send_back(far: &UdpSocket) -> Result<()> {
    let mut bytes = [0; NUMBER_BYTES];
    loop {
        far.recv(&mut bytes)?;
        if u64::from_le_bytes(bytes) == END {
            return Ok(());
        }
        far.send(&bytes)?;
    }
}

fn receive(near: &UdpSocket, total: u64, due: impl Fn(u64) -> Instant) -> Result<Vec<f64>> {
    let mut answered = Vec::new();
    let mut bytes = [0; NUMBER_BYTES];
    while (answered.len() as u64) < total {
        match near.recv(&mut bytes) {
            Ok(_) => {
                let late = due(u64::from_le_bytes(bytes)).elapsed();
                answered.push(late.as_secs_f64() * 1e3);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                break;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(answered)
}
