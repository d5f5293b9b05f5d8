//! Weights: a checked table from tensor names to bytes that stay where they lie, in mapped files or in the program.
//! It knows nothing of graphs, and what the tensors mean.

mod map;
mod safetensors;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use self::map::Bytes;
use self::safetensors::Problem;
use crate::{Error, ErrorKind};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// 16-bit float (IEEE 754).
    F16,
    /// 16-bit float with the exponent of a 32-bit one.
    Bf16,
    /// 64-bit float.
    F64,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// 16-bit signed integer.
    I16,
    /// 8-bit signed integer.
    I8,
    /// 64-bit unsigned integer.
    U64,
    /// 32-bit unsigned integer.
    U32,
    /// 16-bit unsigned integer.
    U16,
    /// 8-bit unsigned integer.
    U8,
    /// A truth value in a byte, 0 or 1.
    Bool,
}

impl Dtype {
    /// Every type there is.
    pub(crate) const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::F64,
        Self::I64,
        Self::I32,
        Self::I16,
        Self::I8,
        Self::U64,
        Self::U32,
        Self::U16,
        Self::U8,
        Self::Bool,
    ];

    /// The name that safetensors files use, which `Display` gives too.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::F64 => "F64",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U64 => "U64",
            Self::U32 => "U32",
            Self::U16 => "U16",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
        }
    }

    /// Whether it is a type of floats.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16 | Self::F64)
    }

    /// The size of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// For programs: where a file of weights is made shorter while it is in use, the process ends with a message, which `begin`
/// begins and which names the file, and with the exit code of [`ErrorKind::Model`], instead of by a signal. The handler of
/// SIGBUS that was there before is replaced.
pub fn exit_when_truncated(begin: &'static str) {
    map::exit_when_truncated(begin, ErrorKind::Model.exit_code());
}

/// A checked table of tensors over the bytes of one or more files.
#[derive(Clone, Default)]
pub struct Weights {
    files: Vec<Arc<Bytes>>,
    tensors: BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
}

#[derive(Clone)]
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Whether a matrix lies as `[in, out]`, where PyTorch's linear layers keep `[out, in]`.
    transposed: bool,
    /// Index into `Weights::files`.
    file: usize,
    offset_bytes: usize,
    len_bytes: usize,
}

/// What a tensor of [`Weights::select`] is made of: a tensor as it is stored, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its name in the file.
    pub name: String,
    /// Which of its rows (the outermost dimension) are meant; all when absent.
    pub rows: Option<Range<usize>>,
    /// Whether it is a matrix stored as `[in, out]`.
    pub transposed: bool,
}

impl Stored {
    /// The whole tensor of this name.
    pub fn whole(name: impl Into<String>) -> Self {
        Self { name: name.into(), rows: None, transposed: false }
    }
}

/// The error for a file that the system does not let us read, or for which it has no address space.
fn unreadable(place: &str, error: io::Error) -> Error {
    let is_memory = error.kind() == io::ErrorKind::OutOfMemory;
    Error::new(if is_memory { ErrorKind::Memory } else { ErrorKind::Model }, place).source(error)
}

impl Weights {
    /// Maps safetensors files and reads their headers; the tensors' data stays on disk until it is used.
    ///
    /// The files must not be changed in place while the weights live: shortening one would kill the process when the
    /// lost part is touched. (Replacing a file by renaming another over it is harmless.)
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when a file cannot be read, is not safetensors, contradicts itself, or has a tensor that
    /// another of the files has too.
    pub fn open(paths: &[impl AsRef<Path>]) -> Result<Self, Error> {
        let mut weights = Self::default();
        for path in paths.iter().map(AsRef::as_ref) {
            let place = path.display().to_string();
            let unreadable = |error: io::Error| unreadable(&place, error);
            // Looked at before it is opened: opening a named pipe would wait for ever.
            if !path.metadata().map_err(unreadable)?.is_file() {
                return Err(Error::new(
                    ErrorKind::Model,
                    format!("{place}: expected a file, got something else"),
                ));
            }
            let mut file = File::open(path).map_err(unreadable)?;
            let bytes = file.try_clone().and_then(|file| Bytes::map(file, path)).map_err(unreadable)?;

            // The header is read, not mapped: what was checked cannot change afterwards.
            let mut prefix = Vec::new();
            file.by_ref()
                .take(safetensors::PREFIX_BYTES as u64)
                .read_to_end(&mut prefix)
                .map_err(unreadable)?;
            let header_len =
                safetensors::header_len(&prefix, bytes.len()).map_err(|problem| refuse(&place, problem))?;
            let mut header = vec![0; header_len];
            file.read_exact(&mut header).map_err(unreadable)?;
            weights.add(&place, bytes, &header)?;
        }
        Ok(weights)
    }

