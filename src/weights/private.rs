//! A tensor that is not used where it lies: made in private memory for as long as somebody uses it, from what a file has.
//! It knows nothing of what stored bytes mean; its encoding does.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::Dtype;
use super::encoding::Encoding;
use super::map::Bytes;
use crate::{Error, ErrorKind};

/// A tensor in the form in which a file has it.
pub(super) struct Private {
    name: String,
    source: Arc<Bytes>,
    /// Where it lies in `source`.
    range: Range<usize>,
    encoding: Encoding,
    /// The type of elements that are stored plainly.
    plain: Dtype,
    shape: Vec<usize>,
    len_bytes: usize,
    /// What is in use, so that it is made once.
    made: Mutex<Weak<Bytes>>,
}

impl Private {
    /// `range` has as many bytes as the encoding needs for this shape.
    pub(super) fn new(
        name: &str,
        source: &Arc<Bytes>,
        range: Range<usize>,
        encoding: Encoding,
        plain: Dtype,
        shape: &[usize],
    ) -> Self {
        let len_bytes = shape.iter().product::<usize>() * encoding.dtype(plain).size_bytes();
        Self {
            name: name.to_owned(),
            source: Arc::clone(source),
            range,
            encoding,
            plain,
            shape: shape.to_vec(),
            len_bytes,
            made: Mutex::default(),
        }
    }

    /// How much memory it takes while it is in use.
    pub(super) fn len(&self) -> usize {
        self.len_bytes
    }

    /// The elements, made now unless they are in use already.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for a number that its type cannot hold.
    pub(super) fn lend(&self) -> Result<Arc<Bytes>, Error> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = made.upgrade() {
            return Ok(made);
        }
        let bytes = Bytes::built(self.len_bytes, |write| {
            let mut widest = Ok(());
            self.decode(|bytes, problem| {
                write(bytes);
                if let (Some(value), Ok(())) = (problem, &widest) {
                    widest = Err(value);
                }
            });
            widest
        });
        let bytes = bytes.map_err(|value: f32| {
            Error::new(
                ErrorKind::Model,
                format!("weight {}: expected numbers that 16-bit floats can hold, got {value}", self.name),
            )
            .help("the file is damaged, or not of a network that can be run")
        })?;
        // What was read on the way is not needed any more.
        self.source.release(self.range.clone());
        let bytes = Arc::new(bytes);
        *made = Arc::downgrade(&bytes);
        Ok(bytes)
    }

    /// A copy of some of the elements' bytes; numbers that their type cannot hold are infinite.
    pub(super) fn copy(&self, range: Range<usize>) -> Vec<u8> {
        if self.encoding == Encoding::Plain {
            return self.source.copy(self.range.start + range.start..self.range.start + range.end);
        }
        let (mut at, mut out) = (0, Vec::with_capacity(range.len()));
        self.decode(|bytes, _| {
            let (first, last) = (range.start.max(at), range.end.min(at + bytes.len()));
            if first < last {
                out.extend_from_slice(&bytes[first - at..last - at]);
            }
            at += bytes.len();
        });
        self.source.release(self.range.clone());
        out
    }

    /// A copy of some of what its file has of it.
    pub(super) fn sample(&self) -> Vec<u8> {
        super::sample(&self.source, self.range.clone())
    }

    fn decode(&self, write: impl FnMut(&[u8], Option<f32>)) {
        let read = |range: Range<usize>| {
            self.source.copy(self.range.start + range.start..self.range.start + range.end)
        };
        self.encoding.decode(&self.shape, self.plain, read, write);
    }
}
