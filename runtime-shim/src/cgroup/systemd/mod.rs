//! Scopes of systemd: a cgroup that the host's manager makes and knows the limits of, in place of
//! one that is a directory alone (`--systemd-cgroup`).
//!
//! The supervisor is the first process of the scope, which has to have one. It is stopped only if
//! it says by its description that it is this supervisor's.
//!
//! Trust: systemd is root's. The slice and the name come from the bundle, as a path does without
//! systemd.
//!
//! The attack: a name that is somebody else's unit. One that runs is never taken over, since
//! systemd refuses to start it again, and never stopped, since it has another description.

mod bus;
mod message;
mod place;
mod property;
mod text;

use std::io;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use zbus::wire::{ObjectPath, Type, Variant};

use self::bus::Bus;
use self::message::{Call, Message};
use self::property::as_sent;

pub use self::place::Scope;
pub use self::property::{Property, Value};
pub(super) use self::property::{as_kept, of_settings};
pub use self::text::parse as parse_value;

/// The manager's object, and where its units and it have methods.
const MANAGER: &str = "/org/freedesktop/systemd1";
const MANAGER_METHODS: &str = "org.freedesktop.systemd1.Manager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const UNIT_PROPERTIES: &str = "org.freedesktop.systemd1.Unit";
/// Errors that are expected.
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
/// What becomes of a job that another one of the same unit is in the way of.
const MODE: &str = "replace";
/// How a job ends that did what it was for.
const DONE: &str = "done";

