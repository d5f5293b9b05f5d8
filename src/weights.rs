//! Weights: a checked table from tensor names to bytes that stay where they lie, in mapped files or in the program.
//! It knows nothing of graphs, and what the tensors mean.

mod block;
mod encoding;
mod gguf;
mod kind;
mod map;
mod private;
mod safetensors;
mod scaled;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use sha2::{Digest, Sha256};

use self::encoding::Encoding;
use self::map::Bytes;
use self::private::Private;
use self::safetensors::{Entry, Problem};
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

/// How much of a tensor is a sample of it: more than one page is read of none but the smallest.
const SAMPLE_BYTES: usize = 1024;

/// For programs: where a file of weights is made shorter while it is in use, the process ends with a message, which `begin`
/// begins and which names the file, and with the exit code of [`ErrorKind::Model`], instead of by a signal. The handler of
/// SIGBUS that was there before is replaced.
///
/// Where `json` is given and has become true by then, an object with the error is written to standard output as well, and
/// `json` is made false: programs that print one object when they end know that it has been printed.
pub fn exit_when_truncated(begin: &'static str, json: Option<&'static AtomicBool>) {
    map::exit_when_truncated(begin, ErrorKind::Model.exit_code(), json);
}

/// A checked table of tensors over the bytes of one or more files.
#[derive(Clone, Default)]
pub struct Weights {
    files: Vec<Data>,
    tensors: BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
    /// Why tensors of the files cannot be used, by name.
    unreadable: BTreeMap<String, String>,
}

/// What tensors lie in.
#[derive(Clone)]
enum Data {
    /// A file, or memory that was filled when the weights were made.
    Whole(Arc<Bytes>),
    /// One tensor, which is made while it is in use.
    Private(Arc<Private>),
}

impl Data {
    fn copy(&self, range: Range<usize>) -> Vec<u8> {
        match self {
            Self::Whole(bytes) => bytes.copy(range),
            Self::Private(tensor) => tensor.copy(range),
        }
    }

    /// A copy of the middle of these bytes as they are stored; its pages are released.
    fn sample(&self, range: Range<usize>) -> Vec<u8> {
        match self {
            Self::Whole(bytes) => sample(bytes, range),
            Self::Private(tensor) => tensor.sample(),
        }
    }

    fn lend(&self) -> Result<Arc<Bytes>, Error> {
        match self {
            Self::Whole(bytes) => Ok(Arc::clone(bytes)),
            Self::Private(tensor) => tensor.lend(),
        }
    }
}

/// A copy of the middle of these bytes, whose pages are released.
fn sample(bytes: &Bytes, range: Range<usize>) -> Vec<u8> {
    let start = range.start + range.len().saturating_sub(SAMPLE_BYTES) / 2;
    let middle = start..range.end.min(start + SAMPLE_BYTES);
    let sample = bytes.copy(middle.clone());
    bytes.release(middle);
    sample
}

/// Files of some [`Weights`] at addresses that are valid for as long as this lives.
pub(crate) struct Lent {
    files: Vec<(usize, Arc<Bytes>)>,
}

impl Lent {
    /// Per file the name under which [`TensorView::location`] refers to it, and its address and size in bytes.
    pub(crate) fn files(&self) -> impl ExactSizeIterator<Item = (String, *const u8, usize)> {
        self.files.iter().map(|(index, bytes)| (file_name(*index), bytes.as_ptr(), bytes.len()))
    }
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
    /// Maps safetensors and GGUF files and reads their headers; the tensors' data stays on disk until it is used.
    ///
    /// Tensors that lie where their elements may not (at odd offsets), floats of 8 bits, integers of 8 bits with scales
    /// (ComfyUI's `scaled_fp8` and `int8_tensorwise`) and blocks of GGUF are made in private memory for as long as a session
    /// uses them: [`Weights::copied_bytes`]. Such numbers are 16-bit floats here.
    ///
    /// The files must not be changed in place while the weights live: shortening one would kill the process when the
    /// lost part is touched. (Replacing a file by renaming another over it is harmless.)
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when a file cannot be read, is neither safetensors nor GGUF, contradicts itself, or has a tensor
    /// that another of the files has too.
    pub fn open(paths: &[impl AsRef<Path>]) -> Result<Self, Error> {
        let mut weights = Self::default();
        for path in paths.iter().map(AsRef::as_ref) {
            weights.add_file(path).map_err(|error| error.in_file(path))?;
        }
        Ok(weights)
    }

