//! The memory in which ONNX Runtime computes: blocks of whole pages that are kept for the next run, and never more of
//! them than the budget allows. It knows nothing of sessions.
//!
//! ONNX Runtime's own arena doubles itself as it grows and keeps what it has; the C library's heap keeps what is freed
//! between things that are not. Here every block is a mapping of its own, so that memory in use is what was asked for, to
//! the page, and memory that is given back is given back.

use std::collections::HashMap;

use memmap2::MmapMut;

use super::exhaustion::{Refusal, SPARE_BYTES};
use crate::memory;

/// What long blocks are multiples of; the pages of some ARM boards have 16 or 64 KiB, and mappings are rounded up there.
const PAGE_BYTES: usize = 4096;
/// Blocks from this length on are mappings.
const LONG_BYTES: usize = 64 << 10;
/// A kept block is used again for as little as one part in so many of its length.
const LEAST_PART: usize = 8;
/// At most one part in so many of the memory is wasted in blocks that are longer than what was asked for: without a
/// limit, where that spares the kernel many pages, and with one, where every page counts.
const WASTED_PART: [usize; 2] = [4, 16];

/// A cache line: what kernels expect tensors to begin with.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "ONNX Runtime reads and writes it")] [u8; 64]);

enum Block {
    Short(Vec<Line>),
    Long(MmapMut),
}

impl Block {
    fn new(len_bytes: usize) -> Option<Self> {
        if len_bytes < LONG_BYTES {
            return Some(Self::Short(vec![Line([0; 64]); len_bytes.div_ceil(64).max(1)]));
        }
        let map = MmapMut::map_anon(len_bytes.checked_next_multiple_of(PAGE_BYTES)?).ok()?;
        // No page of it is touched, and it is gone at once.
        MmapMut::map_anon(SPARE_BYTES).ok()?;
        Some(Self::Long(map))
    }

    fn address(&mut self) -> usize {
        match self {
            Self::Short(lines) => lines.as_mut_ptr() as usize,
            Self::Long(map) => map.as_mut_ptr() as usize,
        }
    }

    fn len_bytes(&self) -> usize {
        match self {
            Self::Short(lines) => lines.len() * 64,
            Self::Long(map) => map.len(),
        }
    }
}

/// Blocks in use, and blocks that are kept.
#[derive(Default)]
pub(super) struct Pool {
    /// By address, with how many bytes were asked for.
    used: HashMap<usize, (Block, usize)>,
    /// Long ones, sorted by length.
    kept: Vec<Block>,
    used_bytes: usize,
    wasted_bytes: usize,
    kept_bytes: usize,
    /// The most that was in use at once.
    most_used_bytes: usize,
    /// The least of those of the sessions that are open.
    limit_bytes: Option<usize>,
    limits: Vec<Option<usize>>,
}

impl Pool {
    /// The address of a block of at least this many bytes, unless it is more than the machine allows, or than leaves the
    /// process within a budget. (The pool's limit bounds what is kept, not what is used.)
    pub(super) fn take(&mut self, len_bytes: usize, budget_bytes: Option<u64>) -> Result<usize, Refusal> {
        let mut block = match self.fitting(len_bytes) {
            Some(block) => block,
            None => {
                self.make_room(len_bytes);
                if len_bytes >= LONG_BYTES
                    && let Some(budget_bytes) = budget_bytes
                {
                    self.keep_within(budget_bytes, len_bytes)?;
                }
                Block::new(len_bytes).ok_or_else(|| Refusal::of_system(len_bytes))?
            }
        };
        self.used_bytes += block.len_bytes();
        self.wasted_bytes += block.len_bytes() - len_bytes;
        self.most_used_bytes = self.most_used_bytes.max(self.used_bytes);
        let address = block.address();
        self.used.insert(address, (block, len_bytes));
        Ok(address)
    }

    /// Whether the process stays within a budget with a new block of this length; what is kept is let go of before it is not.
    fn keep_within(&mut self, budget_bytes: u64, len_bytes: usize) -> Result<(), Refusal> {
        let is_within = || {
            let resident_bytes = memory::resident_bytes().unwrap_or(0);
            let is_over = resident_bytes.saturating_add(len_bytes as u64) > budget_bytes;
            if is_over { Err(Refusal::of_budget(len_bytes, budget_bytes, resident_bytes)) } else { Ok(()) }
        };
        is_within().or_else(|_| {
            self.kept.clear();
            self.kept_bytes = 0;
            is_within()
        })
    }

