//! `linux.resources.devices`: libcontainer's build here ignores it, so the helper writes the BPF
//! program (BPF_PROG_TYPE_CGROUP_DEVICE) itself and attaches it to the container's cgroup.
//!
//! Rules come from the host; the program is what keeps a container from the guest's own devices.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use libcontainer::oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, Spec};
use thiserror::Error;

use super::adapt::SpecError;

/// Why devices are not restricted.
#[derive(Debug, Error)]
pub enum DeviceFilterError {
    /// The container's cgroup cannot be opened.
    #[error("open the cgroup of the device filter: {0}")]
    Cgroup(#[source] io::Error),
    /// The kernel refused the program.
    #[error("load the device filter: {0}")]
    Load(#[source] io::Error),
    /// The kernel refused to attach it.
    #[error("attach the device filter: {0}")]
    Attach(#[source] io::Error),
}

const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const BLOCK: i32 = 1;
const CHAR: i32 = 2;

/// One rule; `None` is any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

impl Rule {
    const fn allow(kind: i32, major: Option<i32>, minor: Option<i32>, access: i32) -> Self {
        Self { allow: true, kind: Some(kind), major, minor, access }
    }

    fn of(rule: &LinuxDeviceCgroup) -> Result<Self, SpecError> {
        let invalid = || SpecError::Unsupported("linux.resources.devices: such a rule");
        let number = |n: Option<i64>| match n {
            None | Some(-1) => Ok(None),
            Some(n) => i32::try_from(n).map(Some).map_err(|_| invalid()),
        };
        let access = rule.access().as_deref().unwrap_or("rwm");
        let bits = access.bytes().map(|letter| match letter {
            b'r' => Some(READ),
            b'w' => Some(WRITE),
            b'm' => Some(MKNOD),
            _ => None,
        });
        Ok(Self {
            allow: rule.allow(),
            kind: match rule.typ() {
                None | Some(LinuxDeviceType::A) => None,
                Some(LinuxDeviceType::B) => Some(BLOCK),
                Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHAR),
                Some(LinuxDeviceType::P) => return Err(invalid()),
            },
            major: number(rule.major())?,
            minor: number(rule.minor())?,
            access: bits.reduce(|all, bit| Some(all? | bit?)).flatten().ok_or_else(invalid)?,
        })
    }
}

/// What runc allows every container after the rules of its specification.
const DEFAULTS: [Rule; 10] = [
    Rule::allow(CHAR, None, None, MKNOD),
    Rule::allow(BLOCK, None, None, MKNOD),
    Rule::allow(CHAR, Some(1), Some(3), MKNOD | READ | WRITE),
    Rule::allow(CHAR, Some(1), Some(5), MKNOD | READ | WRITE),
    Rule::allow(CHAR, Some(1), Some(7), MKNOD | READ | WRITE),
    Rule::allow(CHAR, Some(1), Some(8), MKNOD | READ | WRITE),
    Rule::allow(CHAR, Some(1), Some(9), MKNOD | READ | WRITE),
    Rule::allow(CHAR, Some(5), Some(0), MKNOD | READ | WRITE),
    Rule::allow(CHAR, Some(5), Some(2), MKNOD | READ | WRITE),
    Rule::allow(CHAR, Some(136), None, MKNOD | READ | WRITE),
];

/// One instruction, `struct bpf_insn` of `linux/bpf.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// BPF_LDX | BPF_MEM | BPF_W
const LOAD_WORD: u8 = 0x61;
/// BPF_ALU64 | BPF_MOV | BPF_X
const MOVE: u8 = 0xbf;
/// BPF_ALU64 | BPF_MOV | BPF_K
const MOVE_CONSTANT: u8 = 0xb7;
/// BPF_ALU64 | BPF_AND | BPF_K
const AND: u8 = 0x57;
/// BPF_ALU64 | BPF_RSH | BPF_K
const SHIFT_RIGHT: u8 = 0x77;
/// BPF_JMP | BPF_JNE | BPF_K
const JUMP_NOT_EQUAL: u8 = 0x55;
/// BPF_JMP | BPF_JEQ | BPF_K
const JUMP_EQUAL: u8 = 0x15;
/// BPF_JMP | BPF_EXIT
const EXIT: u8 = 0x95;

const RESULT: u8 = 0;
/// At entry the context (`struct bpf_cgroup_dev_ctx`), later free.
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
/// Bits of access that no rule has allowed yet.
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: from << 4 | to, offset, immediate }
}

