//! Which blocks of the region are plugged.
//!
//! Trust: spans are the guest's choice. What is kept is one bit for each block of the usable part
//! of the region, which the host has chosen.

use super::request::{BlockState, Response, Span};

/// Size of a block: what x86-64 Linux plugs at the least, a huge page.
pub const BLOCK_BYTES: u64 = 2 << 20;

/// The plugged blocks of a region that starts at `start`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blocks {
    start: u64,
    /// See [`Blocks::bits`].
    plugged: Vec<u64>,
    count: u64,
}

/// A checked span: numbers of blocks in the usable part of the region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    first: u64,
    end: u64,
}

impl Blocks {
    /// None plugged.
    pub(super) fn new(start: u64) -> Self {
        Self { start, plugged: Vec::new(), count: 0 }
    }

    /// A bit for each block, the lowest first, up to the last that was ever plugged.
    pub(super) fn bits(&self) -> &[u64] {
        &self.plugged
    }

    /// Bytes plugged.
    pub(super) fn plugged_bytes(&self) -> u64 {
        self.count * BLOCK_BYTES
    }

    /// The blocks of `span`, if it names some, all within `usable_bytes` from the region's start.
    pub(super) fn range(&self, span: Span, usable_bytes: u64) -> Option<Range> {
        let offset = span.addr.checked_sub(self.start)?;
        let first = offset / BLOCK_BYTES;
        let end = first.checked_add(span.blocks.into())?;
        let fits = offset.is_multiple_of(BLOCK_BYTES) && end <= usable_bytes / BLOCK_BYTES;
        (fits && first < end).then_some(Range { first, end })
    }

    /// Guest address and length in bytes of `range`.
    pub(super) fn memory(&self, range: Range) -> (u64, u64) {
        let len = (range.end - range.first) * BLOCK_BYTES;
        (self.start + range.first * BLOCK_BYTES, len)
    }

    pub(super) fn state(&self, range: Range) -> BlockState {
        match (range.first..range.end).filter(|block| self.is_plugged(*block)).count() as u64 {
            0 => BlockState::Unplugged,
            count if count == range.end - range.first => BlockState::Plugged,
            _ => BlockState::Mixed,
        }
    }

    /// Section 5.15.6.4: all of `range` must be unplugged, and no more may be plugged than is
    /// requested.
    pub(super) fn plug(&mut self, range: Range, requested_bytes: u64) -> Response {
        let more = range.end - range.first;
        if self.state(range) != BlockState::Unplugged {
            return Response::Error;
        }
        if (self.count + more) * BLOCK_BYTES > requested_bytes {
            return Response::Nack;
        }
        let words = (range.end.div_ceil(64)) as usize;
        if self.plugged.len() < words {
            self.plugged.resize(words, 0);
        }
        for block in range.first..range.end {
            self.plugged[(block / 64) as usize] |= 1 << (block % 64);
        }
        self.count += more;
        Response::Ack
    }

    /// The blocks of `range` are given back; all were plugged.
    pub(super) fn unplug(&mut self, range: Range) {
        for block in range.first..range.end {
            self.plugged[(block / 64) as usize] &= !(1 << (block % 64));
        }
        self.count -= range.end - range.first;
    }

    /// All plugged blocks as ranges, and none plugged afterwards.
    pub(super) fn take_all(&mut self) -> Vec<Range> {
        let mut ranges: Vec<Range> = Vec::new();
        for block in 0..self.plugged.len() as u64 * 64 {
            if !self.is_plugged(block) {
                continue;
            }
            match ranges.last_mut().filter(|range| range.end == block) {
                Some(range) => range.end += 1,
                None => ranges.push(Range { first: block, end: block + 1 }),
            }
        }
        *self = Self::new(self.start);
        ranges
    }

    fn is_plugged(&self, block: u64) -> bool {
        self.plugged.get((block / 64) as usize).is_some_and(|word| word >> (block % 64) & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: u64 = 4 << 30;
    const USABLE: u64 = 256 * BLOCK_BYTES;

    fn span(block: u64, blocks: u16) -> Span {
        Span { addr: START + block * BLOCK_BYTES, blocks }
    }

    #[test]
    fn span_that_is_not_of_the_usable_part_is_no_range() {
        let blocks = Blocks::new(START);
        let range = |addr, count| blocks.range(Span { addr, blocks: count }, USABLE);
        assert!(range(START, 256).is_some());
        for (addr, count) in [
            (START, 0),
            (START, 257),
            (START + USABLE, 1),
            (START + 1, 1),
            (START - BLOCK_BYTES, 1),
            (0, u16::MAX),
            (u64::MAX - BLOCK_BYTES + 1, u16::MAX),
        ] {
            assert!(range(addr, count).is_none(), "{addr:#x} {count}");
        }
        assert!(blocks.range(span(0, 1), BLOCK_BYTES - 1).is_none());
    }

    #[test]
    fn all_plugged_blocks_are_taken_as_ranges() {
        let mut blocks = Blocks::new(START);
        for (first, count) in [(63, 3), (10, 1), (66, 1), (200, 2)] {
            let range = blocks.range(span(first, count), USABLE).unwrap();
            assert_eq!(blocks.plug(range, USABLE), Response::Ack);
        }
        let taken: Vec<_> = blocks.take_all().iter().map(|r| (r.first, r.end)).collect();
        assert_eq!(taken, [(10, 11), (63, 67), (200, 202)]);
        assert_eq!(blocks, Blocks::new(START));
    }

    proptest! {
        /// Whatever is asked for in whatever order, the bits are those of a plain model, and no
        /// more is plugged than was requested.
        #[test]
        fn blocks_behave_as_a_set(steps in proptest::collection::vec(
            (0..3_u8, 0..300_u64, 0..40_u16), 0..60,
        ), requested in 0..300_u64) {
            let mut blocks = Blocks::new(START);
            let mut model = std::collections::BTreeSet::new();
            for (kind, first, count) in steps {
                let Some(range) = blocks.range(span(first, count), USABLE) else {
                    prop_assert!(count == 0 || first + u64::from(count) > 256);
                    continue;
                };
                let wanted: Vec<u64> = (first..first + u64::from(count)).collect();
                let held = wanted.iter().filter(|block| model.contains(*block)).count();
                let state = match held {
                    0 => BlockState::Unplugged,
                    held if held == wanted.len() => BlockState::Plugged,
                    _ => BlockState::Mixed,
                };
                prop_assert_eq!(blocks.state(range), state);
                match kind {
                    0 => {
                        let fits = (model.len() + wanted.len()) as u64 <= requested;
                        let expected = match (state, fits) {
                            (BlockState::Unplugged, true) => Response::Ack,
                            (BlockState::Unplugged, false) => Response::Nack,
                            _ => Response::Error,
                        };
                        prop_assert_eq!(blocks.plug(range, requested * BLOCK_BYTES), expected);
                        if expected == Response::Ack {
                            model.extend(wanted);
                        }
                    }
                    1 if state == BlockState::Plugged => {
                        blocks.unplug(range);
                        model.retain(|block| !wanted.contains(block));
                    }
                    _ => {}
                }
                prop_assert_eq!(blocks.plugged_bytes(), model.len() as u64 * BLOCK_BYTES);
            }
        }
    }
}
