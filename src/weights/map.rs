//! The bytes of a weight file: mapped from disk, or embedded in the program. It knows nothing of their format.
#![allow(unsafe_code)]

use std::convert::Infallible;
#[cfg(unix)]
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use memmap2::{Mmap, MmapMut};

/// With a page that is touched, Linux gives a process those around it that are in memory: blocks of this length at most.
#[cfg(unix)]
const AROUND_BYTES: usize = 2 << 20;

/// The largest page of Linux's boards.
#[cfg(target_os = "linux")]
const PAGE_BYTES: usize = 64 << 10;

/// Read-only bytes at an address that does not change while this value lives.
///
/// A mapped file is shared with the rest of the machine. If another program overwrites it in place, the bytes change;
/// if another program makes it shorter, touching the lost pages kills the process (SIGBUS), unless it is a program that
/// called [`exit_when_truncated`]. So mapped bytes are copied out or handed to ONNX Runtime by address, and are never lent as
/// a `&[u8]`, whose bytes Rust assumes to be constant; and before they are used, [`Bytes::missing`] tells whether the file
/// still has them. Replacing the file by a rename, as downloads do, is harmless.
pub(super) enum Bytes {
    Mapped(Mapping),
    /// Part of the program. `is_clean` says that the pages are those of its file, unchanged and unchangeable, so that they
    /// can be given back and read again.
    Static {
        bytes: &'static [u8],
        is_clean: bool,
    },
    /// In private memory, as words, so that elements of every type lie where they may; the length is in bytes.
    Owned(Box<[u64]>, usize),
    /// Long ones in private memory: a mapping of their own. On the C library's heap they would lie between what is freed
    /// while a tensor is computed, and what was freed could not be given back.
    Anonymous(MmapMut),
}

/// From this length on bytes in private memory are a mapping of their own.
const LONG_BYTES: usize = 64 << 10;

/// A mapped file, which stays open: the file of this name may be another by now.
pub(super) struct Mapping {
    // Dropped in this order: what is not mapped any more is not to be named.
    _named: Named,
    map: Mmap,
    file: File,
    path: PathBuf,
}

impl std::ops::Deref for Mapping {
    type Target = Mmap;

    fn deref(&self) -> &Mmap {
        &self.map
    }
}

impl Bytes {
    /// Maps the whole file, which is at this path.
    pub(super) fn map(file: File, path: &Path) -> io::Result<Self> {
        // SAFETY: the map is private to this type, which dereferences it only to copy bytes out, so that no reference
        // outlives a single copy. What remains, another program changing the file during that copy or shortening it,
        // is the hazard that the type's documentation names.
        let map = unsafe { Mmap::map(&file) }?;
        let named = Named::new(map.as_ptr() as usize, map.len(), path);
        Ok(Self::Mapped(Mapping { _named: named, map, file, path: path.to_owned() }))
    }

    /// The path and the present length of a mapped file that has become shorter.
    pub(super) fn missing(&self) -> Option<(&Path, u64)> {
        let Self::Mapped(mapping) = self else { return None };
        let len_bytes = mapping.file.metadata().ok()?.len();
        (len_bytes < mapping.map.len() as u64).then_some((&mapping.path, len_bytes))
    }

    /// The path of a mapped file that still leads to it.
    pub(super) fn path(&self) -> Option<&Path> {
        let Self::Mapped(mapping) = self else { return None };
        let (mapped, found) = (mapping.file.metadata().ok()?, mapping.path.metadata().ok()?);
        #[cfg(unix)]
        let is_same = {
            use std::os::unix::fs::MetadataExt;
            (mapped.dev(), mapped.ino()) == (found.dev(), found.ino())
        };
        #[cfg(not(unix))]
        let is_same = (mapped.len(), mapped.modified().ok()) == (found.len(), found.modified().ok());
        is_same.then_some(&mapping.path)
    }

    /// Bytes that are part of the program.
    pub(super) fn of_program(bytes: &'static [u8]) -> Self {
        Self::Static { bytes, is_clean: is_clean_file(bytes) }
    }

    /// A copy of these bytes in private memory.
    pub(super) fn own(bytes: &[u8]) -> Self {
        let Ok(own) = Self::built(bytes.len(), |write| {
            write(bytes);
            Ok::<(), Infallible>(())
        });
        own
    }