fn answer(allow: bool) -> [Instruction; 2] {
    [instruction(MOVE_CONSTANT, RESULT, 0, 0, allow.into()), instruction(EXIT, 0, 0, 0, 0)]
}

/// The program: for each bit of access the last rule that covers it decides, else it is denied.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut code = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE, WANTED, KIND, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, WANTED, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let body = body(rule);
        let conditions: Vec<(u8, i32)> =
            [(KIND, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)]
                .into_iter()
                .filter_map(|(register, value)| Some((register, value?)))
                .collect();
        for (place, (register, value)) in conditions.iter().enumerate() {
            // At most two conditions and four instructions are skipped.
            let skip = (conditions.len() - place - 1 + body.len()) as i16;
            code.push(instruction(JUMP_NOT_EQUAL, *register, 0, skip, *value));
        }
        code.extend(body);
    }
    code.extend(answer(false));
    code
}

/// What a rule does to an access that it is about.
fn body(rule: &Rule) -> Vec<Instruction> {
    let [result, exit] = answer(rule.allow);
    match rule.allow {
        true => vec![
            instruction(AND, WANTED, 0, 0, !rule.access),
            instruction(JUMP_NOT_EQUAL, WANTED, 0, 2, 0),
            result,
            exit,
        ],
        false => vec![
            instruction(MOVE, CONTEXT, WANTED, 0, 0),
            instruction(AND, CONTEXT, 0, 0, rule.access),
            instruction(JUMP_EQUAL, CONTEXT, 0, 2, 0),
            result,
            exit,
        ],
    }
}

/// A checked list of rules.
#[derive(Debug)]
pub struct DeviceFilter(Vec<Instruction>);

impl DeviceFilter {
    /// The filter of a specification.
    pub fn of(spec: &Spec) -> Result<Self, SpecError> {
        let resources = spec.linux().as_ref().and_then(|l| l.resources().as_ref());
        let rules = resources.and_then(|r| r.devices().as_deref());
        let mut all =
            rules.unwrap_or_default().iter().map(Rule::of).collect::<Result<Vec<_>, _>>()?;
        all.extend(DEFAULTS);
        Ok(Self(program(&all)))
    }

    /// Restricts a cgroup, given by its directory; the kernel keeps the program with it.
    pub fn attach(&self, cgroup: &Path) -> Result<(), DeviceFilterError> {
        let cgroup = File::open(cgroup).map_err(DeviceFilterError::Cgroup)?;
        let program = self.load().map_err(DeviceFilterError::Load)?;
        let request = AttachRequest {
            target: cgroup.as_raw_fd().cast_unsigned(),
            program: program.as_raw_fd().cast_unsigned(),
            kind: BPF_CGROUP_DEVICE,
            flags: BPF_F_ALLOW_MULTI,
        };
        // SAFETY: the request is a valid BPF_PROG_ATTACH attribute with two open descriptors.
        unsafe { bpf(BPF_PROG_ATTACH, &request) }.map_err(DeviceFilterError::Attach)?;
        Ok(())
    }