    /// Reads the header of a safetensors file that is part of the program; nothing is copied. `name` is for messages.
    ///
    /// The bytes must start at an address that is a multiple of 8, which `include_bytes!` alone does not give:
    ///
    /// ```
    /// #[repr(C, align(64))]
    /// struct Aligned<Bytes: ?Sized>(Bytes);
    /// static FILE: &Aligned<[u8]> = &Aligned(*b"\x02\0\0\0\0\0\0\0{}"); // or *include_bytes!("…")
    /// let weights = calotype::weights::Weights::from_static("built-in", &FILE.0)?;
    /// assert_eq!(weights.iter().count(), 0);
    /// # Ok::<(), calotype::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Weights::open`].
    pub fn from_static(name: &str, file: &'static [u8]) -> Result<Self, Error> {
        let mut weights = Self::default();
        let prefix = &file[..file.len().min(safetensors::PREFIX_BYTES)];
        let header_len =
            safetensors::header_len(prefix, file.len()).map_err(|problem| refuse(name, problem))?;
        let header = &file[safetensors::PREFIX_BYTES..][..header_len];
        weights.add(name, Bytes::of_program(file), header)?;
        Ok(weights)
    }

    /// Whether the files still have all that is mapped of them. To be asked before the weights are used: touching what a
    /// file has lost would kill the process.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for a file that has become shorter.
    pub fn check_files(&self) -> Result<(), Error> {
        let lost = self.files.iter().find_map(|bytes| Some((bytes.len(), bytes.missing()?)));
        let Some((len_bytes, (path, left_bytes))) = lost else { return Ok(()) };
        Err(Error::new(
            ErrorKind::Model,
            format!(
                "{}: expected {len_bytes} bytes, got {left_bytes}: it was made shorter in use",
                path.display()
            ),
        )
        .help("put a new file in its place by renaming, never by writing over it"))
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        self.tensors.get(name).map(|tensor| TensorView { weights: self, tensor })
    }