    /// Takes back the block at this address.
    pub(super) fn give_back(&mut self, address: usize) {
        let Some((block, len_bytes)) = self.used.remove(&address) else { return };
        self.used_bytes -= block.len_bytes();
        self.wasted_bytes -= block.len_bytes() - len_bytes;
        if matches!(block, Block::Long(_)) {
            self.kept_bytes += block.len_bytes();
            let place = self.kept.partition_point(|kept| kept.len_bytes() < block.len_bytes());
            self.kept.insert(place, block);
        }
    }

    /// Lets go of every block that is not in use.
    pub(super) fn trim(&mut self) {
        self.kept.clear();
        self.kept_bytes = 0;
        self.most_used_bytes = self.used_bytes;
    }

    /// The most bytes that blocks may have before kept ones are let go of, of a session that is opened. Of several sessions
    /// the least counts: one without a limit leaves the promises of others alone.
    pub(super) fn limit(&mut self, limit_bytes: Option<usize>) {
        self.limits.push(limit_bytes);
        self.limit_bytes = self.limits.iter().flatten().min().copied();
        self.trim();
    }

    /// The end of a session with this limit. That of the last one stays until another is opened.
    pub(super) fn unlimit(&mut self, limit_bytes: Option<usize>) {
        if let Some(place) = self.limits.iter().position(|limit| *limit == limit_bytes) {
            self.limits.swap_remove(place);
        }
        if !self.limits.is_empty() {
            self.limit_bytes = self.limits.iter().flatten().min().copied();
        }
    }

    /// How many bytes blocks in use and kept ones may have together. Without a limit a quarter more than was ever in use:
    /// with less, pages come and go all the time; with more, nothing is faster.
    fn capacity_bytes(&self) -> usize {
        self.limit_bytes.unwrap_or(self.most_used_bytes + self.most_used_bytes / 4)
    }

    /// The shortest kept block that will do.
    fn fitting(&mut self, len_bytes: usize) -> Option<Block> {
        if len_bytes < LONG_BYTES {
            return None;
        }
        let part = WASTED_PART[usize::from(self.limit_bytes.is_some())];
        let wasted_bytes = (self.capacity_bytes() / part).saturating_sub(self.wasted_bytes);
        let longest = len_bytes.saturating_mul(LEAST_PART).min(len_bytes.saturating_add(wasted_bytes));
        let place = self.kept.partition_point(|kept| kept.len_bytes() < len_bytes);
        self.kept.get(place).filter(|kept| kept.len_bytes() <= longest)?;
        let block = self.kept.remove(place);
        self.kept_bytes -= block.len_bytes();
        Some(block)
    }

