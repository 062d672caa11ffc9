//! Kernel command line of the guest. The VMM appends its devices.

use super::Capacity;

/// What every guest gets:
///
/// * `earlyprintk=ttyS0,keep`: the console is the serial port's early driver, which needs no
///   interrupt and is there from the first line to the last.
/// * `reboot=k,panic_warm panic=-1`: power-off and panic both reset through the keyboard
///   controller at once, so the VMM knows at once; the BIOS word at 0x472 tells them apart.
/// * `acpi=off`: there are no tables; a kernel that can would search memory for them.
/// * `random.trust_cpu=on`: the CPU's generator seeds the pool, so that boot never waits.
/// * `tsc=reliable`: KVM tells the frequency, and there is no other clock to watch it by.
/// * `noreplace-smp`: a guest with one processor does not patch every lock of its text at boot,
///   which costs a fifth of the boot and a private copy of each page of text that it touches.
/// * `dummy.numdummies=0`: the kernel makes no interface of its own in the namespace that is the
///   container's.
/// * `rdinit=/init`: the agent.
const BASE: &str = "earlyprintk=ttyS0,keep panic=-1 reboot=k,panic_warm acpi=off \
                    random.trust_cpu=on tsc=reliable noreplace-smp \
                    dummy.numdummies=0 rdinit=/init";
/// Only errors are printed: each byte on the console is an exit of the vCPU. It stands first,
/// because the console prints what came before it as soon as it is named.
const QUIET: &str = "quiet loglevel=4";
/// With `--debug` everything is.
const LOUD: &str = "ignore_loglevel";

/// The command line, with the `parameters` that operator and container have added last. CPUs that
/// may come later are there, but not started: `maxcpus`.
pub(super) fn cmdline(debug: bool, capacity: &Capacity, parameters: &[String]) -> String {
    let mut text = format!("{} {BASE}", if debug { LOUD } else { QUIET });
    let Capacity { start, most } = capacity;
    if start.vcpus < most.vcpus {
        text += &format!(" maxcpus={}", start.vcpus);
    }
    for parameter in parameters {
        text.push(' ');
        text.push_str(parameter);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::Size;
    use super::*;

    #[test]
    fn command_line_fits_and_is_quiet_unless_debugged() {
        let limit = bulkhead_protocol::limits::CMDLINE_MAX / 2;
        let (loud, quiet) =
            (cmdline(true, &capacity(1, 32), &[]), cmdline(false, &capacity(1, 32), &[]));
        assert!(loud.len() < limit && !loud.contains("quiet"));
        assert!(quiet.len() < limit && quiet.contains("quiet"));
        assert!(!quiet.contains("  "));
    }

    #[test]
    fn cpus_that_may_come_later_are_not_started() {
        assert!(cmdline(false, &capacity(2, 4), &[]).ends_with(" maxcpus=2"));
        assert!(!cmdline(false, &capacity(2, 2), &[]).contains("maxcpus"));
        let added = ["a=1".to_owned(), "b".to_owned()];
        assert!(cmdline(false, &capacity(2, 4), &added).ends_with(" maxcpus=2 a=1 b"));
    }

    fn capacity(start: u32, most: u32) -> Capacity {
        let size = |vcpus| Size { mem_mib: 128, vcpus };
        Capacity { start: size(start), most: size(most) }
    }
}
