//! Stubs of the host<->agent API, generated from `proto/agent.proto`.
//!
//! The host trusts no reply: every length and number in a response is bounded by its reader.

/// Blocking client, used by the runtime.
#[cfg(feature = "agent-client")]
pub mod client {
    pub use agent::*;
    pub use agent_ttrpc::AgentClient;

    #[allow(missing_docs, nonstandard_style, unused, clippy::all, clippy::unwrap_used)]
    mod agent {
        include!(concat!(env!("OUT_DIR"), "/client/agent.rs"));
    }
    #[allow(missing_docs, nonstandard_style, unused, clippy::all, clippy::unwrap_used)]
    mod agent_ttrpc {
        use super::agent;
        include!(concat!(env!("OUT_DIR"), "/client/agent_ttrpc.rs"));
    }
}

/// Async server, implemented by the agent.
#[cfg(feature = "agent-server")]
pub mod server {
    pub use agent::*;
    pub use agent_ttrpc::{Agent, create_agent};

    #[allow(missing_docs, nonstandard_style, unused, clippy::all, clippy::unwrap_used)]
    mod agent {
        include!(concat!(env!("OUT_DIR"), "/server/agent.rs"));
    }
    #[allow(missing_docs, nonstandard_style, unused, clippy::all, clippy::unwrap_used)]
    mod agent_ttrpc {
        use super::agent;
        include!(concat!(env!("OUT_DIR"), "/server/agent_ttrpc.rs"));
    }
}
