//! The bytes of a weight file: mapped from disk, or embedded in the program. It knows nothing of their format.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;

use memmap2::Mmap;

/// With a page that is touched, Linux gives a process those around it that are in memory: blocks of this length at most.
#[cfg(unix)]
const AROUND_BYTES: usize = 2 << 20;

/// Read-only bytes at an address that does not change while this value lives.
///
/// A mapped file is shared with the rest of the machine. If another program overwrites it in place, the bytes change;
/// if another program makes it shorter, touching the lost pages kills the process (SIGBUS). So mapped bytes are copied
/// out or handed to ONNX Runtime by address, and are never lent as a `&[u8]`, whose bytes Rust assumes to be constant.
/// Replacing the file by a rename, as downloads do, is harmless.
pub(super) enum Bytes {
    Mapped(Mmap),
    Static(&'static [u8]),
    /// In private memory, as words, so that elements of every type lie where they may; the length is in bytes.
    Owned(Box<[u64]>, usize),
}

impl Bytes {
    /// Maps the whole file.
    pub(super) fn map(file: &File) -> io::Result<Self> {
        // SAFETY: the map is private to this type, which dereferences it only to copy bytes out, so that no reference
        // outlives a single copy. What remains, another program changing the file during that copy or shortening it,
        // is the hazard that the type's documentation names.
        unsafe { Mmap::map(file) }.map(Self::Mapped)
    }

    /// A copy of these bytes in private memory.
    pub(super) fn own(bytes: &[u8]) -> Self {
        let (whole, rest) = bytes.as_chunks();
        let mut words: Vec<u64> = Vec::with_capacity(bytes.len().div_ceil(8));
        words.extend(whole.iter().map(|&word| u64::from_ne_bytes(word)));
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            words.push(u64::from_ne_bytes(word));
        }
        Self::Owned(words.into(), bytes.len())
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Owned(_, len_bytes) => *len_bytes,
            Self::Mapped(map) => map.len(),
            Self::Static(bytes) => bytes.len(),
        }
    }

    pub(super) fn as_ptr(&self) -> *const u8 {
        match self {
            Self::Mapped(map) => map.as_ptr(),
            Self::Owned(words, _) => words.as_ptr().cast(),
            Self::Static(bytes) => bytes.as_ptr(),
        }
    }

    /// Reads the pages of a mapped file around `range` into memory, where the system can be asked to; otherwise they come
    /// when they are used.
    pub(super) fn populate(&self, range: Range<usize>) {
        #[cfg(target_os = "linux")]
        if let Self::Mapped(map) = self {
            // Before Linux 5.14 it is not known.
            let _ = map.advise_range(memmap2::Advice::PopulateRead, range.start, range.len());
        }
        #[cfg(not(target_os = "linux"))]
        let _ = range;
    }

    /// Takes the pages of a mapped file around `range` out of the process, with those that came with them; they come back
    /// when they are used.
    pub(super) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Self::Mapped(map) = self {
            let base = map.as_ptr() as usize;
            let start = (base + range.start) / AROUND_BYTES * AROUND_BYTES;
            let end = (base + range.end).next_multiple_of(AROUND_BYTES).min(base + map.len());
            let start = start.saturating_sub(base);
            // SAFETY: the map is read-only and of a file, so that a page that is used again has the same bytes.
            let _ = unsafe {
                map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - base - start)
            };
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// The bytes in `range`, which must lie inside, in private memory.
    pub(super) fn owned(&self, range: Range<usize>) -> Self {
        match self {
            Self::Mapped(map) => Self::own(&map[range]),
            Self::Static(bytes) => Self::own(&bytes[range]),
            Self::Owned(..) => Self::own(&self.copy(range)),
        }
    }

    /// A copy of the bytes in `range`, which must lie inside.
    pub(super) fn copy(&self, range: Range<usize>) -> Vec<u8> {
        match self {
            Self::Mapped(map) => map[range].to_vec(),
            Self::Static(bytes) => bytes[range].to_vec(),
            Self::Owned(words, _) => {
                let (first, last) = (range.start / 8, range.end.div_ceil(8));
                let bytes = words[first..last].iter().flat_map(|word| word.to_ne_bytes());
                bytes.skip(range.start - first * 8).take(range.len()).collect()
            }
        }
    }
}