    /// All tensors, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, TensorView<'_>)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), TensorView { weights: self, tensor }))
    }

    /// The SHA-256 of all tensors: of each its name, type and shape as `name F16[2, 3]`, and its data.
    pub(crate) fn sha256(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for (name, tensor) in self.iter() {
            hash.update(format!("{name} {}{:?}", tensor.dtype(), tensor.shape()));
            hash.update(tensor.to_bytes());
        }
        hash.finalize().into()
    }

    /// Maps a file whose tensors [`Weights::insert`] will name, and gives its index.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when it cannot be read.
    pub(crate) fn map(&mut self, path: &Path) -> Result<usize, Error> {
        let place = path.display().to_string();
        let unreadable = |error: io::Error| unreadable(&place, error);
        if !path.metadata().map_err(unreadable)?.is_file() {
            return Err(Error::new(
                ErrorKind::Model,
                format!("{place}: expected a file, got something else"),
            ));
        }
        let bytes = File::open(path).and_then(|file| Bytes::map(file, path)).map_err(unreadable)?;
        self.files.push(Arc::new(bytes));
        Ok(self.files.len() - 1)
    }

    /// Names a tensor in a file that was mapped. One that does not lie where its elements may is copied.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when the file ends before the tensor does.
    pub(crate) fn insert(
        &mut self,
        name: &str,
        dtype: Dtype,
        shape: &[usize],
        file: usize,
        offset_bytes: u64,
    ) -> Result<(), Error> {
        let refuse = |problem: String| Error::new(ErrorKind::Model, format!("weight {name}: {problem}"));
        let bytes = &self.files[file];
        let len_bytes = shape.iter().try_fold(dtype.size_bytes(), |bytes, &dim| bytes.checked_mul(dim));
        let range = usize::try_from(offset_bytes).ok().zip(len_bytes).and_then(|(offset, len)| {
            offset.checked_add(len).filter(|end| *end <= bytes.len()).map(|end| offset..end)
        });
        let Some(range) = range else {
            return Err(refuse(format!(
                "{dtype} {shape:?} from offset {offset_bytes}: expected data up to its end, got a file of {} bytes",
                bytes.len()
            ))
            .help("the file is cut short: download or copy it again"));
        };
        if !(bytes.as_ptr() as usize + range.start).is_multiple_of(dtype.size_bytes()) {
            let own = bytes.owned(range.clone());
            bytes.release(range);
            self.keep(name.to_owned(), dtype, shape, own);
            return Ok(());
        }
        let tensor = Tensor {
            dtype,
            shape: shape.to_vec(),
            transposed: false,
            file,
            offset_bytes: range.start,
            len_bytes: range.len(),
        };
        self.tensors.insert(name.to_owned(), tensor);
        Ok(())
    }

    /// What the files' headers say beside the tensors, under this name; of several files the last that says it counts.
    pub fn metadata(&self, name: &str) -> Option<&str> {
        self.metadata.get(name).map(String::as_str)
    }

    /// The tensors of these names, each taken from one stored here; nothing is copied, and the files are shared.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when a tensor is not here, or has no such rows.
    pub fn select(&self, table: impl IntoIterator<Item = (String, Stored)>) -> Result<Self, Error> {
        let mut tensors = BTreeMap::new();
        for (name, stored) in table {
            let refuse = |problem: String| {
                Err(Error::new(ErrorKind::Model, format!("weight {}: {problem}", stored.name)))
            };
            let Some(tensor) = self.tensors.get(&stored.name) else {
                return refuse("expected in the file, got none".into());
            };
            let mut tensor = tensor.clone();
            if stored.transposed {
                if tensor.shape.len() != 2 {
                    return refuse(format!("expected a matrix, got shape {:?}", tensor.shape));
                }
                tensor.transposed = !tensor.transposed;
            }
            if let Some(rows) = &stored.rows {
                let Some(count) = tensor.shape.first().copied().filter(|count| rows.end <= *count) else {
                    return refuse(format!("expected rows {rows:?}, got shape {:?}", tensor.shape));
                };
                let row_bytes = tensor.len_bytes.checked_div(count).unwrap_or(0);
                tensor.offset_bytes += rows.start * row_bytes;
                tensor.len_bytes = rows.len() * row_bytes;
                tensor.shape[0] = rows.len();
            }
            tensors.insert(name, tensor);
        }
        Ok(Self { files: self.files.clone(), tensors, metadata: self.metadata.clone() })
    }

    /// Puts a tensor in private memory, in the place of the one of this name where there is one.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when there are not as many bytes as type and shape need.
    pub fn replace(
        &mut self,
        name: impl Into<String>,
        dtype: Dtype,
        shape: &[usize],
        bytes: &[u8],
    ) -> Result<(), Error> {
        let name = name.into();
        let needed = shape.iter().try_fold(dtype.size_bytes(), |bytes, &dim| bytes.checked_mul(dim));
        if needed != Some(bytes.len()) {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("weight {name}: {dtype} {shape:?}: got {} bytes of data", bytes.len()),
            ));
        }
        self.keep(name, dtype, shape, Bytes::own(bytes));
        Ok(())
    }

    /// The same tensors, of which those of these names lie in private memory as far as [`TensorView::location`] tells,
    /// and have no bytes: for counting alone.
    pub(crate) fn with_private<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut weights = self.clone();
        for name in names {
            if let Some(tensor) = weights.tensors.get_mut(name) {
                (tensor.file, tensor.offset_bytes) = (weights.files.len(), 0);
                weights.files.push(Arc::new(Bytes::own(&[])));
            }
        }
        weights
    }

    /// Whether the bytes of a file are a copy in private memory, which is there as long as these weights are.
    pub(crate) fn is_private(&self, file: usize) -> bool {
        self.files[file].is_private()
    }

    /// Adds a tensor whose bytes these are.
    fn keep(&mut self, name: String, dtype: Dtype, shape: &[usize], bytes: Bytes) {
        let tensor = Tensor {
            dtype,
            shape: shape.to_vec(),
            transposed: false,
            file: self.files.len(),
            offset_bytes: 0,
            len_bytes: bytes.len(),
        };
        self.files.push(Arc::new(bytes));
        self.tensors.insert(name, tensor);
    }

    /// Per file the name under which [`TensorView::location`] refers to it, and its address and size in bytes.
    ///
    /// The addresses are valid for as long as these weights live.
    pub(crate) fn files(&self) -> impl ExactSizeIterator<Item = (String, *const u8, usize)> {
        self.files.iter().enumerate().map(|(index, bytes)| (file_name(index), bytes.as_ptr(), bytes.len()))
    }

    /// Reads the pages around these bytes of a file into memory.
    pub(crate) fn populate(&self, file: usize, range: Range<usize>) {
        self.files[file].populate(range);
    }

    /// Takes the pages of all files out of memory, where they can be read again.
    pub(crate) fn release_all(&self) {
        self.files.iter().for_each(|bytes| bytes.release(0..bytes.len()));
    }

    /// Takes the pages around these bytes of a file out of memory, where they can be read again.
    pub(crate) fn release(&self, file: usize, range: Range<usize>) {
        self.files[file].release(range);
    }

    /// Adds the tensors of one file; `place` is for messages, `header` is its JSON.
    fn add(&mut self, place: &str, bytes: Bytes, header: &[u8]) -> Result<(), Error> {
        let (entries, metadata) =
            safetensors::parse(header, bytes.len()).map_err(|problem| refuse(place, problem))?;
        self.metadata.extend(metadata);
        for entry in entries {
            let address = bytes.as_ptr() as usize + entry.offset_bytes;
            if !address.is_multiple_of(entry.dtype.size_bytes()) {
                return Err(Error::new(
                    ErrorKind::Model,
                    format!(
                        "{place}: tensor {}: expected data at a multiple of {} bytes, got offset {}",
                        entry.name,
                        entry.dtype.size_bytes(),
                        entry.offset_bytes
                    ),
                )
                .help("save the file again with safetensors 0.3 or newer, which aligns it"));
            }
            if self.tensors.contains_key(&entry.name) {
                return Err(Error::new(
                    ErrorKind::Model,
                    format!("{place}: tensor {}: expected once, got it in an earlier file too", entry.name),
                ));
            }
            let tensor = Tensor {
                dtype: entry.dtype,
                shape: entry.shape,
                transposed: false,
                file: self.files.len(),
                offset_bytes: entry.offset_bytes,
                len_bytes: entry.len_bytes,
            };
            self.tensors.insert(entry.name, tensor);
        }
        self.files.push(Arc::new(bytes));
        Ok(())
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Weights({} tensors in {} files)", self.tensors.len(), self.files.len())
    }
}