    fn load(&self) -> io::Result<OwnedFd> {
        let request = LoadRequest {
            kind: BPF_PROG_TYPE_CGROUP_DEVICE,
            count: u32::try_from(self.0.len()).map_err(io::Error::other)?,
            instructions: self.0.as_ptr() as u64,
            license: c"Apache-2.0".as_ptr() as u64,
        };
        // SAFETY: the request is a valid BPF_PROG_LOAD attribute: `instructions` points to `count`
        // instructions and `license` to a string, both alive until the call returns.
        let descriptor = unsafe { bpf(BPF_PROG_LOAD, &request) }?;
        // SAFETY: the kernel has just made this descriptor for this process.
        Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
    }
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// Head of `union bpf_attr` for BPF_PROG_LOAD; the kernel takes the rest as zero.
#[repr(C)]
struct LoadRequest {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
}

/// Head of `union bpf_attr` for BPF_PROG_ATTACH.
#[repr(C)]
struct AttachRequest {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// bpf(2).
///
/// # Safety
/// `request` must be a valid attribute of `command`.
unsafe fn bpf<T>(command: libc::c_int, request: &T) -> io::Result<i32> {
    // SAFETY: the pointer and the size are those of `request`; the caller vouches for the rest.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(request), size_of::<T>())
    };
    match i32::try_from(result) {
        Ok(descriptor @ 0..) => Ok(descriptor),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs a program as the kernel would.
    fn run(code: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let context = [access << 16 | kind, major, minor].map(i64::from);
        let mut registers = [0i64; 6];
        let mut place = 0;
        loop {
            let Instruction { code: operation, registers: both, offset, immediate } = code[place];
            let (to, from) = (usize::from(both & 15), usize::from(both >> 4));
            let constant = i64::from(immediate);
            let jump = usize::try_from(offset).unwrap();
            place += 1;
            match operation {
                LOAD_WORD => registers[to] = context[jump / 4],
                MOVE => registers[to] = registers[from],
                MOVE_CONSTANT => registers[to] = constant,
                AND => registers[to] &= constant,
                SHIFT_RIGHT => registers[to] >>= constant,
                JUMP_NOT_EQUAL if registers[to] != constant => place += jump,
                JUMP_EQUAL if registers[to] == constant => place += jump,
                JUMP_NOT_EQUAL | JUMP_EQUAL => {}
                EXIT => return registers[0] == 1,
                other => panic!("operation {other:#x}"),
            }
        }
    }

    /// The meaning of the rules, bit by bit.
    fn expected(rules: &[Rule], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let about = |rule: &&Rule, bit: i32| {
            rule.kind.is_none_or(|k| k == kind)
                && rule.major.is_none_or(|m| m == major)
                && rule.minor.is_none_or(|m| m == minor)
                && rule.access & bit != 0
        };
        [MKNOD, READ, WRITE]
            .into_iter()
            .filter(|bit| access & bit != 0)
            .all(|bit| rules.iter().rev().find(|r| about(r, bit)).is_some_and(|r| r.allow))
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let number = || proptest::option::of(0..3);
        (any::<bool>(), proptest::option::of(1..3), number(), number(), 1..8).prop_map(
            |(allow, kind, major, minor, access)| Rule { allow, kind, major, minor, access },
        )
    }

    proptest! {
        #[test]
        fn program_means_what_the_rules_mean(
            rules in proptest::collection::vec(rule(), 0..8),
            kind in 1..3, access in 1..8, major in 0..3, minor in 0..3,
        ) {
            prop_assert_eq!(
                run(&program(&rules), kind, access, major, minor),
                expected(&rules, kind, access, major, minor)
            );
        }
    }

    #[test]
    fn rules_of_runc_spec_allow_the_default_devices_only() {
        let spec: Spec = serde_json::from_str(
            r#"{"ociVersion": "1.0.2", "linux": {"resources":
                {"devices": [{"allow": false, "access": "rwm"}]}}}"#,
        )
        .unwrap();
        let code = DeviceFilter::of(&spec).unwrap().0;
        assert!(run(&code, CHAR, READ | WRITE, 1, 3));
        assert!(run(&code, BLOCK, MKNOD, 254, 0));
        assert!(!run(&code, BLOCK, READ, 254, 0));
        assert!(!run(&code, CHAR, READ, 1, 1));
    }

    #[test]
    fn rule_with_unknown_access_or_number_is_refused() {
        for rule in [
            r#"{"allow": true, "access": "x"}"#,
            r#"{"allow": true, "access": ""}"#,
            r#"{"allow": true, "type": "p"}"#,
            r#"{"allow": true, "type": "c", "major": 5000000000}"#,
        ] {
            let rule: LinuxDeviceCgroup = serde_json::from_str(rule).unwrap();
            assert!(Rule::of(&rule).is_err(), "{rule:?}");
        }
    }
}