    /// So many bytes in private memory, as `make` writes them, piece by piece; all pieces but the last have a length that is
    /// a multiple of eight.
    pub(super) fn built<E>(
        len_bytes: usize,
        make: impl FnOnce(&mut dyn FnMut(&[u8])) -> Result<(), E>,
    ) -> Result<Self, E> {
        if len_bytes >= LONG_BYTES
            && let Ok(mut map) = MmapMut::map_anon(len_bytes)
        {
            let mut end = 0;
            make(&mut |bytes| {
                map[end..end + bytes.len()].copy_from_slice(bytes);
                end += bytes.len();
            })?;
            debug_assert_eq!(end, len_bytes);
            return Ok(Self::Anonymous(map));
        }
        let mut words: Vec<u64> = Vec::with_capacity(len_bytes.div_ceil(8));
        make(&mut |bytes| {
            let (whole, rest) = bytes.as_chunks();
            words.extend(whole.iter().map(|&word| u64::from_ne_bytes(word)));
            if !rest.is_empty() {
                let mut word = [0; 8];
                word[..rest.len()].copy_from_slice(rest);
                words.push(u64::from_ne_bytes(word));
            }
        })?;
        debug_assert_eq!(words.len(), len_bytes.div_ceil(8));
        Ok(Self::Owned(words.into(), len_bytes))
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Owned(_, len_bytes) => *len_bytes,
            Self::Mapped(map) => map.len(),
            Self::Anonymous(map) => map.len(),
            Self::Static { bytes, .. } => bytes.len(),
        }
    }

    /// Whether they are a copy in private memory.
    pub(super) fn is_private(&self) -> bool {
        matches!(self, Self::Owned(..) | Self::Anonymous(_))
    }

    pub(super) fn as_ptr(&self) -> *const u8 {
        match self {
            Self::Mapped(map) => map.as_ptr(),
            Self::Owned(words, _) => words.as_ptr().cast(),
            Self::Anonymous(map) => map.as_ptr(),
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
            Self::Anonymous(map) => Self::own(&map[range]),
            Self::Static { bytes, .. } => Self::own(&bytes[range]),
            Self::Owned(..) => Self::own(&self.copy(range)),
        }
    }

    /// A copy of the bytes in `range`, which must lie inside.
    pub(super) fn copy(&self, range: Range<usize>) -> Vec<u8> {
        match self {
            Self::Mapped(map) => map[range].to_vec(),
            Self::Anonymous(map) => map[range].to_vec(),
            Self::Static { bytes, .. } => bytes[range].to_vec(),
            Self::Owned(words, _) => {
                let (first, last) = (range.start / 8, range.end.div_ceil(8));
                let bytes = words[first..last].iter().flat_map(|word| word.to_ne_bytes());
                bytes.skip(range.start - first * 8).take(range.len()).collect()
            }
        }
    }
}

/// For programs: where a mapped file has become shorter and lost bytes are touched, or a disk does not give them, the process
/// ends with a message that names the file, which `begin` begins, and this exit code, instead of by SIGBUS. Where signals are
/// not known, nothing changes.
pub(super) fn exit_when_truncated(begin: &'static str, code: u8, json: Option<&'static AtomicBool>) {
    #[cfg(unix)]
    signal::install(begin, code, json);
    #[cfg(not(unix))]
    let _ = (begin, code, json);
}

/// The name of a mapped file, where the handler of a signal can find it.
struct Named {
    #[cfg(unix)]
    place: Option<&'static signal::Place>,
    /// What [`signal::Place`] points to.
    #[cfg(unix)]
    _name: CString,
}

impl Named {
    #[cfg(unix)]
    fn new(start: usize, len: usize, path: &Path) -> Self {
        use std::os::unix::ffi::OsStrExt;
        // A path that was opened has no NUL.
        let name = CString::new(path.as_os_str().as_bytes()).unwrap_or_default();
        Self { place: signal::Place::of(start, len, &name), _name: name }
    }

    #[cfg(not(unix))]
    fn new(_: usize, _: usize, _: &Path) -> Self {
        Self {}
    }
}

#[cfg(unix)]
impl Drop for Named {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            place.clear();
        }
    }
}

/// The handler of SIGBUS, which may call next to nothing, and what it knows.
#[cfg(unix)]
mod signal {
    use std::ffi::{CStr, c_int, c_void};
    use std::ptr;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

    /// Of more files than any model has.
    static PLACES: [Place; 256] = [const { Place::empty() }; 256];
    static SAID: OnceLock<(&str, u8, Option<&AtomicBool>)> = OnceLock::new();
    const PROBLEM: &str = "expected a file that stays as it is, got one that was made shorter or cannot be read while it was in \
                           use; replace files by renaming, never by overwriting";

