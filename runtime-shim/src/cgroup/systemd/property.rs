//! Limits of a cgroup as properties of its unit (systemd.resource-control(5)). systemd writes the
//! files of a unit's cgroup again whenever it reloads, by what it knows: it has to be told what
//! they are to hold. Pure.

use zbus::wire::Variant;

use super::super::settings::Setting;

/// No limit, in properties that are numbers.
const INFINITY: u64 = u64::MAX;
/// Microseconds of a second.
const SECOND_US: u64 = 1_000_000;
/// systemd keeps a quota of CPU time in whole percents, which are so many microseconds a second.
const PERCENT_US: u64 = SECOND_US / 100;
/// Most CPUs or memory nodes of a list: the kernel's largest number.
const LIST_MAX: usize = 8192;

/// A property of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Property {
    /// Its name.
    pub name: String,
    /// What it is to be.
    pub value: Value,
}

impl Property {
    /// The property `name`.
    pub fn new(name: &str, value: Value) -> Self {
        Self { name: name.to_owned(), value }
    }
}

/// Values that properties have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `b`.
    Bool(bool),
    /// `i`.
    Int32(i32),
    /// `u`.
    Uint32(u32),
    /// `x`.
    Int64(i64),
    /// `t`.
    Uint64(u64),
    /// `s`.
    Text(String),
    /// `ay`.
    Bytes(Vec<u8>),
    /// `au`.
    Uint32s(Vec<u32>),
    /// `as`.
    Texts(Vec<String>),
}

/// Properties as a message has them.
pub(super) fn as_sent(properties: &[Property]) -> Vec<(&str, Variant<'_>)> {
    properties.iter().map(|Property { name, value }| (name.as_str(), value.as_sent())).collect()
}

impl Value {
    /// Its type, as D-Bus has it.
    pub(super) fn signature(&self) -> &'static str {
        match self {
            Self::Bool(_) => "b",
            Self::Int32(_) => "i",
            Self::Uint32(_) => "u",
            Self::Int64(_) => "x",
            Self::Uint64(_) => "t",
            Self::Text(_) => "s",
            Self::Bytes(_) => "ay",
            Self::Uint32s(_) => "au",
            Self::Texts(_) => "as",
        }
    }

    fn as_sent(&self) -> Variant<'_> {
        match self {
            Self::Bool(value) => Variant::from(*value),
            Self::Int32(n) => Variant::from(*n),
            Self::Uint32(n) => Variant::from(*n),
            Self::Int64(n) => Variant::from(*n),
            Self::Uint64(n) => Variant::from(*n),
            Self::Text(text) => Variant::from(text.as_str()),
            Self::Bytes(bytes) => Variant::from(bytes.as_slice()),
            Self::Uint32s(numbers) => Variant::from(numbers.as_slice()),
            Self::Texts(texts) => Variant::from(texts.as_slice()),
        }
    }
}

/// The properties that say the same as `settings`. Those of disks are left to the files, as by
/// runc, but for the weight.
pub(in super::super) fn of_settings<'a>(
    settings: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Vec<Property> {
    let mut properties: Vec<Property> = vec![];
    for (file, value) in settings {
        for property in of_setting(file, value) {
            // As with files, the last one holds.
            properties.retain(|earlier| earlier.name != property.name);
            properties.push(property);
        }
    }
    properties
}

fn of_setting(file: &str, value: &str) -> Vec<Property> {
    let number = |name: &str| {
        let number = match value.trim() {
            "max" => Some(INFINITY),
            text => text.parse().ok(),
        };
        number.map(|number| Property::new(name, Value::Uint64(number)))
    };
    let list = |name: &str| Some(Property::new(name, Value::Bytes(bits(value)?)));
    let one = match file {
        "memory.max" => number("MemoryMax"),
        "memory.low" => number("MemoryLow"),
        "memory.swap.max" => number("MemorySwapMax"),
        "pids.max" => number("TasksMax"),
        "cpu.weight" => number("CPUWeight"),
        // The weight of what is idle.
        "cpu.idle" if value.trim() == "1" => Some(Property::new("CPUWeight", Value::Uint64(0))),
        "io.weight" => value
            .trim()
            .strip_prefix("default ")
            .unwrap_or(value)
            .parse()
            .ok()
            .map(|weight| Property::new("IOWeight", Value::Uint64(weight))),
        "cpuset.cpus" => list("AllowedCPUs"),
        "cpuset.mems" => list("AllowedMemoryNodes"),
        "cpu.max" => return quota(value).map(of_quota).unwrap_or_default(),
        _ => None,
    };
    one.into_iter().collect()
}

/// Quota and period of `cpu.max`, both in microseconds.
fn quota(text: &str) -> Option<(Option<u64>, u64)> {
    let (quota, period) = text.trim().split_once(' ')?;
    let period = period.parse().ok().filter(|period| *period > 0)?;
    match quota {
        "max" => Some((None, period)),
        quota => Some((Some(quota.parse().ok()?), period)),
    }
}

