//! The addresses that agents are told.
//!
//! What the settings list; else where the listener listens; else, when that is
//! every interface, each interface's address that others can reach.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use palisade_protocol::bounded::Text;
use palisade_protocol::control::{MAX_ADDRESSES, SvmAddress};

use crate::settings::Advertised;

/// The addresses for a listener at `listening`.
pub fn advertised(listening: SocketAddr, configured: &[Advertised]) -> Vec<SvmAddress> {
    if configured.is_empty() {
        return choose(listening, interfaces());
    }
    configured
        .iter()
        .map(|given| SvmAddress {
            network: Text::cut(&given.network),
            address: given.address,
        })
        .collect()
}

fn choose(listening: SocketAddr, interfaces: Vec<(String, IpAddr)>) -> Vec<SvmAddress> {
    let at = |network: &str, ip: IpAddr| SvmAddress {
        network: Text::cut(network),
        address: SocketAddr::new(ip, listening.port()),
    };
    if !listening.ip().is_unspecified() {
        return vec![at("", listening.ip())];
    }
    let found: Vec<SvmAddress> = interfaces
        .into_iter()
        .filter(|(_, ip)| listening.is_ipv6() || ip.is_ipv4())
        .filter(|(_, ip)| can_be_reached(*ip))
        .map(|(name, ip)| at(&name, ip))
        .take(MAX_ADDRESSES)
        .collect();
    if found.is_empty() {
        vec![at("", Ipv4Addr::LOCALHOST.into())]
    } else {
        found
    }
}

fn can_be_reached(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local() && !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local() && !ip.is_unspecified(),
    }
}

fn interfaces() -> Vec<(String, IpAddr)> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    all.filter_map(|interface| {
        let address = interface.address?;
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (None, Some(v6)) => IpAddr::V6(v6.ip()),
            (None, None) => return None,
        };
        Some((interface.interface_name, ip))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(listening: &str, interfaces: &[(&str, &str)]) -> Vec<String> {
        let interfaces = interfaces
            .iter()
            .map(|(name, ip)| ((*name).to_owned(), ip.parse().unwrap()))
            .collect();
        choose(listening.parse().unwrap(), interfaces)
            .into_iter()
            .map(|told| format!("{}={}", told.network.as_str(), told.address))
            .collect()
    }

    #[test]
    fn loopback_is_told_only_when_there_is_nothing_else() {
        let lo = ("lo", "127.0.0.1");
        assert_eq!(told("10.0.0.5:1", &[lo]), ["=10.0.0.5:1"]);
        assert_eq!(told("0.0.0.0:1", &[lo]), ["=127.0.0.1:1"]);
        let eth = ("eth0", "192.0.2.7");
        let six = ("eth0", "2001:db8::7");
        assert_eq!(told("0.0.0.0:1", &[lo, eth, six]), ["eth0=192.0.2.7:1"]);
        assert_eq!(
            told("[::]:1", &[lo, eth, six]),
            ["eth0=192.0.2.7:1", "eth0=[2001:db8::7]:1"]
        );
    }
}
