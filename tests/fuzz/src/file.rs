//! Files that hold the bytes of one run, safetensors files of given tensors, and numbers taken from the bytes.

use std::io::Write;
use std::path::Path;

use calotype::weights::Weights;
use tempfile::NamedTempFile;

/// A file of these bytes, gone when dropped.
pub fn holding(bytes: &[u8]) -> NamedTempFile {
    // In memory where there is such a folder.
    let memory = Path::new("/dev/shm");
    let file = if memory.is_dir() { NamedTempFile::new_in(memory) } else { NamedTempFile::new() };
    let mut file = file.expect("a temporary file");
    file.write_all(bytes).expect("room for it");
    file
}

/// The weights in a file of these bytes, if there are any.
pub fn weights(bytes: &[u8]) -> Result<Weights, calotype::Error> {
    Weights::open(&[holding(bytes).path()])
}

/// A tensor to be written: name, type as safetensors names it, shape and data.
pub type Tensor = (String, &'static str, Vec<usize>, Vec<u8>);

/// The bytes of a safetensors file.
pub fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, dtype, shape, data) in tensors {
        let begin = end;
        end += data.len();
        let entry = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, end] });
        header.insert(name.clone(), entry);
    }
    let mut json = serde_json::to_vec(&header).expect("names are JSON");
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend(json);
    tensors.iter().for_each(|(.., data)| file.extend(data));
    file
}

/// Bytes as a source of choices; zeros when they are used up.
pub struct Choices<'a>(pub &'a [u8]);

impl Choices<'_> {
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// One of `0..count`.
    pub fn below(&mut self, count: usize) -> usize {
        let wide = usize::from(self.byte()) << 8 | usize::from(self.byte());
        wide % count
    }

    /// A multiple of 1/16 in -8..8, which 16-bit floats of both kinds hold.
    pub fn number(&mut self) -> f32 {
        f32::from(self.byte() as i8) / 16.0
    }
}
