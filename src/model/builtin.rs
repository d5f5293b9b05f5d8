//! The files of `models/builtin`, as they lie in this program, if it was built with them.

use crate::{Error, ErrorKind};

/// What messages call the model.
pub(super) const NAME: &str = "built-in model";

/// The bytes of one file.
///
/// # Errors
/// [`ErrorKind::Usage`] when the program was built without the model; [`ErrorKind::Internal`] for a file that it does not have.
pub(super) fn file(name: &str) -> Result<&'static [u8], Error> {
    if FILES.is_empty() {
        let problem =
            format!("{NAME}: expected a program built with calotype's feature `builtin`, got one without");
        return Err(Error::new(ErrorKind::Usage, problem).help("name a model, or build with the feature"));
    }
    FILES.iter().find(|(known, _)| *known == name).map(|(_, bytes)| *bytes).ok_or_else(|| {
        Error::new(ErrorKind::Internal, format!("{NAME}: expected a file {name}, got none in this build"))
    })
}

#[cfg(not(feature = "builtin"))]
static FILES: [(&str, &[u8]); 0] = [];

/// Weights are handed to ONNX Runtime where they lie, so they must lie where their elements may.
#[cfg(feature = "builtin")]
#[repr(C, align(64))]
struct Aligned<Bytes: ?Sized>(Bytes);

#[cfg(feature = "builtin")]
macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(($name, {
            static FILE: &Aligned<[u8]> =
                &Aligned(*include_bytes!(concat!(env!("CALOTYPE_BUILTIN_FOLDER"), "/", $name)));
            &FILE.0
        })),*]
    };
}

#[cfg(feature = "builtin")]
static FILES: [(&str, &[u8]); 10] = files![
    "calotype.json",
    "graphs/text_encoder.onnx.gz",
    "graphs/unet.onnx.gz",
    "graphs/vae_decoder.onnx.gz",
    "graphs/vae_encoder.onnx.gz",
    "text_encoder/tokenizer.json",
    "weights/text_encoder.safetensors",
    "weights/unet.safetensors",
    "weights/vae_decoder.safetensors",
    "weights/vae_encoder.safetensors",
];
