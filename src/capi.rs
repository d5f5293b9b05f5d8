//! The C library: the functions of `include/calotype.h`, each a call of the library's own API behind checks of its pointers. It knows
//! nothing of arithmetic, and has no defaults of its own.
//!
//! [The manual](crate::manual::c_library) says how it is built and linked. The header is generated from this folder; its text is that of
//! the comments here. A Rust program uses the crate itself.

// Callers pass pointers; every block says what is known of them.
#![allow(unsafe_code)]
// The names are those of the header.
#![allow(non_camel_case_types)]
// What the pointers must be is said once, at the head of the header.
#![allow(clippy::missing_safety_doc)]

mod handle;
mod image;
mod option;
mod pipeline;
mod status;

use std::ffi::c_char;

pub use self::image::*;
pub use self::option::*;
pub use self::pipeline::*;
pub use self::status::*;

/// The version of the library, as in "0.1.0". A static string: it is not freed.
#[unsafe(no_mangle)]
pub extern "C" fn calotype_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}
