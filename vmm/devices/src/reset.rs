//! The keyboard controller's reset line, by which `reboot=k` ends the machine.
//!
//! Of the i8042 there is only the command port, 0x64: Linux waits for the input buffer to be
//! empty (bit 1 of the status) and writes 0xfe, which pulses the CPU's reset line. A guest that
//! writes it in a loop only repeats itself.

use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;

/// Command and status port of the i8042.
pub const RESET_PORT: u64 = 0x64;
/// Number of ports.
pub const RESET_PORT_LEN: u64 = 1;

/// Status: no data for the guest, ready for a command.
const STATUS_IDLE: u8 = 0;
/// Command: pulse output line 0, which is the reset line.
const COMMAND_RESET: u8 = 0xfe;

/// The port that resets the machine.
pub struct ResetPort {
    event: EventFd,
}

impl ResetPort {
    /// Signals `event` when the guest asks for a reset. The event must not block.
    pub fn new(event: EventFd) -> Self {
        Self { event }
    }
}

impl BusDevice for ResetPort {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(STATUS_IDLE);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data == [COMMAND_RESET] {
            // An error says that as many resets as a counter can hold are unread.
            let _ = self.event.write(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    #[test]
    fn reset_command_signals_and_nothing_else_does() {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let mut port = ResetPort::new(event.try_clone().unwrap());
        let mut status = [0xff];
        port.read(0, &mut status);
        assert_eq!(status[0] & 2, 0);
        port.write(0, &[0xff]);
        port.write(0, &[0xfe, 0xfe]);
        port.write(0, &[]);
        assert!(event.read().is_err());
        port.write(0, &[0xfe]);
        assert_eq!(event.read().unwrap(), 1);
    }
}