/// One tensor of some [`Weights`].
#[derive(Clone, Copy)]
pub struct TensorView<'a> {
    weights: &'a Weights,
    tensor: &'a Tensor,
}

impl<'a> TensorView<'a> {
    /// The type of its elements.
    pub fn dtype(&self) -> Dtype {
        self.tensor.dtype
    }

    /// Its size in elements as it is stored, outermost dimension first.
    pub fn shape(&self) -> &'a [usize] {
        &self.tensor.shape
    }

    /// Whether it is a matrix that lies as `[in, out]`, where the reference implementation has `[out, in]`.
    pub fn is_transposed(&self) -> bool {
        self.tensor.transposed
    }

    /// The size of its data.
    pub fn len_bytes(&self) -> usize {
        self.tensor.len_bytes
    }

    /// A copy of its data: little-endian elements in row-major order.
    ///
    /// There is no way to borrow the data: a mapped file can change at any time, a `&[u8]` must not.
    pub fn to_bytes(&self) -> Vec<u8> {
        let start = self.tensor.offset_bytes;
        self.weights.files[self.tensor.file].copy(start..start + self.tensor.len_bytes)
    }

    /// Takes the pages of its data out of memory, where they can be read again.
    pub(crate) fn release(&self) {
        let start = self.tensor.offset_bytes;
        self.weights.release(self.tensor.file, start..start + self.tensor.len_bytes);
    }

    /// Where the data lies: the name of a file in [`Weights::files`], and the offset in it in bytes.
    pub(crate) fn location(&self) -> (String, usize) {
        (file_name(self.tensor.file), self.tensor.offset_bytes)
    }
}