fn of_quota((quota, period): (Option<u64>, u64)) -> Vec<Property> {
    let per_second = quota.map_or(INFINITY, |quota| per_second_us(quota, period));
    vec![
        Property::new("CPUQuotaPerSecUSec", Value::Uint64(per_second)),
        Property::new("CPUQuotaPeriodUSec", Value::Uint64(period)),
    ]
}

/// CPU time of each second, rounded up to what systemd can keep.
fn per_second_us(quota: u64, period: u64) -> u64 {
    let us = u128::from(quota) * u128::from(SECOND_US) / u128::from(period);
    let us = us.next_multiple_of(u128::from(PERCENT_US));
    u64::try_from(us).unwrap_or(INFINITY)
}

/// The setting as systemd will write it when it reloads: a quota in whole percents.
pub(in super::super) fn as_kept(setting: &Setting) -> Setting {
    let kept = match (setting.file.as_str(), quota(&setting.value)) {
        ("cpu.max", Some((Some(quota), period))) => {
            let us = u128::from(per_second_us(quota, period)) * u128::from(period);
            format!("{} {period}", us / u128::from(SECOND_US))
        }
        _ => setting.value.clone(),
    };
    Setting { value: kept, ..setting.clone() }
}

/// The numbers of a list as `0-2,7`, as bits, the lowest in the first byte. An empty list is the
/// default.
fn bits(list: &str) -> Option<Vec<u8>> {
    let mut bits: Vec<u8> = vec![];
    for part in list.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<usize>().ok().filter(|n| *n < LIST_MAX);
        for n in number(first)?..=number(last)? {
            if bits.len() <= n / 8 {
                bits.resize(n / 8 + 1, 0);
            }
            bits[n / 8] |= 1 << (n % 8);
        }
    }
    Some(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(settings: &[(&str, &str)]) -> Vec<(String, Value)> {
        let found = of_settings(settings.iter().copied());
        found.into_iter().map(|property| (property.name, property.value)).collect()
    }

    #[test]
    fn files_of_a_cgroup_are_properties_of_its_unit() {
        use Value::{Bytes, Uint64};
        for (file, value, expected) in [
            ("memory.max", "1048576", &[("MemoryMax", Uint64(1 << 20))][..]),
            ("memory.max", "max", &[("MemoryMax", Uint64(u64::MAX))]),
            ("memory.low", "4096", &[("MemoryLow", Uint64(4096))]),
            ("memory.swap.max", "0", &[("MemorySwapMax", Uint64(0))]),
            ("pids.max", "512", &[("TasksMax", Uint64(512))]),
            ("cpu.weight", "79\n", &[("CPUWeight", Uint64(79))]),
            ("cpu.idle", "1", &[("CPUWeight", Uint64(0))]),
            ("cpu.idle", "0", &[]),
            ("io.weight", "50", &[("IOWeight", Uint64(50))]),
            ("io.weight", "default 100", &[("IOWeight", Uint64(100))]),
            ("io.weight", "8:0 50", &[]),
            ("io.max", "8:0 rbps=1", &[]),
            ("cpuset.cpus", "0-2,9", &[("AllowedCPUs", Bytes(vec![7, 2]))]),
            ("cpuset.cpus", "", &[("AllowedCPUs", Bytes(vec![]))]),
            ("cpuset.mems", "0", &[("AllowedMemoryNodes", Bytes(vec![1]))]),
            ("cpuset.cpus", "0-9999999999", &[]),
            (
                "cpu.max",
                "150000 100000",
                &[
                    ("CPUQuotaPerSecUSec", Uint64(1_500_000)),
                    ("CPUQuotaPeriodUSec", Uint64(100_000)),
                ],
            ),
            (
                "cpu.max",
                "max 50000",
                &[("CPUQuotaPerSecUSec", Uint64(u64::MAX)), ("CPUQuotaPeriodUSec", Uint64(50_000))],
            ),
            ("cpu.max", "1 0", &[]),
        ] {
            let expected: Vec<(String, Value)> =
                expected.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
            assert_eq!(properties(&[(file, value)]), expected, "{file} {value}");
        }
    }

    #[test]
    fn last_setting_of_a_file_is_the_property() {
        let found = properties(&[("cpu.weight", "1"), ("pids.max", "2"), ("cpu.weight", "3")]);
        let expected = [("TasksMax", 2), ("CPUWeight", 3)];
        assert_eq!(found, expected.map(|(name, n)| (name.to_owned(), Value::Uint64(n))));
    }

    #[test]
    fn quota_is_rounded_up_to_what_systemd_keeps() {
        let quota = |value: &str| {
            let setting = Setting {
                file: "cpu.max".to_owned(),
                value: value.to_owned(),
                field: "f",
                optional: false,
            };
            as_kept(&setting).value
        };
        assert_eq!(quota("150000 100000"), "150000 100000");
        assert_eq!(quota("12345 100000"), "13000 100000");
        assert_eq!(quota("1 1000000"), "10000 1000000");
        assert_eq!(quota("max 100000"), "max 100000");
    }
}
