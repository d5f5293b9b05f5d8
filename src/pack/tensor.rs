//! The tensors of a packed file: each made of one weight of the source, in a type and form of its own.
//! It holds one weight at a time, and knows nothing of files or graphs.

use std::io::Write;

use half::{bf16, f16};
use sha2::{Digest, Sha256};

use super::folder::Failure;
use super::quantizer;
use crate::graph::quantize::{BLOCK, Form};
use crate::weights::{Dtype, TensorView};
use crate::{Error, ErrorKind};

/// Elements that are converted at once.
const CHUNK: usize = 1 << 14;

/// A tensor to be written.
pub(super) struct Packed<'a> {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) source: TensorView<'a>,
    /// Whether the source is a matrix that is to be turned.
    pub(super) is_turned: bool,
    /// What becomes of the numbers, beside their type; nothing when absent.
    pub(super) form: Option<Form>,
}

impl Packed<'_> {
    /// How many bytes are written.
    pub(super) fn len_bytes(&self) -> usize {
        // No more than the source has, or four times as many: the product cannot overflow.
        self.shape.iter().product::<usize>() * self.dtype.size_bytes()
    }

    /// Hashes what the tensor is made of, and how. The numbers of scales are those of the integers beside them.
    pub(super) fn digest(&self, source: &[u8], hash: &mut Sha256) {
        let Self { name, dtype, shape, source: view, is_turned, form } = self;
        let recipe =
            format!("{name} {dtype} {shape:?} {} {:?} {is_turned} {form:?}\n", view.dtype(), view.shape());
        hash.update(recipe);
        if !matches!(form, Some(Form::BlockScales(_) | Form::ChannelScales)) {
            hash.update(source);
        }
    }

    /// Writes the tensor's bytes, made of the bytes of its source.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for a number that the type cannot hold.
    pub(super) fn write(&self, source: &[u8], to: &mut impl Write) -> Result<(), Failure> {
        let from = self.source.dtype();
        let mut bytes = Vec::new();
        match self.form {
            None if from == self.dtype && !self.is_turned => to.write_all(source)?,
            None if from == self.dtype => self.rows(source, |row| Ok(to.write_all(row)?))?,
            None => self.rows(source, |row| {
                for chunk in row.chunks(CHUNK * from.size_bytes()) {
                    bytes.clear();
                    self.convert(chunk, &mut bytes)?;
                    to.write_all(&bytes)?;
                }
                Ok(())
            })?,
            Some(form) => self.rows(source, |row| {
                bytes.clear();
                let row = self.floats(row)?;
                match form {
                    Form::BlockCodes(bits) => {
                        row.chunks(BLOCK).for_each(|block| quantizer::block_codes(block, bits, &mut bytes));
                    }
                    Form::BlockScales(bits) => {
                        let scales = row.chunks(BLOCK).map(|block| quantizer::block_scale(block, bits));
                        bytes.extend(scales.flat_map(f32::to_le_bytes));
                    }
                    Form::ChannelCodes => quantizer::channel_codes(&row, &mut bytes),
                    Form::ChannelScales => bytes.extend(quantizer::channel_scale(&row).to_le_bytes()),
                }
                Ok(to.write_all(&bytes)?)
            })?,
        }
        Ok(())
    }

    /// Calls `each` with the bytes of every row of the source, as the reference implementation has them.
    fn rows(&self, source: &[u8], mut each: impl FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
        let (size, shape) = (self.source.dtype().size_bytes(), self.source.shape());
        match *shape {
            [inputs, out] if self.is_turned => {
                let mut row = Vec::with_capacity(inputs * size);
                for column in 0..out {
                    row.clear();
                    for element in 0..inputs {
                        row.extend_from_slice(&source[(element * out + column) * size..][..size]);
                    }
                    each(&row)?;
                }
                Ok(())
            }
            _ => {
                let rows = self.shape.first().copied().unwrap_or(1).max(1);
                source.chunks((source.len() / rows).max(1)).try_for_each(each)
            }
        }
    }

    /// Appends elements of the source in the tensor's type.
    fn convert(&self, elements: &[u8], into: &mut Vec<u8>) -> Result<(), Error> {
        let floats = self.floats(elements)?;
        match self.dtype {
            Dtype::F16 => {
                for x in floats {
                    let half = f16::from_f32(x);
                    if !half.is_finite() {
                        let largest = f16::MAX;
                        return Err(self
                            .refuse(format!("expected numbers up to {largest}, the largest of F16, got {x}"))
                            .help("keep this model in F32"));
                    }
                    into.extend(half.to_le_bytes());
                }
            }
            _ => into.extend(floats.into_iter().flat_map(f32::to_le_bytes)),
        }
        Ok(())
    }

    /// Elements of the source as 32-bit floats, all of them numbers.
    fn floats(&self, elements: &[u8]) -> Result<Vec<f32>, Error> {
        let floats: Vec<f32> = match self.source.dtype() {
            Dtype::F16 => elements.as_chunks().0.iter().map(|x| f16::from_le_bytes(*x).to_f32()).collect(),
            Dtype::Bf16 => elements.as_chunks().0.iter().map(|x| bf16::from_le_bytes(*x).to_f32()).collect(),
            _ => elements.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect(),
        };
        match floats.iter().find(|x| !x.is_finite()) {
            Some(x) => Err(self.refuse(format!("expected finite numbers, got {x}"))),
            None => Ok(floats),
        }
    }

    fn refuse(&self, problem: String) -> Error {
        Error::new(ErrorKind::Model, format!("weight {}: {problem}", self.name))
    }
}