    /// These tensors and those of another file, which has none of the same names.
    ///
    /// # Errors
    /// As [`Weights::open`].
    pub(crate) fn with_file(&self, path: &Path) -> Result<Self, Error> {
        let mut weights = self.clone();
        weights.add_file(path).map_err(|error| error.in_file(path))?;
        Ok(weights)
    }

    fn add_file(&mut self, path: &Path) -> Result<(), Error> {
        let place = path.display().to_string();
        let unreadable = |error: io::Error| unreadable(&place, error);
        // Looked at before it is opened: opening a named pipe would wait for ever.
        if !path.metadata().map_err(unreadable)?.is_file() {
            return Err(Error::new(
                ErrorKind::Model,
                format!("{place}: expected a regular file, got another kind"),
            ));
        }
        let mut file = File::open(path).map_err(unreadable)?;
        let bytes = file.try_clone().and_then(|file| Bytes::map(file, path)).map_err(unreadable)?;

        // The header is read, not mapped: what was checked cannot change afterwards.
        let mut prefix = Vec::new();
        file.by_ref().take(kind::PREFIX_BYTES as u64).read_to_end(&mut prefix).map_err(unreadable)?;
        if prefix.starts_with(&gguf::MAGIC) {
            file.rewind().map_err(unreadable)?;
            let header = gguf::read(BufReader::new(file), bytes.len());
            let header = header.map_err(|problem| refuse(&place, problem.into()))?;
            self.add_gguf(&place, bytes, header)?;
            return Ok(());
        }
        // A length may begin like another format's magic number: what follows decides.
        let (start, rest) = prefix.split_at(prefix.len().min(safetensors::PREFIX_BYTES));
        let is_header = rest.trim_ascii_start().starts_with(b"{");
        let other = if is_header { None } else { kind::of(&prefix) };
        let header_len = match safetensors::header_len(start, bytes.len()) {
            Err(problem) => return Err(refuse(&place, other.unwrap_or(problem))),
            Ok(len) => len,
        };
        let mut header = vec![0; header_len];
        file.seek(io::SeekFrom::Start(safetensors::PREFIX_BYTES as u64)).map_err(unreadable)?;
        file.read_exact(&mut header).map_err(unreadable)?;
        self.add(&place, bytes, &header).map_err(|error| match other {
            Some(other) => refuse(&place, other),
            None => error,
        })?;
        Ok(())
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
        let lost = self.files.iter().find_map(|data| match data {
            Data::Whole(bytes) => Some((bytes.len(), bytes.missing()?)),
            // What it is made of lies in a file that is here too.
            Data::Private(_) => None,
        });
        let Some((len_bytes, (path, left_bytes))) = lost else { return Ok(()) };
        Err(Error::new(
            ErrorKind::Model,
            format!(
                "{}: expected {len_bytes} bytes, got {left_bytes}: it was truncated while in use",
                path.display()
            ),
        )
        .help("replace files by renaming, never by overwriting")
        .in_file(path))
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
            // A hash alone is no reason to have gigabytes in memory.
            self.release(
                tensor.tensor.file,
                tensor.tensor.offset_bytes..tensor.tensor.offset_bytes + tensor.len_bytes(),
            );
        }
        hash.finalize().into()
    }

    /// The SHA-256 of the name, type and shape of every tensor, and of a sample of its data as it is stored. Weights of other
    /// networks, trainings, types and merges differ in it; a change of single numbers need not be seen.
    pub(crate) fn sampled_sha256(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for (name, tensor) in &self.tensors {
            let Tensor { dtype, shape, transposed, file, offset_bytes, len_bytes } = tensor;
            hash.update(format!("{name} {dtype}{shape:?} {transposed}"));
            hash.update(self.files[*file].sample(*offset_bytes..offset_bytes + len_bytes));
        }
        hash.finalize().into()
    }

    /// Maps a file whose tensors [`Weights::insert`] will name, and gives its index.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when it cannot be read.
    pub(crate) fn map(&mut self, path: &Path) -> Result<usize, Error> {
        let place = path.display().to_string();
        let unreadable = |error: io::Error| unreadable(&place, error).in_file(path);
        if !path.metadata().map_err(unreadable)?.is_file() {
            return Err(Error::new(
                ErrorKind::Model,
                format!("{place}: expected a regular file, got another kind"),
            )
            .in_file(path));
        }
        let bytes = File::open(path).and_then(|file| Bytes::map(file, path)).map_err(unreadable)?;
        self.files.push(Data::Whole(Arc::new(bytes)));
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
        let Data::Whole(bytes) = &self.files[file] else {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("weight {name}: expected a file that was mapped"),
            ));
        };
        let len_bytes = shape.iter().try_fold(dtype.size_bytes(), |bytes, &dim| bytes.checked_mul(dim));
        let range = usize::try_from(offset_bytes).ok().zip(len_bytes).and_then(|(offset, len)| {
            offset.checked_add(len).filter(|end| *end <= bytes.len()).map(|end| offset..end)
        });
        let Some(range) = range else {
            return Err(refuse(format!(
                "{dtype} {shape:?} from offset {offset_bytes}: expected data up to its end, got a file of {} bytes",
                bytes.len()
            ))
            .help("the file is truncated: download or copy it again"));
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
                return refuse(match self.unreadable(&stored.name) {
                    Some(reason) => reason.to_owned(),
                    None => "expected in the file, got none".into(),
                });
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
        Ok(Self { tensors, ..self.clone() })
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
                weights.files.push(Data::Whole(Arc::new(Bytes::own(&[]))));
            }
        }
        weights
    }

    /// Whether the bytes of a file are a copy in private memory, which is there as long as these weights are.
    pub(crate) fn is_private(&self, file: usize) -> bool {
        matches!(&self.files[file], Data::Whole(bytes) if bytes.is_private())
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
        self.files.push(Data::Whole(Arc::new(bytes)));
        self.tensors.insert(name, tensor);
    }

    /// Why a tensor of the files cannot be used, if it is there and cannot.
    pub(crate) fn unreadable(&self, name: &str) -> Option<&str> {
        self.unreadable.get(name).map(String::as_str)
    }

    /// How much private memory the tensors take that cannot be used where they lie, if all are in use at once: those at odd
    /// offsets are copied, others are decoded.
    pub fn copied_bytes(&self) -> usize {
        let files: BTreeSet<usize> = self.tensors.values().map(|tensor| tensor.file).collect();
        files.into_iter().map(|file| self.private_bytes(file)).sum()
    }

    /// How much private memory a file takes while it is lent, beside its pages on disk.
    pub(crate) fn private_bytes(&self, file: usize) -> usize {
        match &self.files[file] {
            Data::Whole(_) => 0,
            Data::Private(tensor) => tensor.len(),
        }
    }

    /// Files by their numbers, at addresses; what is not used where it lies is made now.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for numbers that their type cannot hold.
    pub(crate) fn lend(&self, files: impl IntoIterator<Item = usize>) -> Result<Lent, Error> {
        let files: BTreeSet<usize> = files.into_iter().collect();
        let lent = files.into_iter().map(|index| Ok((index, self.files[index].lend()?)));
        Ok(Lent { files: lent.collect::<Result<_, Error>>()? })
    }

    /// The path of a file that is mapped and still lies there.
    pub(crate) fn path(&self, file: usize) -> Option<&Path> {
        match &self.files[file] {
            Data::Whole(bytes) => bytes.path(),
            Data::Private(_) => None,
        }
    }

    /// A copy of these bytes of a file.
    pub(crate) fn bytes(&self, file: usize, range: Range<usize>) -> Vec<u8> {
        self.files[file].copy(range)
    }

    /// Reads the pages around these bytes of a file into memory.
    pub(crate) fn populate(&self, file: usize, range: Range<usize>) {
        if let Data::Whole(bytes) = &self.files[file] {
            bytes.populate(range);
        }
    }

    /// Takes the pages of all files out of memory, where they can be read again.
    pub(crate) fn release_all(&self) {
        (0..self.files.len()).for_each(|file| self.release(file, 0..usize::MAX));
    }

    /// Takes the pages around these bytes of a file out of memory, where they can be read again.
    pub(crate) fn release(&self, file: usize, range: Range<usize>) {
        if let Data::Whole(bytes) = &self.files[file] {
            bytes.release(range.start..range.end.min(bytes.len()));
        }
    }

    /// Adds the tensors of one file; `place` is for messages, `header` is its JSON.
    fn add(&mut self, place: &str, bytes: Bytes, header: &[u8]) -> Result<(), Error> {
        let (entries, metadata) =
            safetensors::parse(header, bytes.len()).map_err(|problem| refuse(place, problem))?;
        self.metadata.extend(metadata);
        self.add_entries(place, bytes, entries)
    }

    fn add_gguf(&mut self, place: &str, bytes: Bytes, header: gguf::Header) -> Result<(), Error> {
        let mut entries = Vec::new();
        let mut names = BTreeSet::new();
        for gguf::Tensor { name, shape, kind, offset_bytes } in header.tensors {
            if !names.insert(name.clone()) {
                return Err(refuse(place, format!("tensor {name}: expected once, got it twice").into()));
            }
            let count = shape.iter().try_fold(1usize, |count, &dim| count.checked_mul(dim));
            // What cannot be read is not measured: where it ends, its type would tell.
            let len_bytes = match &kind {
                Ok((dtype, encoding)) => count.and_then(|count| encoding.stored_bytes(count, *dtype)),
                Err(_) => Some(0),
            };
            let Some(len_bytes) = len_bytes else {
                return Err(refuse(
                    place,
                    format!("tensor {name}: shape {shape:?}: expected whole blocks").into(),
                ));
            };
            if offset_bytes.checked_add(len_bytes).is_none_or(|end| end > bytes.len()) {
                return Err(refuse(
                    place,
                    format!(
                        "tensor {name}: expected {len_bytes} bytes of data from offset {offset_bytes}, got a file of {} bytes",
                        bytes.len()
                    )
                    .into(),
                )
                .help("the file is truncated: download or copy it again"));
            }
            entries.push(Entry { name, kind, shape, offset_bytes, len_bytes });
        }
        entries.sort_by_key(|entry| (entry.offset_bytes, entry.len_bytes));
        for pair in entries.windows(2) {
            if pair[0].offset_bytes + pair[0].len_bytes > pair[1].offset_bytes {
                let (first, second) = (&pair[0].name, &pair[1].name);
                return Err(refuse(
                    place,
                    format!("tensor {second}: overlaps the tensor {first} before it").into(),
                ));
            }
        }
        let architecture = header.texts.get(gguf::ARCHITECTURE).cloned();
        self.metadata.extend(architecture.map(|name| (gguf::ARCHITECTURE.to_owned(), name)));
        self.add_entries(place, bytes, entries)
    }

    /// Adds the tensors of one file, which lie in it and do not overlap.
    fn add_entries(&mut self, place: &str, bytes: Bytes, entries: Vec<Entry>) -> Result<(), Error> {
        let bytes = Arc::new(bytes);
        let by_name: BTreeMap<&str, &Entry> =
            entries.iter().map(|entry| (entry.name.as_str(), entry)).collect();
        let scaled::Scaled { mut weights, spent } = scaled::find(
            || by_name.keys().copied().collect(),
            |name| {
                let entry = by_name.get(name)?;
                let (dtype, encoding) = entry.kind.as_ref().ok()?;
                Some(scaled::Stored { dtype: *dtype, encoding, shape: &entry.shape })
            },
            |name| {
                by_name.get(name).map_or_else(Vec::new, |entry| {
                    bytes.copy(entry.offset_bytes..entry.offset_bytes + entry.len_bytes)
                })
            },
        );
        let spent: BTreeSet<String> = spent.into_iter().collect();
        let whole = self.files.len();
        self.files.push(Data::Whole(Arc::clone(&bytes)));
        for Entry { name, kind, shape, offset_bytes, len_bytes } in entries {
            if spent.contains(&name) {
                tracing::debug!(place, name, "read with the weight beside it, or not needed");
                continue;
            }
            if self.tensors.contains_key(&name) || self.unreadable.contains_key(&name) {
                return Err(refuse(
                    place,
                    format!("tensor {name}: expected once, got it in an earlier file too").into(),
                ));
            }
            let kind = kind.map_err(|kind| format!("stored as {kind}, which cannot be read"));
            let kind = kind.and_then(|(dtype, plain)| {
                weights.remove(&name).unwrap_or(Ok(plain)).map(|encoding| (dtype, encoding))
            });
            let (plain, encoding) = match kind {
                Ok(kind) => kind,
                Err(reason) => {
                    self.unreadable.insert(name, reason);
                    continue;
                }
            };
            let dtype = encoding.dtype(plain);
            let address = bytes.as_ptr() as usize + offset_bytes;
            let is_in_place = encoding == Encoding::Plain && address.is_multiple_of(dtype.size_bytes());
            let (file, offset_bytes, len_bytes) = if is_in_place {
                (whole, offset_bytes, len_bytes)
            } else {
                let range = offset_bytes..offset_bytes + len_bytes;
                let tensor = Private::new(&name, &bytes, range, encoding, plain, &shape);
                let len_bytes = tensor.len();
                self.files.push(Data::Private(Arc::new(tensor)));
                (self.files.len() - 1, 0, len_bytes)
            };
            self.tensors
                .insert(name, Tensor { dtype, shape, transposed: false, file, offset_bytes, len_bytes });
        }
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

impl From<String> for Problem {
    fn from(message: String) -> Self {
        Self { message, help: None }
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
            weights.lend([0]).unwrap().files().map(|(_, address, len)| (address, len)).collect::<Vec<_>>(),
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
        assert!(error.to_string().ends_with("expected a regular file, got another kind"), "{error}");
    }

    #[test]
    fn empty_file() {
        assert_eq!(
            refusal(b""),
            "expected weights (safetensors or GGUF), got an empty file; download it again"
        );
    }

    #[test]
    fn truncated_length() {
        assert_eq!(refusal(b"\x10\0\0"), "expected safetensors, at least 8 bytes, got 3 bytes");
    }

    #[test]
    fn some_other_file() {
        let what = "expected weights (safetensors or GGUF), got ";
        for (start, kind) in [
            (&b"PK\x03\x04 archive/data.pkl"[..], "a PyTorch pickle"),
            (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9", "a PyTorch pickle"),
            (b"a text file", "text; download the file itself"),
            (b"version https://git-lfs.github.com/spec/v1\n", "the pointer of git-lfs"),
        ] {
            let message = refusal(start);
            assert!(message.starts_with(&format!("{what}{kind}")), "{message}");
        }
        let message = refusal(b"\0\0\0\0\0\0\0\x01");
        assert!(
            message.starts_with("expected safetensors with a header of at most 100000000 bytes"),
            "{message}"
        );
        assert!(refusal(b"GGUF\x01\0\0\0").contains("version 2 or 3, got version 1"));
        assert!(refusal(b"GGUF\x03\0\0\0 and so on").contains("the file is truncated"));
    }

    /// A header's length may begin like the magic number of a pickle or an archive.
    #[test]
    fn lengths_that_look_like_marks_are_lengths() {
        for len in [0x0280usize, 0x8b1f, 0x4b50] {
            let header = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
            let header = format!("{header:len$}");
            assert_eq!(open(&[&file(&header, &[7])]).unwrap().get("a").unwrap().to_bytes(), [7], "{len:#x}");
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
            message.starts_with("expected a header of 53 bytes, got 22 bytes; the file is truncated"),
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
        let message = refusal(&file(r#"{"a":{"dtype":"F8_E9","shape":[1],"data_offsets":[0,1]}}"#, &[0]));
        assert!(message.starts_with("tensor a: dtype: expected one of F32, F16, "), "{message}");
        assert!(message.ends_with(", BOOL, got F8_E9"), "{message}");
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
            assert!(message.contains("the file is truncated"), "{len}: {message}");
        }
    }

    #[test]
    fn truncated_data() {
        let whole = file(r#"{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}"#, &[0; 9]);
        let message = refusal(&whole[..whole.len() - 1]);
        assert!(
            message.starts_with("tensor a: expected data up to offset 9, got 8 bytes; the file is truncated"),
            "{message}"
        );
    }

    #[test]
    fn data_after_the_last_tensor() {
        let message = refusal(&file(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, &[0; 3]));
        assert_eq!(message, "expected 1 bytes of data, got 3");
    }

    /// Whatever the length of the header, elements are what they are, and only those are copied that must be.
    #[test]
    fn data_at_any_offset() {
        for pad in 0..16 {
            let header = format!(
                r#"{{"b":{{"dtype":"U8","shape":[3],"data_offsets":[0,3]}},
                "f":{{"dtype":"F32","shape":[2],"data_offsets":[3,11]}},
                "h":{{"dtype":"F16","shape":[2,1],"data_offsets":[11,15]}}}}{:pad$}"#,
                ""
            );
            let data: Vec<u8> = (1..=15).collect();
            let bytes = file(&header, &data);
            let start = bytes.len() - data.len();
            let weights = open(&[&bytes]).unwrap();
            assert_eq!(weights.get("b").unwrap().to_bytes(), data[..3]);
            assert_eq!(weights.get("f").unwrap().to_bytes(), data[3..11]);
            assert_eq!(weights.get("h").unwrap().to_bytes(), data[11..]);
            let is_off = |offset: usize, size: usize| usize::from(!(start + offset).is_multiple_of(size));
            assert_eq!(weights.copied_bytes(), is_off(3, 4) * 8 + is_off(11, 2) * 4, "{pad}");
            // Where they are lent, they may be read as what they are, and are the same while they are in use.
            let lent = weights.lend(0..weights.files.len()).unwrap();
            for name in ["f", "h"] {
                let view = weights.get(name).unwrap();
                let (file, offset) = view.location();
                let (_, address, len) = lent.files().find(|(name, ..)| *name == file).unwrap();
                assert!(
                    (address as usize + offset).is_multiple_of(view.dtype().size_bytes()),
                    "{pad}: {name}"
                );
                assert!(offset + view.len_bytes() <= len);
            }
            let again = weights.lend(0..weights.files.len()).unwrap();
            assert!(
                again.files().map(|(_, address, _)| address).eq(lent.files().map(|(_, address, _)| address))
            );
            // A part is of the same memory.
            let part =
                weights.select([("x".into(), Stored { rows: Some(1..2), ..Stored::whole("h") })]).unwrap();
            assert_eq!(part.get("x").unwrap().to_bytes(), data[13..]);
            assert_eq!(part.copied_bytes(), is_off(11, 2) * 4);
        }
    }

    #[test]
    fn scales_beside_floats_of_eight_bits() {
        let (one, two) = (0x38, 0x40);
        for (marks, rows) in [
            (
                r#""scaled_fp8":{"dtype":"F8_E4M3","shape":[0],"data_offsets":[16,16]},
              "m.scale_weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
              "m.scale_input":{"dtype":"F32","shape":[],"data_offsets":[4,8]}"#,
                false,
            ),
            (r#""m.weight_scale":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}"#, true),
        ] {
            let header = format!(
                r#"{{{marks},"m.weight":{{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[8,12]}},
                "m.bias":{{"dtype":"F32","shape":[1],"data_offsets":[12,16]}}}}"#
            );
            let scales = [0.5f32.to_le_bytes(), 0.25f32.to_le_bytes()].concat();
            let data = [&scales[..], &[one, two, one, 0xb8], &1f32.to_le_bytes()].concat();
            let weights = open(&[&file(&padded(&header), &data)]).unwrap();
            let names: Vec<&str> = weights.iter().map(|(name, _)| name).collect();
            assert_eq!(names, ["m.bias", "m.weight"]);
            let view = weights.get("m.weight").unwrap();
            assert_eq!((view.dtype(), view.shape(), view.len_bytes()), (Dtype::F16, &[2, 2][..], 8));
            let second = if rows { 0.25 } else { 0.5 };
            let got = encoding::floats(Dtype::F16, &view.to_bytes()).unwrap();
            assert_eq!(got, [0.5, 1.0, second, -second]);
            assert_eq!(weights.copied_bytes(), 8);
        }
    }

    /// Two weights of one side, one rotated.
    #[test]
    fn integers_with_formats() {
        let format = |convrot: bool| {
            format!(r#"{{"format":"int8_tensorwise","convrot":{convrot},"convrot_groupsize":4}}"#)
                .into_bytes()
        };
        let tensors: [(&str, &str, &[usize], Vec<u8>); 6] = [
            ("a.weight", "I8", &[1, 4], vec![1, 2, 3, 0xfc]),
            ("a.weight_scale", "F32", &[1], 2f32.to_le_bytes().to_vec()),
            ("a.comfy_quant", "U8", &[format(false).len()], format(false)),
            ("b.weight", "I8", &[1, 4], vec![1, 2, 3, 0xfc]),
            ("b.weight_scale", "F32", &[1], 2f32.to_le_bytes().to_vec()),
            ("b.comfy_quant", "U8", &[format(true).len()], format(true)),
        ];
        let weights = open(&[&of(&tensors)]).unwrap();
        assert_eq!(weights.iter().count(), 2);
        let floats =
            |name: &str| encoding::floats(Dtype::F16, &weights.get(name).unwrap().to_bytes()).unwrap();
        assert_eq!(floats("a.weight"), [2.0, 4.0, 6.0, -8.0]);
        // [1, 2, 3, -4] H4: half of the sum, 1, less each from the last on.
        assert_eq!(floats("b.weight"), [10.0, -4.0, -2.0, 0.0]);
    }

    #[test]
    fn what_cannot_be_read_is_told_when_it_is_used() {
        let json = |json: &str| json.as_bytes().to_vec();
        let scale = |value: f32| value.to_le_bytes().to_vec();
        let tensors: [(&str, &str, &[usize], Vec<u8>); 16] = [
            ("a.weight", "F4", &[3, 1], vec![0; 2]),
            ("b.weight", "F8_E8M0", &[2], vec![0; 2]),
            ("c.weight", "U8", &[2], vec![0; 2]),
            ("c.comfy_quant", "U8", &[17], json(r#"{"format":"nvf"} "#)),
            ("d.weight", "F8_E4M3", &[2], vec![0; 2]),
            ("d.weight_scale", "F32", &[3], vec![0; 12]),
            ("e.weight", "F8_E5M2", &[2], vec![0; 2]),
            ("e.weight_scale", "F32", &[], scale(f32::NAN)),
            ("f.weight", "I8", &[2, 8], vec![0; 16]),
            (
                "f.comfy_quant",
                "U8",
                &[64],
                json(&format!("{:64}", r#"{"format":"int8_tensorwise","convrot":true}"#)),
            ),
            ("f.weight_scale", "F32", &[], scale(0.5)),
            ("i.weight", "I8", &[2], vec![7; 2]),
            ("i.comfy_quant", "U8", &[28], json(r#"{"format":"int8_tensorwise"}"#)),
            ("g.weight", "F16", &[1], vec![0; 2]),
            ("g.weight_scale", "F32", &[], scale(2.0)),
            ("h.weight", "F16", &[1], vec![0; 2]),
        ];
        let weights = open(&[&of(&tensors)]).unwrap();
        assert_eq!(weights.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["h.weight"]);
        for (name, reason) in [
            ("a", "stored as F4, which cannot be read"),
            ("b", "stored as F8_E8M0"),
            ("c", "stored as nvf"),
            ("d", "d.weight_scale: expected one float, or one for each of 2 rows, got F32 [3]"),
            ("e", "expected finite numbers, got NaN"),
            ("f", "convrot_groupsize: expected a power of 4 that divides the rows of [2, 8], got 0"),
            ("g", "expected a scale beside 8-bit floats, got one beside F16"),
            ("i", "expected a scale beside 8-bit integers, got none"),
        ] {
            let name = format!("{name}.weight");
            let error = weights.select([("x".into(), Stored::whole(&name))]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("weight {name}: ")) && error.contains(reason), "{error}");
        }
    }

    /// A safetensors file of these tensors, as they come.
    fn of(tensors: &[(&str, &str, &[usize], Vec<u8>)]) -> Vec<u8> {
        let mut end = 0;
        let entries = tensors.iter().map(|(name, dtype, shape, bytes)| {
            let begin = end;
            end += bytes.len();
            format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#)
        });
        let header = format!("{{{}}}", entries.collect::<Vec<_>>().join(","));
        file(&header, &tensors.iter().flat_map(|(.., bytes)| bytes.clone()).collect::<Vec<u8>>())
    }

    /// Against what the `gguf` package makes of the same blocks (`export/golden_gguf.py`).
    #[test]
    fn blocks_are_what_the_gguf_package_makes_of_them() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf");
        let got = Weights::open(&[folder.join("blocks.gguf")]).unwrap();
        let expected = Weights::open(&[folder.join("blocks.safetensors")]).unwrap();
        assert_eq!(got.metadata("general.architecture"), Some("sdxl"));
        assert!(got.iter().map(|(name, _)| name).eq(expected.iter().map(|(name, _)| name)));
        let mut blocks = 0;
        for (name, expected) in expected.iter() {
            let view = got.get(name).unwrap();
            assert_eq!(view.shape(), expected.shape(), "{name}");
            let [got, wanted] =
                [view, expected].map(|view| encoding::floats(view.dtype(), &view.to_bytes()).unwrap());
            for (at, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
                // Half a step of a 16-bit float, or of its smallest.
                let tolerance =
                    if view.dtype() == Dtype::F16 { (wanted.abs() / 2048.0).max(3e-8) } else { 0.0 };
                assert!((got - wanted).abs() <= tolerance, "{name}: number {at}: {got}, not {wanted}");
            }
            assert!(wanted.iter().any(|x| x.abs() > 0.1), "{name}: zeros would pass");
            blocks += usize::from(view.len_bytes() == got.len() * 2 && !["F16", "BF16"].contains(&name));
        }
        assert_eq!(blocks, 16);
        let private: usize = got
            .iter()
            .filter(|(name, _)| !["F32", "F16", "BF16"].contains(name))
            .map(|(_, view)| view.len_bytes())
            .sum();
        assert_eq!(got.copied_bytes(), private);
    }

    /// Cut anywhere, and with bytes changed at random, a file is read or refused, and what it has can be read to its end.
    #[test]
    fn damaged_files_are_survived() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("damaged");
        let gguf = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf/blocks.gguf"))
            .unwrap();
        let json = r#"{"format":"int8_tensorwise","convrot":true,"convrot_groupsize":4}"#;
        let tensors: [(&str, &str, &[usize], Vec<u8>); 5] = [
            ("a.weight", "I8", &[2, 4], vec![1; 8]),
            ("a.weight_scale", "F32", &[2, 1], vec![1; 8]),
            ("a.comfy_quant", "U8", &[json.len()], json.into()),
            ("b.weight", "F8_E4M3", &[3], vec![1; 3]),
            ("b.scale_weight", "F32", &[], vec![1; 4]),
        ];
        let mut seed = 1u64;
        let mut random = move |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed % below as u64) as usize
        };
        let (mut read, mut refused) = (0, 0);
        for whole in [gguf, of(&tensors)] {
            for _ in 0..600 {
                let mut bytes = whole.clone();
                let header = whole.len().min(2000);
                for _ in 0..=random(3) {
                    bytes[random(header)] = random(256) as u8;
                }
                if random(4) == 0 {
                    bytes.truncate(random(whole.len()));
                }
                std::fs::write(&path, &bytes).unwrap();
                match Weights::open(&[&path]) {
                    Ok(weights) => {
                        weights
                            .iter()
                            .for_each(|(_, view)| assert_eq!(view.to_bytes().len(), view.len_bytes()));
                        let _ = weights.lend(0..weights.files.len());
                        read += 1;
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Model);
                        refused += 1;
                    }
                }
            }
        }
        assert!(read > 100 && refused > 100, "{read} and {refused}");
    }
}
