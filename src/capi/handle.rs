//! Pointers from C: each is checked before it is used, as far as that can be. It knows nothing of what is behind them.

use std::ffi::{CStr, c_char};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::binding::usage;
use crate::error::{Error, ErrorKind};

/// What of ours a caller holds, behind a type of which C knows nothing but the name.
pub(super) trait Handle: Sized {
    /// What C calls it.
    type Opaque;
    /// By which it is told from other handles.
    const MARK: u64;
    /// How messages call it.
    const NAME: &'static str;
}

#[repr(C)]
struct Marked<T> {
    /// First, so that it is found in any handle.
    mark: AtomicU64,
    value: T,
}

/// Gives a value to the caller.
pub(super) fn give<T: Handle>(value: T) -> *mut T::Opaque {
    Box::into_raw(Box::new(Marked { mark: AtomicU64::new(T::MARK), value })).cast()
}

/// What a handle is of.
///
/// # Errors
/// [`ErrorKind::Usage`] for NULL and for what is not such a handle.
///
/// # Safety
/// Not NULL, it points to at least 8 bytes that can be read; what was freed cannot be told from what was not. It stays whole for
/// `'a`: the caller frees it after the call.
pub(super) unsafe fn borrow<'a, T: Handle>(handle: *const T::Opaque) -> Result<&'a T, Error> {
    let marked: *const Marked<T> = handle.cast();
    let is_one = marked.is_aligned() && !marked.is_null() && {
        // SAFETY: as the caller promises; the mark is the first field of every handle.
        let mark = unsafe { &*marked.cast::<AtomicU64>() };
        mark.load(Ordering::Relaxed) == T::MARK
    };
    if !is_one {
        let got = if handle.is_null() { "NULL" } else { "another pointer" };
        return Err(usage(format!("{}: expected a handle, got {got}", T::NAME)));
    }
    // SAFETY: its mark is that of this type, which `give` alone writes.
    Ok(unsafe { &(*marked).value })
}

/// Frees what a handle is of, and makes the caller's variable NULL; nothing where it is NULL already. `may_go` can refuse it.
///
/// # Errors
/// [`ErrorKind::Usage`] for NULL in place of the variable, and for what is not such a handle; those of `may_go`.
///
/// # Safety
/// As [`borrow`], and no other thread uses it.
pub(super) unsafe fn free<T: Handle>(
    variable: *mut *mut T::Opaque,
    may_go: impl FnOnce(&T) -> Result<(), Error>,
) -> Result<(), Error> {
    let variable = expect_mut(T::NAME, variable)?;
    // SAFETY: not NULL, aligned, and the caller's.
    let handle = unsafe { *variable };
    if handle.is_null() {
        return Ok(());
    }
    // SAFETY: as the caller promises.
    may_go(unsafe { borrow::<T>(handle) }?)?;
    let marked: *mut Marked<T> = handle.cast();
    // SAFETY: it is of this type, `give` made it with `Box`, and nobody else uses it.
    let marked = unsafe {
        *variable = std::ptr::null_mut();
        Box::from_raw(marked)
    };
    // Whoever still has the pointer finds another mark, unless the memory is another's by then.
    marked.mark.store(0, Ordering::Relaxed);
    drop(marked);
    Ok(())
}

/// A pointer that may not be NULL.
pub(super) fn expect<T>(name: &str, pointer: *const T) -> Result<*const T, Error> {
    expect_mut(name, pointer.cast_mut()).map(<*mut T>::cast_const)
}

/// The same of one that is written to.
pub(super) fn expect_mut<T>(name: &str, pointer: *mut T) -> Result<*mut T, Error> {
    match pointer {
        pointer if pointer.is_null() => Err(usage(format!("{name}: expected a pointer, got NULL"))),
        pointer if !pointer.is_aligned() => Err(usage(format!(
            "{name}: expected a pointer to a multiple of {} bytes, got another",
            align_of::<T>()
        ))),
        pointer => Ok(pointer),
    }
}

