//! Addresses of the bridge's network: 10.N.0.0/16 with N from 241 to 254, whichever is free on
//! the host when the bridge is made.

use std::net::Ipv4Addr;

/// Length of the network's prefix.
pub(super) const PREFIX: u8 = 16;
/// Second octets of the networks that are tried.
const CANDIDATES: std::ops::RangeInclusive<u8> = 241..=254;

/// A network of the host: an address in it and the length of its prefix.
pub(super) type Route = (Ipv4Addr, u8);

/// The first candidate that meets no route of the host. A default route meets none.
pub(super) fn free_network(routes: &[Route]) -> Option<Ipv4Addr> {
    let mut networks = CANDIDATES.map(|n| Ipv4Addr::new(10, n, 0, 0));
    networks.find(|network| {
        !routes.iter().any(|(address, prefix)| *prefix > 0 && meets(*network, *address, *prefix))
    })
}

/// The routes in the kernel's table (proc(5), `/proc/net/route`): numbers in the byte order of the
/// network, written as those of the machine. Lines that are no route are left out.
pub(super) fn routes(table: &str) -> Vec<Route> {
    let number = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::from_be);
    let route = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let destination = number(fields.next()?)?;
        let mask = number(fields.nth(5)?)?;
        Some((Ipv4Addr::from_bits(destination), mask.leading_ones() as u8))
    };
    table.lines().skip(1).filter_map(route).collect()
}

fn meets(network: Ipv4Addr, address: Ipv4Addr, prefix: u8) -> bool {
    let shift = 32 - u32::from(prefix.min(PREFIX));
    network.to_bits() >> shift == address.to_bits() >> shift
}

/// Whether a stored network is one of the candidates.
pub(super) fn is_network(network: Ipv4Addr) -> bool {
    let [ten, n, c, d] = network.octets();
    ten == 10 && CANDIDATES.contains(&n) && c == 0 && d == 0
}

/// The bridge's own address.
pub(super) fn gateway(network: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(network.to_bits() | 1)
}

/// The first address behind `last` that is not `taken`, round and round: one that was given back
/// is not given out at once, while others may remember it.
pub(super) fn next(network: Ipv4Addr, last: u16, taken: &[Ipv4Addr]) -> Option<Ipv4Addr> {
    // 0 and 1 are the network and the bridge, the last one is for broadcasts.
    const FIRST: u32 = 2;
    const COUNT: u32 = 0xffff - FIRST;
    let start = u32::from(last).max(FIRST - 1) + 1 - FIRST;
    (0..COUNT)
        .map(|step| Ipv4Addr::from_bits(network.to_bits() | (FIRST + (start + step) % COUNT)))
        .find(|address| !taken.contains(address))
}

/// The locally administered hardware address of the interface with `address`.
pub(super) fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x62, a, b, c, d]
}

/// Name on the host of the interface whose other end has `address`; 11 bytes of at most 15.
pub(super) fn link_name(address: Ipv4Addr) -> String {
    format!("bh-{:08x}", address.to_bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    #[test]
    fn network_that_the_host_uses_is_not_taken() {
        let free = |routes: &[(&str, u8)]| {
            let routes: Vec<Route> = routes.iter().map(|(a, p)| (ip(a), *p)).collect();
            free_network(&routes).map(|network| network.to_string())
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(free(&[("0.0.0.0", 0), ("192.0.2.0", 24)]), some("10.241.0.0"));
        assert_eq!(free(&[("10.241.7.0", 24), ("10.242.0.1", 32)]), some("10.243.0.0"));
        assert_eq!(free(&[("10.0.0.0", 8)]), None);
    }

    #[test]
    fn routes_are_read_from_the_kernels_table() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n\
                     eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\n\
                     eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\nx\ty\n";
        assert_eq!(routes(table), [(ip("0.0.0.0"), 0), (ip("192.0.2.0"), 24)]);
    }

    #[test]
    fn addresses_go_round_and_leave_out_those_in_use() {
        let network = ip("10.241.0.0");
        assert_eq!(next(network, 0, &[]), Some(ip("10.241.0.2")));
        assert_eq!(next(network, 2, &[]), Some(ip("10.241.0.3")));
        assert_eq!(next(network, 2, &[ip("10.241.0.3")]), Some(ip("10.241.0.4")));
        assert_eq!(next(network, 0xfffe, &[ip("10.241.0.2")]), Some(ip("10.241.0.3")));
        assert_eq!(next(network, 0xfffe, &[]), Some(ip("10.241.0.2")));
    }

    #[test]
    fn names_and_hardware_addresses_follow_the_address() {
        assert_eq!(link_name(ip("10.241.0.2")), "bh-0af10002");
        assert_eq!(mac(ip("10.241.0.2")), [2, 0x62, 10, 241, 0, 2]);
        assert!(is_network(ip("10.241.0.0")) && !is_network(ip("10.241.0.1")));
    }
}