fn file_name(index: usize) -> String {
    format!("weights-{index}")
}

fn refuse(place: &str, problem: Problem) -> Error {
    let error = Error::new(ErrorKind::Model, format!("{place}: {}", problem.message));
    match problem.help {
        Some(help) => error.help(help),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A safetensors file of this header and data.
    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    /// Pads a header with blanks so that the data starts at a multiple of eight.
    fn padded(header: &str) -> String {
        format!("{header:width$}", width = header.len().next_multiple_of(8))
    }

    fn open(files: &[&[u8]]) -> Result<Weights, Error> {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<_> =
            (0..files.len()).map(|index| folder.path().join(format!("{index}.safetensors"))).collect();
        paths.iter().zip(files).for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
        Weights::open(&paths)
    }

    /// The message with which a file is refused, after the file's name; checks that it is there.
    fn refusal(file: &[u8]) -> String {
        let error = open(&[file]).expect_err("the file is hostile");
        assert_eq!(error.kind(), ErrorKind::Model);
        let message = error.to_string();
        message.split_once("/0.safetensors: ").expect("the message names the file").1.to_owned()
    }

    #[test]
    fn tensors_are_found_by_name() {
        let header = padded(
            r#"{"__metadata__":{"format":"pt","a":"b"},
            "b":{"dtype":"F16","shape":[2,1],"data_offsets":[8,12]},
            "a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
            "empty":{"dtype":"BOOL","shape":[0,3],"data_offsets":[12,12]}}"#,
        );
        let data: Vec<u8> = (1..=12).collect();
        let other = file(&padded(r#"{"c":{"dtype":"I64","shape":[],"data_offsets":[0,8]}}"#), &[7; 8]);
        let weights = open(&[&file(&header, &data), &other]).unwrap();

        let names: Vec<&str> = weights.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a", "b", "c", "empty"]);
        let b = weights.get("b").unwrap();
        assert_eq!((b.dtype(), b.shape(), b.len_bytes()), (Dtype::F16, &[2, 1][..], 4));
        assert_eq!(b.to_bytes(), [9, 10, 11, 12]);
        assert_eq!(b.location(), ("weights-0".into(), 8 + header.len() + 8));
        assert_eq!(weights.get("a").unwrap().to_bytes(), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(weights.get("c").unwrap().to_bytes(), [7; 8]);
        assert_eq!(weights.get("c").unwrap().location().0, "weights-1");
        assert_eq!(weights.get("empty").unwrap().len_bytes(), 0);
        assert!(weights.get("d").is_none());
        assert_eq!((weights.metadata("a"), weights.metadata("b")), (Some("b"), None));
    }

    #[test]
    fn a_file_in_the_program_is_read_in_place() {
        let bytes = file(&padded(r#"{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}"#), &[1, 2, 3]);
        let bytes: &'static [u8] = bytes.leak();
        let weights = Weights::from_static("built-in", bytes).unwrap();
        assert_eq!(weights.get("a").unwrap().to_bytes(), [1, 2, 3]);
        assert_eq!(
            weights.files().map(|(_, address, len)| (address, len)).collect::<Vec<_>>(),
            [(bytes.as_ptr(), bytes.len())]
        );
    }

    #[test]
    fn every_dtype_has_its_size() {
        for dtype in Dtype::ALL {
            let bits: String = dtype.name().chars().filter(char::is_ascii_digit).collect();
            let bits = if dtype == Dtype::Bool { 8 } else { bits.parse().unwrap() };
            assert_eq!(dtype.size_bytes() * 8, bits, "{dtype}");
        }
    }

    #[test]
    fn missing_file() {
        let error = Weights::open(&["/no/such.safetensors"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Model);
        assert!(error.to_string().starts_with("/no/such.safetensors: No such file"), "{error}");
    }

    #[test]
    fn folder_instead_of_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = Weights::open(&[folder.path()]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Model);
        assert!(error.to_string().ends_with("expected a file, got something else"), "{error}");
    }

    #[test]
    fn empty_file() {
        assert_eq!(refusal(b""), "expected safetensors, at least 8 bytes, got 0 bytes");
    }

    #[test]
    fn truncated_length() {
        assert_eq!(refusal(b"\x10\0\0"), "expected safetensors, at least 8 bytes, got 3 bytes");
    }

    #[test]
    fn pickle() {
        for start in [&b"PK\x03\x04 archive/data.pkl"[..], &b"\x80\x02\x8a\x0al\xfc\x9cF\xf9"[..]] {
            let message = refusal(start);
            assert!(message.starts_with("expected safetensors, got a PyTorch pickle"), "{message}");
            assert!(message.contains("convert it"), "{message}");
        }
    }

    #[test]
    fn some_other_file() {
        for start in ["GGUF\x03\0\0\0 and so on", "a text file", "\0\0\0\0\0\0\0\x01"] {
            let message = refusal(start.as_bytes());
            assert!(
                message.starts_with("expected safetensors with a header of at most 100000000 bytes"),
                "{message}"
            );
        }
    }

    #[test]
    fn header_length_overflows() {
        let message = refusal(&[&u64::MAX.to_le_bytes()[..], b"{}"].concat());
        assert!(message.ends_with("got one of 18446744073709551615 bytes"), "{message}");
    }

    #[test]
    fn header_too_long() {
        let message = refusal(&[&100_000_001u64.to_le_bytes()[..], b"{}"].concat());
        assert!(
            message.contains("a header of at most 100000000 bytes, got one of 100000001 bytes"),
            "{message}"
        );
    }

    #[test]
    fn truncated_header() {
        let whole = file(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, &[0]);
        let message = refusal(&whole[..30]);
        assert!(
            message.starts_with("expected a header of 53 bytes, got 22 bytes; the file is cut short"),
            "{message}"
        );
    }

    #[test]
    fn header_is_not_json() {
        for header in ["", "[]", "{", r#"{"a":1}"#, "\"\u{fffd}", "{} {}", r#"{"__metadata__":{"a":1}}"#] {
            let message = refusal(&file(header, b""));
            assert!(message.starts_with("header: expected JSON of tensors, "), "{header}: {message}");
        }
        assert!(
            refusal(&[&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat()).starts_with("header: expected JSON")
        );
    }

    #[test]
    fn header_nested_without_end() {
        assert!(refusal(&file(&"[".repeat(1_000_000), b"")).starts_with("header: expected JSON of tensors"));
        assert!(
            refusal(&file(&r#"{"a":"#.repeat(100_000), b"")).starts_with("header: expected JSON of tensors")
        );
    }

    #[test]
    fn unknown_field_values() {
        let header = r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#;
        assert!(refusal(&file(header, &[0])).contains("tensor a: invalid value: integer `-1`"));
        let header = r#"{"a":{"dtype":"U8","shape":[1]}}"#;
        assert!(refusal(&file(header, &[0])).contains("tensor a: missing field `data_offsets`"));
    }

    #[test]
    fn unknown_dtype() {
        let message = refusal(&file(r#"{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}"#, &[0]));
        assert!(message.starts_with("tensor a: dtype: expected one of F32, F16, "), "{message}");
        assert!(message.ends_with(", BOOL, got F8_E4M3"), "{message}");
    }

    #[test]
    fn duplicate_names() {
        let header = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
        let message = refusal(&file(header, &[0, 0]));
        assert!(message.contains("got a twice"), "{message}");
    }

    #[test]
    fn duplicate_names_in_two_files() {
        let one = file(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, &[0]);
        let error = open(&[&one, &one]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Model);
        assert!(
            error
                .to_string()
                .ends_with("1.safetensors: tensor a: expected once, got it in an earlier file too"),
            "{error}"
        );
    }

    #[test]
    fn overlapping_tensors() {
        let header = r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#;
        let message = refusal(&file(header, &[0; 3]));
        assert_eq!(message, "tensor b: overlaps the tensor before it: expected data from offset 2, got 1");
    }

    #[test]
    fn gap_between_tensors() {
        let header = r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}}"#;
        let message = refusal(&file(header, &[0; 5]));
        assert_eq!(message, "tensor b: leaves a gap before it: expected data from offset 2, got 3");
    }

    #[test]
    fn offsets_out_of_bounds() {
        let header = r#"{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}"#;
        assert!(
            refusal(&file(header, &[0; 2]))
                .starts_with("tensor a: expected data up to offset 3, got 2 bytes")
        );
        let header =
            r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615]}}"#;
        assert!(refusal(&file(header, &[0])).contains("leaves a gap before it"));
    }

    #[test]
    fn offsets_reversed() {
        let header = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}}"#;
        assert_eq!(
            refusal(&file(header, &[0])),
            "tensor a: U8 [1]: expected 1 bytes of data, got offsets 1 to 0"
        );
    }

    #[test]
    fn shape_disagrees_with_offsets() {
        let header = r#"{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,20]}}"#;
        let message = refusal(&file(header, &[0; 20]));
        assert_eq!(message, "tensor a: F32 [2, 3]: expected 24 bytes of data, got offsets 0 to 20");
    }

    #[test]
    fn shape_overflows() {
        let header = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#;
        let message = refusal(&file(header, b""));
        assert!(message.ends_with("more bytes than can be counted"), "{message}");
    }

    #[test]
    fn truncated_anywhere() {
        let whole = file(r#"{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}"#, &[0; 9]);
        assert!(open(&[&whole]).is_ok());
        for len in 8..whole.len() {
            let message = refusal(&whole[..len]);
            assert!(message.contains("the file is cut short"), "{len}: {message}");
        }
    }

    #[test]
    fn truncated_data() {
        let whole = file(r#"{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}"#, &[0; 9]);
        let message = refusal(&whole[..whole.len() - 1]);
        assert!(
            message.starts_with("tensor a: expected data up to offset 9, got 8 bytes; the file is cut"),
            "{message}"
        );
    }

    #[test]
    fn data_after_the_last_tensor() {
        let message = refusal(&file(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, &[0; 3]));
        assert_eq!(message, "expected 1 bytes of data, got 3");
    }

    #[test]
    fn misaligned_data() {
        let mut header = padded(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#);
        header.push_str("  ");
        let message = refusal(&file(&header, &[0; 4]));
        assert!(
            message.starts_with("tensor a: expected data at a multiple of 4 bytes, got offset 66; save"),
            "{message}"
        );
    }
}