    /// Lets go of kept blocks, the longest first, until there is room for one of this length.
    fn make_room(&mut self, len_bytes: usize) {
        let needed = self.used_bytes.saturating_add(len_bytes);
        while needed.saturating_add(self.kept_bytes) > self.capacity_bytes() {
            let Some(longest) = self.kept.pop() else { break };
            self.kept_bytes -= longest.len_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn blocks_begin_with_a_line_and_are_used_again() {
        let mut pool = Pool::default();
        for len in [1, 63, 64, LONG_BYTES, MIB + 1] {
            let address = pool.take(len, None).unwrap();
            assert_eq!(address % 64, 0);
            pool.give_back(address);
        }
        let long = pool.take(MIB + 1, None).unwrap();
        pool.give_back(long);
        assert_eq!(pool.take(MIB, None), Ok(long));
        assert_eq!(pool.used_bytes, MIB + PAGE_BYTES);
    }

    #[test]
    fn a_limit_is_kept_by_letting_go() {
        let mut pool = Pool::default();
        pool.limit(Some(4 * MIB));
        let first = pool.take(2 * MIB, None).unwrap();
        pool.give_back(first);
        let _second = pool.take(3 * MIB, None).unwrap();
        assert_eq!((pool.used_bytes, pool.kept_bytes), (3 * MIB, 0));
        assert!(pool.take(MIB, None).is_ok());
        assert_eq!(pool.used_bytes + pool.kept_bytes, 4 * MIB);
        assert!(pool.take(MIB, None).is_ok(), "what is needed is had");
        assert!(pool.take(usize::MAX, None).is_err());
    }

    #[test]
    fn the_least_limit_of_the_open_sessions_counts() {
        let mut pool = Pool::default();
        for (limit, expected) in
            [(Some(8), Some(8)), (None, Some(8)), (Some(4), Some(4)), (Some(16), Some(4))]
        {
            pool.limit(limit);
            assert_eq!(pool.limit_bytes, expected);
        }
        for (limit, expected) in [(Some(4), Some(8)), (Some(8), Some(16)), (Some(16), None), (None, None)] {
            pool.unlimit(limit);
            assert_eq!(pool.limit_bytes, expected);
        }
        // The limit of the last session stays for what it leaves behind.
        pool.limit(Some(2));
        pool.unlimit(Some(2));
        assert_eq!(pool.limit_bytes, Some(2));
        pool.limit(None);
        assert_eq!(pool.limit_bytes, None);
    }

    #[test]
    fn little_is_wasted_under_a_limit() {
        let mut pool = Pool::default();
        pool.limit(Some(16 * MIB));
        let long = pool.take(4 * MIB, None).unwrap();
        pool.give_back(long);
        // 3 MiB would be wasted, and 1 may be.
        assert_ne!(pool.take(MIB, None).unwrap(), long);
        assert_eq!(pool.take(3 * MIB, None), Ok(long));
        assert_eq!(pool.wasted_bytes, MIB);
    }

    /// Without a limit, as much as was ever in use and a quarter more; and a trim forgets what was in use before.
    #[test]
    fn without_a_limit_a_quarter_more_than_was_used_is_kept() {
        let mut pool = Pool::default();
        let blocks = [4 * MIB; 2].map(|len| pool.take(len, None).unwrap());
        blocks.into_iter().for_each(|block| pool.give_back(block));
        assert_eq!(pool.kept_bytes, 8 * MIB);
        // 5 and one of the kept ones are no more than 10, with both there would be 13.
        let block = pool.take(5 * MIB, None).unwrap();
        assert_eq!((pool.used_bytes, pool.kept_bytes), (5 * MIB, 4 * MIB));
        pool.give_back(block);
        pool.trim();
        let block = pool.take(MIB, None).unwrap();
        pool.give_back(block);
        pool.take(MIB + MIB / 2, None).unwrap();
        assert_eq!(pool.kept_bytes, 0);
    }

    /// A kept block is used again for an eighth of its length, and not for less, however much may be wasted.
    #[test]
    fn a_block_is_not_used_again_for_too_little() {
        let mut pool = Pool::default();
        let blocks = [64 * MIB, 8 * MIB].map(|len| pool.take(len, None).unwrap());
        pool.give_back(blocks[1]);
        let small = pool.take(MIB - PAGE_BYTES, None).unwrap();
        assert_ne!(small, blocks[1]);
        assert_eq!(pool.take(MIB, None), Ok(blocks[1]));
        assert_eq!(pool.wasted_bytes, 7 * MIB);
    }

    /// What is kept is let go of first; what would exceed the budget even so is refused before it is mapped.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_budget_is_kept_by_refusing() {
        let mut pool = Pool::default();
        pool.limit(Some(64 * MIB));
        let kept = pool.take(4 * MIB, None).unwrap();
        pool.give_back(kept);
        let plenty = memory::resident_bytes().unwrap() + (1 << 40);
        assert!(pool.take(5 * MIB, Some(plenty)).is_ok());
        assert_eq!(pool.kept_bytes, 4 * MIB);
        let refusal = pool.take(16 * MIB, Some(1 << 20)).unwrap_err();
        assert!(
            refusal.to_string().starts_with("memory: expected at most 1024 KiB, the budget, got "),
            "{refusal}"
        );
        assert_eq!((pool.kept_bytes, pool.used_bytes), (0, 5 * MIB));
        assert!(pool.take(1, Some(1 << 20)).is_ok(), "short blocks are of the heap");
    }

    #[test]
    fn what_is_trimmed_is_gone() {
        let mut pool = Pool::default();
        let block = pool.take(MIB, None).unwrap();
        pool.give_back(block);
        assert_eq!(pool.kept_bytes, MIB);
        pool.trim();
        assert_eq!((pool.kept_bytes, pool.used_bytes), (0, 0));
    }
}
