//! How a function of the C library ends: its number, and the error in the caller's structure. No panic passes it.

use std::any::Any;
use std::ffi::{c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use crate::error::{Error, ErrorKind};

/// What functions return: 0, or the kind of an error. The numbers stay as they are; new ones may be added. They are the exit codes of
/// the program `calotype`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum calotype_status {
    /// It was done.
    CALOTYPE_OK = 0,
    /// A request that cannot be fulfilled, or a wrong use of this library (NULL, a wrong handle, a call out of order).
    CALOTYPE_USAGE = 2,
    /// A recipe, a snapshot or an image file that cannot be used.
    CALOTYPE_INPUT = 3,
    /// The model's files are missing, damaged or not understood.
    CALOTYPE_MODEL = 4,
    /// The memory budget is too small for the request, or memory could not be had.
    CALOTYPE_MEMORY = 5,
    /// ONNX Runtime or one of its providers is missing or unfit.
    CALOTYPE_RUNTIME = 6,
    /// It was cancelled.
    CALOTYPE_CANCELLED = 7,
    /// A NaN or an infinity appeared while an image was generated.
    CALOTYPE_NUMERIC = 8,
    /// A file could not be written.
    CALOTYPE_OUTPUT = 9,
    /// An internal error: a bug in calotype.
    CALOTYPE_INTERNAL = 70,
}

/// An error, in the caller's memory. Set `size` before the call; the rest is written when the call fails, and left alone otherwise.
/// Texts are UTF-8, end with a zero byte, and are truncated where they do not fit.
#[repr(C)]
pub struct calotype_error {
    /// sizeof(calotype_error).
    pub size: usize,
    /// What the function returned: one of calotype_status.
    pub kind: c_int,
    /// The whole message on one line: "place: expected X, got Y; way out".
    pub message: [c_char; 1024],
    /// Where it is: a field of the recipe, a file, a component. Empty where not known, as are those below.
    pub place: [c_char; 256],
    /// What would have been right.
    pub expected: [c_char; 256],
    /// What was there instead.
    pub got: [c_char; 256],
    /// The way out.
    pub help: [c_char; 512],
}

const EMPTY: calotype_error = calotype_error {
    size: 0,
    kind: 0,
    message: [0; 1024],
    place: [0; 256],
    expected: [0; 256],
    got: [0; 256],
    help: [0; 512],
};

/// Makes the call of an entry point: its result and whatever it panics with become a status, and an error in the caller's structure.
pub(super) fn guard(error: *mut calotype_error, call: impl FnOnce() -> Result<(), Error>) -> c_int {
    // What a panic leaves half done is behind a lock that it poisons.
    let result = catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| Err(internal(panic)));
    match result {
        Ok(()) => calotype_status::CALOTYPE_OK as c_int,
        Err(problem) => {
            // Its text is made of the problem's, which may be anything.
            let written = catch_unwind(AssertUnwindSafe(|| fill(error, &problem)));
            written.map_or(calotype_status::CALOTYPE_INTERNAL as c_int, |()| status(problem.kind()))
        }
    }
}

fn status(kind: ErrorKind) -> c_int {
    c_int::from(kind.exit_code())
}

fn internal(panic: Box<dyn Any + Send>) -> Error {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic");
    let error = Error::new(ErrorKind::Internal, format!("internal error (a bug in calotype): {text}"));
    // A panic's value may panic when it is dropped.
    std::mem::forget(panic);
    error
}

/// How messages name a setting: the fields of recipes and of options.
pub(super) fn setting(name: &str) -> String {
    match name {
        "memory" => "`memory_bytes`".into(),
        "ort" => "`onnxruntime`".into(),
        field => format!("`{field}`"),
    }
}

fn fill(error: *mut calotype_error, problem: &Error) {
    // SAFETY: the caller passes NULL, or a structure whose first field has its size; it is aligned, or nothing is read.
    let size = if error.is_null() || !error.is_aligned() { 0 } else { unsafe { (*error).size } };
    if size == 0 {
        return;
    }
    let mut whole = EMPTY;
    whole.size = size;
    whole.kind = status(problem.kind());
    put(&mut whole.message, &problem.message_with(setting));
    put(&mut whole.place, problem.place().unwrap_or_default());
    put(&mut whole.expected, problem.expected().unwrap_or_default());
    put(&mut whole.got, problem.got().unwrap_or_default());
    put(&mut whole.help, &problem.way_out_with(setting).unwrap_or_default());
    let mut size = size.min(size_of::<calotype_error>());
    // Of a shorter structure the last byte of its last text ends it.
    if size < size_of::<calotype_error>() && size > std::mem::offset_of!(calotype_error, message) {
        size -= 1;
        // SAFETY: within the caller's structure, as its size says.
        unsafe { error.cast::<u8>().add(size).write(0) };
    }
    // SAFETY: `size` bytes are within both structures.
    unsafe { ptr::copy_nonoverlapping((&raw const whole).cast::<u8>(), error.cast::<u8>(), size) };
}

