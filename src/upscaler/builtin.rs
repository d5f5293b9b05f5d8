//! The file of `models/upscaler`, as it lies in this program, if it was built with it.

use crate::{Error, ErrorKind};

/// What messages call it.
pub(super) const NAME: &str = "built-in upscaler";

/// Its bytes.
///
/// # Errors
/// [`ErrorKind::Usage`] when the program was built without it.
pub(super) fn file() -> Result<&'static [u8], Error> {
    FILE.ok_or_else(|| {
        let problem =
            format!("{NAME}: expected a program built with calotype's feature `builtin`, got one without");
        Error::new(ErrorKind::Usage, problem).help("name an upscaler, or build with the feature")
    })
}

#[cfg(not(feature = "builtin"))]
static FILE: Option<&[u8]> = None;

#[cfg(feature = "builtin")]
static FILE: Option<&[u8]> = Some(include_bytes!("../../models/upscaler/upscaler.onnx"));