    /// Where a file is mapped. Empty where it has no name.
    pub(super) struct Place {
        start: AtomicUsize,
        len: AtomicUsize,
        name: AtomicPtr<libc::c_char>,
    }

    impl Place {
        const fn empty() -> Self {
            Self {
                start: AtomicUsize::new(0),
                len: AtomicUsize::new(0),
                name: AtomicPtr::new(ptr::null_mut()),
            }
        }

        /// The first that is free, for this file; none when all are taken.
        pub(super) fn of(start: usize, len: usize, name: &CStr) -> Option<&'static Self> {
            let name = name.as_ptr().cast_mut();
            let take = |place: &&Place| {
                let (free, order) = (ptr::null_mut(), Ordering::AcqRel);
                place.name.compare_exchange(free, name, order, Ordering::Relaxed).is_ok()
            };
            let place = PLACES.iter().find(take)?;
            place.start.store(start, Ordering::Release);
            place.len.store(len, Ordering::Release);
            Some(place)
        }

        pub(super) fn clear(&self) {
            self.len.store(0, Ordering::Release);
            self.name.store(ptr::null_mut(), Ordering::Release);
        }

        fn has(&self, address: usize) -> bool {
            let start = self.start.load(Ordering::Acquire);
            address.checked_sub(start).is_some_and(|offset| offset < self.len.load(Ordering::Acquire))
        }
    }

    pub(super) fn install(begin: &'static str, code: u8, json: Option<&'static AtomicBool>) {
        if SAID.set((begin, code, json)).is_err() {
            return;
        }
        // SAFETY: a structure of plain values, for which zeros are valid, filled in as `sigaction` asks for; the handler
        // calls nothing but what signal handlers may.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_bus_error as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(libc::SIGBUS, &action, ptr::null_mut());
        }
    }

    extern "C" fn on_bus_error(_: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
        // SAFETY: the kernel gives a valid description to a handler that was installed with SA_SIGINFO.
        let address = unsafe { (*info).si_addr() } as usize;
        let place = PLACES.iter().find(|place| place.has(address));
        let (Some(place), Some((begin, code, json))) = (place, SAID.get()) else {
            // SAFETY: may be called by handlers; what has faulted faults again, and ends the process as it would have.
            unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
            return;
        };
        let name = place.name.load(Ordering::Acquire);
        if !name.is_null() {
            // SAFETY: `Named` keeps the name until its place is cleared.
            let name = unsafe { CStr::from_ptr(name) };
            let name = name.to_bytes();
            write(libc::STDERR_FILENO, &[begin.as_bytes(), name, b": ", PROBLEM.as_bytes(), b"\n"]);
            if json.is_some_and(|owed| owed.swap(false, Ordering::Relaxed)) {
                let (mut quoted, mut digits) = ([0; 2048], [0; 3]);
                let name = quoted_in(&mut quoted, name);
                let code = digits_in(&mut digits, *code);
                write(
                    libc::STDOUT_FILENO,
                    &[
                        b"{ \"error\": { \"kind\": \"model\", \"message\": \"",
                        name,
                        b": ",
                        PROBLEM.as_bytes(),
                        b"\", \"file\": \"",
                        name,
                        b"\", \"exit_code\": ",
                        code,
                        b" } }\n",
                    ],
                );
            }
        }
        // SAFETY: may be called by handlers.
        unsafe { libc::_exit((*code).into()) }
    }

    /// Writes texts one after another. Allocates nothing and takes no lock.
    fn write(to: c_int, texts: &[&[u8]]) {
        for text in texts {
            // SAFETY: may be called by handlers; the address and length are those of a slice.
            unsafe { libc::write(to, text.as_ptr().cast(), text.len()) };
        }
    }

    /// A name as JSON has it between quotes, as far as there is room; what is not ASCII text is `?`.
    pub(super) fn quoted_in<'a>(room: &'a mut [u8], name: &[u8]) -> &'a [u8] {
        let mut len = 0;
        for &byte in name {
            let (first, second) = match byte {
                b'"' | b'\\' => (b'\\', Some(byte)),
                b' '..=b'~' => (byte, None),
                _ => (b'?', None),
            };
            if len + 2 > room.len() {
                break;
            }
            room[len] = first;
            len += 1;
            if let Some(second) = second {
                room[len] = second;
                len += 1;
            }
        }
        &room[..len]
    }

    pub(super) fn digits_in(room: &mut [u8; 3], code: u8) -> &[u8] {
        *room = [code / 100, code / 10 % 10, code % 10].map(|digit| b'0' + digit);
        let zeros = room[..2].iter().take_while(|digit| **digit == b'0').count();
        &room[zeros..]
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