/// Why there is no scope.
#[derive(Debug, Error)]
pub enum SystemdError {
    /// `linux.cgroupsPath`; runc's words.
    #[error(
        "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {0:?} \
         instead"
    )]
    Path(String),
    /// A part of it.
    #[error("linux.cgroupsPath: {0:?} is no name of a unit")]
    Name(String),
    /// runc makes one, which can have no processes.
    #[error("linux.cgroupsPath: {0} is a slice, which holds no processes")]
    Slice(String),
    /// The manager's socket.
    #[error("connecting to {}", bus::SOCKET)]
    Connect(#[source] io::Error),
    /// It does not take this process for root.
    #[error("systemd does not accept this process at {}", bus::SOCKET)]
    Rejected,
    /// The connection broke.
    #[error("talking to systemd")]
    Lost(#[source] io::Error),
    /// It does not answer.
    #[error("systemd has not answered within {} s", bus::LIMIT.as_secs())]
    Silent,
    /// A value that no message can hold.
    #[error("writing a message for systemd")]
    Unsent(#[source] zbus::wire::Error),
    /// It answers what nobody understands.
    #[error("systemd sent {0} that cannot be read")]
    Malformed(&'static str),
    /// It refuses.
    #[error("systemd refused {method}: {text} ({name})")]
    Refused {
        /// What was asked for.
        method: String,
        /// The error's name.
        name: String,
        /// What it says.
        text: String,
    },
    /// A job that did not do what it was for.
    #[error("starting or stopping {unit} ended as {result:?}")]
    Job {
        /// The unit.
        unit: String,
        /// systemd's word.
        result: String,
    },
    /// The scope is not where its cgroup was expected.
    #[error("systemd has put {0} where this process does not see it")]
    Elsewhere(String),
}

impl SystemdError {
    fn is(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { name, .. } if name == wanted)
    }

    /// What the user can do.
    pub(super) fn fix(&self) -> String {
        match self {
            Self::Path(_) | Self::Name(_) | Self::Slice(_) => {
                "name it as system.slice:bulkhead:NAME".into()
            }
            Self::Connect(_) => {
                "is systemd this host's first process? leave out --systemd-cgroup otherwise".into()
            }
            Self::Rejected => "run bulkhead as root of the host".into(),
            refused if refused.is(UNIT_EXISTS) => {
                "name another unit in linux.cgroupsPath, or delete the container that has it".into()
            }
            Self::Elsewhere(_) => {
                "run bulkhead in the cgroup and pid namespaces of the host's systemd".into()
            }
            Self::Lost(_) | Self::Silent | Self::Malformed(_) => {
                "`systemctl is-system-running` tells whether systemd answers at all".into()
            }
            Self::Unsent(_) | Self::Refused { .. } => {
                "see linux.cgroupsPath and the annotations org.systemd.property.*".into()
            }
            Self::Job { unit, .. } => format!("`journalctl --unit {unit}` tells why"),
        }
    }
}

/// A unit as the state of a container records it, before it is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitRecord {
    /// Its name.
    pub name: String,
    /// What it says of itself, by which it is told from another one of the same name.
    pub description: String,
}

/// Starts the scope with this process in it, and with the properties that are `asked` for.
pub(super) fn start(
    scope: &Scope,
    record: &UnitRecord,
    asked: &[Property],
) -> Result<(), SystemdError> {
    let text = |text: &str| Value::Text(text.to_owned());
    let mut properties = vec![
        Property::new("Description", text(&record.description)),
        Property::new("Slice", text(&scope.slice)),
        Property::new("PIDs", Value::Uint32s(vec![std::process::id()])),
        // systemd leaves everything below the scope alone, and what it writes into it is what it
        // has been told.
        Property::new("Delegate", Value::Bool(true)),
        // As runc: the container does not wait for what ordinary units wait for.
        Property::new("DefaultDependencies", Value::Bool(false)),
        // Its name is free as soon as it has ended, however it has.
        Property::new("CollectMode", text("inactive-or-failed")),
    ];
    for kind in ["CPU", "Memory", "IO", "Tasks"] {
        properties.push(Property::new(&format!("{kind}Accounting"), Value::Bool(true)));
    }
    // The last of a name holds.
    properties.extend_from_slice(asked);
    let mut bus = Bus::connect(bus::SOCKET)?;
    match start_unit(&mut bus, &scope.unit, &properties) {
        // One that has failed and was never looked at, as runc has it.
        Err(e) if e.is(UNIT_EXISTS) && reset_failed(&mut bus, &scope.unit).is_ok() => {
            start_unit(&mut bus, &scope.unit, &properties)
        }
        started => started,
    }
}

fn start_unit(bus: &mut Bus, unit: &str, properties: &[Property]) -> Result<(), SystemdError> {
    let no_further_units: Vec<(&str, Vec<(&str, Variant<'_>)>)> = vec![];
    let body = (unit, MODE, as_sent(properties), no_further_units);
    let reply = manager(bus, "StartTransientUnit", body)?;
    await_job(bus, unit, &reply)
}

fn reset_failed(bus: &mut Bus, unit: &str) -> Result<(), SystemdError> {
    manager(bus, "ResetFailedUnit", (unit,)).map(drop)
}

/// Gives a unit other limits, until it ends.
pub(super) fn set(unit: &str, properties: &[Property]) -> Result<(), SystemdError> {
    if properties.is_empty() {
        return Ok(());
    }
    // At run time, not for the next boot.
    let runtime = true;
    let mut bus = Bus::connect(bus::SOCKET)?;
    manager(&mut bus, "SetUnitProperties", (unit, runtime, as_sent(properties))).map(drop)
}

/// Whether the unit of this name is the one that was recorded.
pub(super) fn is_current(record: &UnitRecord) -> Result<bool, SystemdError> {
    is_current_at(&mut Bus::connect(bus::SOCKET)?, record)
}

fn is_current_at(bus: &mut Bus, record: &UnitRecord) -> Result<bool, SystemdError> {
    let reply = match manager(bus, "GetUnit", (&record.name,)) {
        Err(e) if e.is(NO_SUCH_UNIT) => return Ok(false),
        reply => reply?,
    };
    let (path,): (ObjectPath<'_>,) = reply.body()?;
    let body = (UNIT_PROPERTIES, "Description");
    let reply = bus.call(&Call { path: &path, interface: PROPERTIES, member: "Get", body })?;
    match reply.body()? {
        (Variant::Str(description),) => Ok(description.as_str() == record.description),
        _ => Err(SystemdError::Malformed("a description")),
    }
}

/// Stops the unit that was recorded and waits until it has gone; false if it is not there.
pub(super) fn stop(record: &UnitRecord) -> Result<bool, SystemdError> {
    let mut bus = Bus::connect(bus::SOCKET)?;
    if !is_current_at(&mut bus, record)? {
        return Ok(false);
    }
    match manager(&mut bus, "StopUnit", (&record.name, MODE)) {
        Ok(reply) => await_job(&mut bus, &record.name, &reply).map(|()| true),
        Err(e) if e.is(NO_SUCH_UNIT) => Ok(true),
        Err(e) => Err(e),
    }
}

fn await_job(bus: &mut Bus, unit: &str, reply: &Message) -> Result<(), SystemdError> {
    let (job,): (ObjectPath<'_>,) = reply.body()?;
    let result = bus.await_job(&job)?;
    match result == DONE {
        true => Ok(()),
        false => Err(SystemdError::Job { unit: unit.to_owned(), result }),
    }
}

fn manager<B: Serialize + Type>(
    bus: &mut Bus,
    member: &str,
    body: B,
) -> Result<Message, SystemdError> {
    bus.call(&Call { path: MANAGER, interface: MANAGER_METHODS, member, body })
}