/// The value of a structure that begins with its size; fields that the caller does not know are as in `otherwise`.
///
/// # Errors
/// [`ErrorKind::Usage`] for NULL, and for a size that is smaller than that of the first version, `least`.
///
/// # Safety
/// Not NULL, it points to as many bytes as its first field says, a `usize`; every pattern of bits is a value of `T`.
pub(super) unsafe fn read<T>(name: &str, pointer: *const T, otherwise: T) -> Result<T, Error> {
    let pointer = expect(name, pointer)?;
    // SAFETY: it is aligned, and begins with its size.
    let size = unsafe { *pointer.cast::<usize>() };
    check_size::<T>(name, size)?;
    // What a newer header has is not ignored.
    for place in size_of::<T>()..size {
        // SAFETY: within the structure, as its size says.
        if unsafe { *pointer.cast::<u8>().add(place) } != 0 {
            let problem =
                format!("{name}: expected fields that this version of the library knows, got others");
            return Err(usage(problem).help("set what is not used to 0, or use the header of this version"));
        }
    }
    let mut value = otherwise;
    // SAFETY: both have so many bytes.
    unsafe {
        let known = size.min(size_of::<T>());
        std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), (&raw mut value).cast(), known);
    }
    Ok(value)
}

/// Writes a structure that begins with its size, as much of it as the caller knows.
///
/// # Safety
/// `pointer` was checked by [`check_out`].
pub(super) unsafe fn write<T>(pointer: *mut T, value: &T) {
    // SAFETY: as in `read`; its size is left as it is.
    unsafe {
        let size = *pointer.cast::<usize>();
        let known = size.min(size_of::<T>()) - size_of::<usize>();
        let from = (&raw const *value).cast::<u8>().add(size_of::<usize>());
        std::ptr::copy_nonoverlapping(from, pointer.cast::<u8>().add(size_of::<usize>()), known);
    }
}

/// A structure that is written to at the end of a call.
///
/// # Errors
/// As [`read`].
///
/// # Safety
/// As [`read`].
pub(super) unsafe fn check_out<T>(name: &str, pointer: *mut T) -> Result<*mut T, Error> {
    let pointer = expect_mut(name, pointer)?;
    // SAFETY: as in `read`.
    check_size::<T>(name, unsafe { *pointer.cast::<usize>() })?;
    Ok(pointer)
}

/// The largest size of a structure that is believed; no version of the library has one of half of that.
const MAX_STRUCTURE_BYTES: usize = 4096;

/// There is one version of each structure so far, so that a smaller one is a size that was not set.
fn check_size<T>(name: &str, size: usize) -> Result<(), Error> {
    match (size_of::<T>()..=MAX_STRUCTURE_BYTES).contains(&size) {
        true => Ok(()),
        false => Err(usage(format!("{name}: size: expected {}, got {size}", size_of::<T>()))
            .help("set it to the sizeof of the structure before the call")),
    }
}

/// A text of the caller's.
///
/// # Errors
/// [`ErrorKind::Usage`] for NULL; [`ErrorKind::Input`] for what is not UTF-8.
///
/// # Safety
/// Not NULL, it ends with a zero byte, and stays as it is for `'a`.
pub(super) unsafe fn text<'a>(name: &str, text: *const c_char) -> Result<&'a str, Error> {
    let text = expect(name, text)?;
    // SAFETY: as the caller promises.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|error| {
        Error::new(
            ErrorKind::Input,
            format!("{name}: expected UTF-8, got another byte at {}", error.valid_up_to()),
        )
    })
}

/// A path of the caller's; its bytes as they are, where paths are bytes.
///
/// # Errors
/// As [`text`].
///
/// # Safety
/// As [`text`].
pub(super) unsafe fn path(name: &str, path: *const c_char) -> Result<PathBuf, Error> {
    #[cfg(unix)]
    let path = {
        use std::os::unix::ffi::OsStrExt;
        let path = expect(name, path)?;
        // SAFETY: as the caller promises.
        let path = unsafe { CStr::from_ptr(path) };
        PathBuf::from(std::ffi::OsStr::from_bytes(path.to_bytes()))
    };
    #[cfg(not(unix))]
    // SAFETY: as the caller promises.
    let path = PathBuf::from(unsafe { text(name, path) }?);
    match path.as_os_str().is_empty() {
        true => Err(usage(format!("{name}: expected a path, got an empty one"))),
        false => Ok(path),
    }
}
