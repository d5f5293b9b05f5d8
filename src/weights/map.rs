//! The bytes of a weight file: mapped from disk, or embedded in the program. It knows nothing of their format.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;

use memmap2::Mmap;

/// With a page that is touched, Linux gives a process those around it that are in memory: blocks of this length at most.
#[cfg(unix)]
const AROUND_BYTES: usize = 2 << 20;

/// The largest page of Linux's boards.
#[cfg(target_os = "linux")]
const PAGE_BYTES: usize = 64 << 10;

/// Read-only bytes at an address that does not change while this value lives.
///
/// A mapped file is shared with the rest of the machine. If another program overwrites it in place, the bytes change;
/// if another program makes it shorter, touching the lost pages kills the process (SIGBUS). So mapped bytes are copied
/// out or handed to ONNX Runtime by address, and are never lent as a `&[u8]`, whose bytes Rust assumes to be constant.
/// Replacing the file by a rename, as downloads do, is harmless.
pub(super) enum Bytes {
    Mapped(Mmap),
    /// Part of the program. `is_clean` says that the pages are those of its file, unchanged and unchangeable, so that they
    /// can be given back and read again.
    Static {
        bytes: &'static [u8],
        is_clean: bool,
    },
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

    /// Bytes that are part of the program.
    pub(super) fn of_program(bytes: &'static [u8]) -> Self {
        Self::Static { bytes, is_clean: is_clean_file(bytes) }
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
            Self::Static { bytes, .. } => bytes.len(),
        }
    }

    /// Whether they are a copy in private memory.
    pub(super) fn is_private(&self) -> bool {
        matches!(self, Self::Owned(..))
    }

    pub(super) fn as_ptr(&self) -> *const u8 {
        match self {
            Self::Mapped(map) => map.as_ptr(),
            Self::Owned(words, _) => words.as_ptr().cast(),
            Self::Static { bytes, .. } => bytes.as_ptr(),
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
        #[cfg(target_os = "linux")]
        if let Self::Static { bytes, is_clean: true } = self {
            unsafe extern "C" {
                fn madvise(
                    address: *mut std::ffi::c_void,
                    len: usize,
                    advice: std::ffi::c_int,
                ) -> std::ffi::c_int;
            }
            const DONT_NEED: std::ffi::c_int = 4;
            // Whole pages, of the largest size that there is, within the bytes.
            let base = bytes.as_ptr() as usize;
            let start = (base + range.start / AROUND_BYTES * AROUND_BYTES).next_multiple_of(PAGE_BYTES);
            let end = (base + range.end).next_multiple_of(AROUND_BYTES).min(base + bytes.len());
            let end = end / PAGE_BYTES * PAGE_BYTES;
            if start < end {
                // SAFETY: pages within these bytes, which are of a file and have not been and cannot be written to
                // (`is_clean_file`), so that one that is used again has the same bytes.
                let _ = unsafe { madvise(start as *mut _, end - start, DONT_NEED) };
            }
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// The bytes in `range`, which must lie inside, in private memory.
    pub(super) fn owned(&self, range: Range<usize>) -> Self {
        match self {
            Self::Mapped(map) => Self::own(&map[range]),
            Self::Static { bytes, .. } => Self::own(&bytes[range]),
            Self::Owned(..) => Self::own(&self.copy(range)),
        }
    }

    /// A copy of the bytes in `range`, which must lie inside.
    pub(super) fn copy(&self, range: Range<usize>) -> Vec<u8> {
        match self {
            Self::Mapped(map) => map[range].to_vec(),
            Self::Static { bytes, .. } => bytes[range].to_vec(),
            Self::Owned(words, _) => {
                let (first, last) = (range.start / 8, range.end.div_ceil(8));
                let bytes = words[first..last].iter().flat_map(|word| word.to_ne_bytes());
                bytes.skip(range.start - first * 8).take(range.len()).collect()
            }
        }
    }
}

/// Whether these bytes lie in a mapping of a file that cannot be written to and of which no page was.
fn is_clean_file(bytes: &[u8]) -> bool {
    let table = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let start = bytes.as_ptr() as usize;
    is_clean_in(&table, start..start + bytes.len())
}

/// The same by the text of `/proc/self/smaps`.
fn is_clean_in(table: &str, bytes: Range<usize>) -> bool {
    let mut is_here = false;
    for line in table.lines() {
        let mut words = line.split_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
        if let Some((start, end)) = first.split_once('-') {
            let [Ok(start), Ok(end)] = [start, end].map(|text| usize::from_str_radix(text, 16)) else {
                continue;
            };
            let inode = words.nth(2);
            let is_file = second == "r--p" && inode.is_some_and(|inode| inode != "0");
            is_here = is_file && start <= bytes.start && bytes.end <= end;
        } else if is_here && first == "Anonymous:" {
            return second == "0";
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
5600000-5a00000 r--p 00000000 fe:01 4213 /usr/bin/calotype
Rss: 4 kB
Anonymous: 0 kB
5a00000-5b00000 r--p 00400000 fe:01 4213 /usr/bin/calotype
Anonymous: 8 kB
5b00000-5c00000 rw-p 00500000 fe:01 4213 /usr/bin/calotype
Anonymous: 0 kB
7000000-7100000 r--p 00000000 00:00 0 [vvar]
Anonymous: 0 kB
";

    #[test]
    fn pages_that_were_written_to_or_are_of_no_file_are_not_clean() {
        assert!(is_clean_in(MAPS, 0x5600000..0x5a00000));
        assert!(is_clean_in(MAPS, 0x5700000..0x5700001));
        for other in
            [0x5900000..0x5a00001, 0x5a00000..0x5a00010, 0x5b00000..0x5b00010, 0x7000000..0x7000010, 0..1]
        {
            assert!(!is_clean_in(MAPS, other.clone()), "{other:x?}");
        }
        let leaked: &'static [u8] = vec![7; 1 << 20].leak();
        let bytes = Bytes::of_program(leaked);
        bytes.release(0..leaked.len());
        assert!(leaked.iter().all(|&byte| byte == 7), "memory without a file was given back");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_program_s_own_bytes_can_be_given_back() {
        static BYTES: [u8; 24] = *b"bytes that lie in a file";
        let bytes = Bytes::of_program(&BYTES);
        assert!(matches!(bytes, Bytes::Static { is_clean: true, .. }));
        bytes.release(0..BYTES.len());
        assert_eq!(bytes.copy(0..BYTES.len()), BYTES);
    }
}