/// Puts a text into an array, with as much of it as fits, and a zero byte.
fn put(array: &mut [c_char], text: &str) {
    const CUT: &str = "...";
    let room = array.len() - 1;
    // A text ends at its first zero byte.
    let text = text.replace('\0', "\\0");
    let text = if text.len() <= room {
        text
    } else {
        let mut end = room - CUT.len();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        format!("{}{CUT}", &text[..end])
    };
    array.fill(0);
    for (place, byte) in array.iter_mut().zip(text.bytes()) {
        *place = byte.cast_signed() as c_char;
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    /// What is after a zero byte is left out by all readers.
    fn text(array: &[c_char]) -> String {
        let bytes: Vec<u8> = array.iter().map(|byte| *byte as u8).collect();
        CStr::from_bytes_until_nul(&bytes).expect("a zero byte").to_str().expect("UTF-8").into()
    }

    #[test]
    fn numbers_are_the_exit_codes() {
        use calotype_status::*;
        for (kind, status) in [
            (ErrorKind::Usage, CALOTYPE_USAGE),
            (ErrorKind::Input, CALOTYPE_INPUT),
            (ErrorKind::Model, CALOTYPE_MODEL),
            (ErrorKind::Memory, CALOTYPE_MEMORY),
            (ErrorKind::Runtime, CALOTYPE_RUNTIME),
            (ErrorKind::Cancelled, CALOTYPE_CANCELLED),
            (ErrorKind::Numeric, CALOTYPE_NUMERIC),
            (ErrorKind::Output, CALOTYPE_OUTPUT),
            (ErrorKind::Internal, CALOTYPE_INTERNAL),
        ] {
            assert_eq!(c_int::from(kind.exit_code()), status as c_int);
        }
    }

    #[test]
    fn panics_and_errors_become_numbers() {
        let mut error = calotype_error { size: size_of::<calotype_error>(), ..EMPTY };
        assert_eq!(guard(&mut error, || panic!("at {}", 5)), 70);
        assert_eq!(text(&error.message), "internal error (a bug in calotype): at 5");
        let problem =
            || Err(Error::new(ErrorKind::Usage, "steps: expected 1, got 0").help("give {steps}, {ort}"));
        assert_eq!(guard(&mut error, problem), 2);
        assert_eq!(text(&error.message), "steps: expected 1, got 0; give `steps`, `onnxruntime`");
        assert_eq!([&error.place[..], &error.expected, &error.got].map(text), ["steps", "1", "0"]);
        assert_eq!((error.kind, text(&error.help)), (2, "give `steps`, `onnxruntime`".into()));
        // Left alone by what succeeds, and not needed.
        assert_eq!((guard(&mut error, || Ok(())), error.kind), (0, 2));
        assert_eq!(guard(ptr::null_mut(), problem), 2);
        // Programs that were compiled with fewer fields.
        let known = std::mem::offset_of!(calotype_error, place);
        let mut error = calotype_error { size: known, place: [7; 256], ..EMPTY };
        let long = || Err(Error::new(ErrorKind::Usage, format!("steps: {}", "é \0".repeat(600))));
        assert_eq!(guard(&mut error, long), 2);
        assert_eq!((text(&error.message).len(), error.place), (1023, [7; 256]));
        for size in 0..known {
            let mut error = calotype_error { size, place: [7; 256], ..EMPTY };
            assert_eq!((guard(&mut error, problem), error.size), (2, size));
            assert!(error.place == [7; 256] && error.message[1023] == 0, "{size}");
        }
    }

    #[test]
    fn texts_end_within_their_array() {
        let mut array = [1; 8];
        for (long, short) in [
            ("", ""),
            ("1234567", "1234567"),
            ("12345678", "1234..."),
            ("123ééé", "123..."),
            ("a\0b", "a\\0b"),
        ] {
            put(&mut array, long);
            assert_eq!(text(&array), short);
        }
    }
}
