//! What is fuzzed: one function per reader of untrusted bytes, which compares it with an oracle and panics where they
//! differ. `cargo fuzz` calls them with bytes that it makes up; `tests/corpus.rs` with the committed ones.

pub mod config;
pub mod file;
pub mod gguf;
pub mod image;
pub mod json;
pub mod lora;
pub mod manifest;
pub mod onnx;
pub mod prompt;
pub mod safetensors;
pub mod scaled;
pub mod single_file;
pub mod tokenizer;

/// What reads the bytes of one input.
pub type Target = fn(&[u8]);

/// Every target by its name, which is that of its folder in `corpus`.
pub const TARGETS: &[(&str, Target)] = &[
    ("config", config::run),
    ("gguf", gguf::run),
    ("image", image::run),
    ("json", json::run),
    ("lora", lora::run),
    ("manifest", manifest::run),
    ("onnx", onnx::run),
    ("prompt", prompt::run),
    ("safetensors", safetensors::run),
    ("scaled", scaled::run),
    ("single_file", single_file::run),
    ("tokenizer", tokenizer::run),
];
