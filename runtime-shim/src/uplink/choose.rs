//! Which back end a container gets, by what is installed and what it needs.

use std::path::Path;

use super::{Backend, Port, UplinkError, address, nft, pasta};

/// Routes of IPv4 (proc(5)).
const ROUTES: &str = "/proc/net/route";

/// What the caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Whatever fits best.
    Any,
    /// This one.
    Only(Backend),
}

/// What this machine has.
#[derive(Debug, Clone, Copy)]
struct Machine {
    pasta: bool,
    nft: bool,
    default_route: bool,
}

impl Machine {
    fn look() -> Self {
        let routes = std::fs::read_to_string(ROUTES).unwrap_or_default();
        Self {
            pasta: pasta::program().is_some(),
            nft: nft::program().is_some(),
            default_route: address::routes(&routes).iter().any(|(_, prefix)| *prefix == 0),
        }
    }
}

/// Chooses for a container that publishes `ports`.
pub fn choose(wanted: Wanted, ports: &[Port]) -> Result<Backend, UplinkError> {
    decide(wanted, !ports.is_empty(), Machine::look())
}

fn decide(wanted: Wanted, publishes: bool, machine: Machine) -> Result<Backend, UplinkError> {
    let Machine { pasta, nft, default_route } = machine;
    let refused = |reason| Err(UplinkError::Unavailable(reason));
    match wanted {
        Wanted::Only(Backend::Pasta) if !pasta => refused("pasta is missing: install passt"),
        Wanted::Only(Backend::Pasta) if publishes => {
            refused("pasta publishes no port of a microVM: leave out -p, or use --network bridge")
        }
        Wanted::Only(Backend::Pasta) if !default_route => {
            refused("pasta needs a default route of the host")
        }
        Wanted::Only(Backend::Bridge) if !nft => refused("nft is missing: install nftables"),
        Wanted::Only(backend) => Ok(backend),
        Wanted::Any if nft => Ok(Backend::Bridge),
        Wanted::Any if publishes => refused("nft is missing: install nftables to publish ports"),
        Wanted::Any if pasta && default_route => Ok(Backend::Pasta),
        Wanted::Any => refused("neither nft nor pasta is usable: install nftables or passt"),
    }
}

/// One line for people: what containers of this machine are connected by.
pub fn describe() -> (bool, String) {
    let machine = Machine::look();
    let word = |publishes| decide(Wanted::Any, publishes, machine).ok();
    match (word(false), word(true)) {
        (Some(plain), Some(publishing)) if plain == publishing => (true, plain.to_string()),
        (Some(plain), Some(publishing)) => (true, format!("{plain}; with -p {publishing}")),
        (Some(plain), None) => (false, format!("{plain}; -p needs nftables")),
        _ => (false, "launch needs --network none: install nftables or passt".to_owned()),
    }
}

/// The first of `paths` that is a file.
pub(super) fn first_of(paths: &[&'static str]) -> Option<&'static Path> {
    paths.iter().copied().map(Path::new).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pasta_is_taken_where_there_is_no_nft_and_it_can_work() {
        let all = Machine { pasta: true, nft: true, default_route: true };
        let no_nft = Machine { nft: false, ..all };
        for (machine, publishes, expected) in [
            (all, false, Some(Backend::Bridge)),
            (all, true, Some(Backend::Bridge)),
            (Machine { default_route: false, ..all }, false, Some(Backend::Bridge)),
            (no_nft, false, Some(Backend::Pasta)),
            (no_nft, true, None),
            (Machine { default_route: false, ..no_nft }, false, None),
            (Machine { pasta: false, ..no_nft }, false, None),
        ] {
            let decided = decide(Wanted::Any, publishes, machine).ok();
            assert_eq!(decided, expected, "{machine:?} {publishes}");
        }
        let only = |backend, publishes| decide(Wanted::Only(backend), publishes, all).is_ok();
        assert!(only(Backend::Pasta, false) && only(Backend::Bridge, false));
        assert!(!only(Backend::Pasta, true));
    }
}
