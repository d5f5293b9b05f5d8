//! The C library as a shared library that reuses what the tests have built: what `cargo rustc --lib --features capi --crate-type cdylib`
//! makes from the start.

pub use calotype::capi::*;
