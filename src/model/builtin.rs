//! The files of `models/builtin`, as they lie in this program.

use crate::{Error, ErrorKind};

/// What messages call the model.
pub(super) const NAME: &str = "built-in model";

/// Weights are handed to ONNX Runtime where they lie, so they must lie where their elements may.
#[repr(C, align(64))]
struct Aligned<Bytes: ?Sized>(Bytes);

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(($name, {
            static FILE: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!("../../models/builtin/", $name)));
            &FILE.0
        })),*]
    };
}

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

/// The bytes of one file; [`ErrorKind::Internal`] when the program was built without it.
pub(super) fn file(name: &str) -> Result<&'static [u8], Error> {
    FILES.iter().find(|(known, _)| *known == name).map(|(_, bytes)| *bytes).ok_or_else(|| {
        Error::new(ErrorKind::Internal, format!("{NAME}: expected a file {name}, got none in this build"))
    })
}
