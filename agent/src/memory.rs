//! What the guest's kernel says of its memory: /proc/meminfo (proc_meminfo(5)).

use std::{
    fs::File,
    io::{self, Read},
};

use bulkhead_protocol::agent::server::GuestMemoryResponse;

/// Most that is read; the file has about 50 lines.
const FILE_MAX: u64 = 16 << 10;

/// The figures that the API tells, now.
pub fn figures() -> io::Result<GuestMemoryResponse> {
    let mut text = Vec::new();
    File::open("/proc/meminfo")?.take(FILE_MAX).read_to_end(&mut text)?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

/// Lines of a name, a number and `kB`; what is missing is 0.
fn parse(text: &str) -> GuestMemoryResponse {
    let mut figures = GuestMemoryResponse::default();
    for line in text.lines() {
        let Some((name, rest)) = line.split_once(':') else { continue };
        let number = rest.split_ascii_whitespace().next().and_then(|word| word.parse().ok());
        let bytes = number.unwrap_or(0u64).saturating_mul(1024);
        match name {
            "MemTotal" => figures.total = bytes,
            "MemFree" => figures.free = bytes,
            "MemAvailable" => figures.available = bytes,
            "Cached" => figures.cached = bytes,
            "AnonPages" => figures.anonymous = bytes,
            "Slab" => figures.slab = bytes,
            _ => {}
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn figures_are_bytes_of_the_lines_that_are_there() {
        let text =
            "MemTotal:  200 kB\nMemFree: 100 kB\nCached: 7 kB\nSwapCached: 9 kB\nAnonPages: x\n";
        let figures = parse(text);
        assert_eq!((figures.total, figures.free), (200 << 10, 100 << 10));
        assert_eq!((figures.cached, figures.anonymous, figures.slab), (7 << 10, 0, 0));
    }

    #[test]
    fn this_kernels_figures_make_sense() {
        let figures = figures().unwrap();
        assert!(figures.total >= figures.free && figures.total > 1 << 20, "{figures:?}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*") {
            parse(&text);
        }
    }
}
