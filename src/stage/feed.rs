//! A feed: the elements of one input, in the type and shape that its graph wants. It knows nothing of what they mean.

use std::iter::repeat;

use half::f16;
use sha2::{Digest, Sha256};

use crate::engine::{Elements, NamedTensor, Output, Session, TensorRef, Value};
use crate::graph::{Dim, Port};
use crate::signature::{Binding, Role, Signature};
use crate::tensor::LatentShape;
use crate::weights::Dtype;
use crate::{Error, ErrorKind};

/// The elements of one input, kept between runs.
pub(crate) struct Feed(NamedTensor);

impl Feed {
    /// Zeros for an input; `shape` must be one that the input takes.
    pub(crate) fn zeros(port: &Port, shape: &[usize]) -> Result<Self, Error> {
        let fits = port.dims.len() == shape.len()
            && port.dims.iter().zip(shape).all(|(dim, size)| match dim {
                Dim::Fixed(fixed) => fixed == size,
                Dim::Free(_) => true,
            });
        let len = shape.iter().product();
        let elements = match port.dtype {
            Dtype::F32 => Elements::F32(vec![0.0; len]),
            Dtype::F16 => Elements::F16(vec![f16::ZERO; len]),
            Dtype::F64 => Elements::F64(vec![0.0; len]),
            Dtype::I64 => Elements::I64(vec![0; len]),
            Dtype::I32 => Elements::I32(vec![0; len]),
            Dtype::Bool => Elements::Bool(vec![false; len]),
            _ => {
                return Err(Error::new(
                    ErrorKind::Model,
                    format!("input {port}: expected a supported element type"),
                ));
            }
        };
        if !fits {
            return Err(Error::new(
                ErrorKind::Model,
                format!("input {port}: expected this shape, got {shape:?}"),
            ));
        }
        Ok(Self(NamedTensor { name: port.name.clone(), shape: shape.to_vec(), elements }))
    }

    /// A feed of these numbers.
    pub(crate) fn of(
        port: &Port,
        shape: &[usize],
        numbers: impl IntoIterator<Item = f64>,
    ) -> Result<Self, Error> {
        let mut feed = Self::zeros(port, shape)?;
        feed.fill(numbers);
        Ok(feed)
    }

    /// Adds its name, shape and elements to a hash.
    pub(crate) fn hash(&self, into: &mut Sha256) {
        fn add<T: Copy, const N: usize>(into: &mut Sha256, elements: &[T], bytes: fn(T) -> [u8; N]) {
            elements.iter().for_each(|element| into.update(bytes(*element)));
        }
        let NamedTensor { name, shape, elements } = &self.0;
        into.update(format!("{name} {shape:?}:"));
        match elements {
            Elements::F32(elements) => add(into, elements, f32::to_le_bytes),
            Elements::F16(elements) => add(into, elements, f16::to_le_bytes),
            Elements::F64(elements) => add(into, elements, f64::to_le_bytes),
            Elements::I64(elements) => add(into, elements, i64::to_le_bytes),
            Elements::I32(elements) => add(into, elements, i32::to_le_bytes),
            Elements::Bool(elements) => add(into, elements, |is_set| [u8::from(is_set)]),
        }
    }

    /// Overwrites the elements with numbers, converted to the input's type: to the nearest integer where it wants
    /// integers, and to true where it wants truth values and the number is not 0.
    pub(crate) fn fill(&mut self, numbers: impl IntoIterator<Item = f64>) {
        let numbers = numbers.into_iter();
        match &mut self.0.elements {
            Elements::F32(to) => to.iter_mut().zip(numbers).for_each(|(to, x)| *to = x as f32),
            Elements::F16(to) => to.iter_mut().zip(numbers).for_each(|(to, x)| *to = f16::from_f64(x)),
            Elements::F64(to) => to.iter_mut().zip(numbers).for_each(|(to, x)| *to = x),
            Elements::I64(to) => {
                to.iter_mut().zip(numbers).for_each(|(to, x)| *to = x.round_ties_even() as i64)
            }
            Elements::I32(to) => {
                to.iter_mut().zip(numbers).for_each(|(to, x)| *to = x.round_ties_even() as i32)
            }
            Elements::Bool(to) => to.iter_mut().zip(numbers).for_each(|(to, x)| *to = x != 0.0),
        }
    }

    /// Makes all elements 0.
    pub(crate) fn clear(&mut self) {
        self.fill(repeat(0.0));
    }

    /// Adds numbers, times a factor, to the elements from `at` on.
    pub(crate) fn add(&mut self, at: usize, numbers: &[f32], factor: f64) {
        match &mut self.0.elements {
            Elements::F32(to) => {
                let factor = factor as f32;
                to[at..].iter_mut().zip(numbers).for_each(|(to, x)| *to += factor * x);
            }
            Elements::F16(to) => to[at..]
                .iter_mut()
                .zip(numbers)
                .for_each(|(to, x)| *to = f16::from_f64(to.to_f64() + factor * f64::from(*x))),
            Elements::F64(to) => {
                to[at..].iter_mut().zip(numbers).for_each(|(to, x)| *to += factor * f64::from(*x));
            }
            Elements::I64(_) | Elements::I32(_) | Elements::Bool(_) => {
                unreachable!("residuals are bound to floats")
            }
        }
    }

    /// As [`Session::run`](crate::engine::Session::run) takes it.
    pub(crate) fn input(&self) -> (&str, TensorRef<'_>) {
        self.0.input()
    }

    /// As [`Session::run_owned`] takes it.
    pub(crate) fn tensor_mut(&mut self) -> &mut NamedTensor {
        &mut self.0
    }

    /// As [`Session::run_bound`](crate::engine::Session::run_bound) takes what stays the same.
    pub(crate) fn into_value(self) -> Result<(String, Value), Error> {
        let NamedTensor { name, shape, elements } = self.0;
        Ok((name, Value::new(shape, elements)?))
    }
}

/// Runs a graph once on these feeds: see [`Session::compute_owned`].
pub(crate) fn compute<'a>(
    session: &mut Session,
    feeds: impl IntoIterator<Item = &'a mut Feed>,
    outputs: &[&str],
) -> Result<Vec<Output>, Error> {
    let mut inputs: Vec<&mut NamedTensor> = feeds.into_iter().map(Feed::tensor_mut).collect();
    session.compute_owned(&mut inputs, outputs)
}

/// Feeds for the inputs that are the same at every run: the exporter's switches, and masks of tokens that all count.
pub(crate) fn constants(signature: &Signature, batch: usize, tokens: usize) -> Result<Vec<Feed>, Error> {
    let mut feeds = Vec::new();
    for Binding { port, role, .. } in &signature.inputs {
        let fixed = |dim: &Dim| if let Dim::Fixed(size) = dim { *size } else { 1 };
        let shape: Vec<usize> = port.dims.iter().map(fixed).collect();
        match role {
            Role::On => feeds.push(Feed::of(port, &shape, repeat(1.0))?),
            Role::Off => feeds.push(Feed::zeros(port, &shape)?),
            Role::Mask => feeds.push(Feed::of(port, &[batch, tokens], repeat(1.0))?),
            _ => {}
        }
    }
    Ok(feeds)
}

/// How a graph's batch is filled: which of `count` things go into each run, at most `most` where the graph takes any
/// number. A graph of a fixed batch that is larger than what is left gets the last thing again.
pub(crate) fn runs(port: &Port, count: usize, most: usize) -> Vec<Vec<usize>> {
    let batch = match port.dims.first() {
        Some(Dim::Fixed(batch)) => (*batch).max(1),
        _ => count.min(most),
    };
    let starts = (0..count).step_by(batch.max(1));
    starts.map(|start| (start..start + batch).map(|index| index.min(count - 1)).collect()).collect()
}

/// The shape of what control networks take and give beside latents of this shape: residuals of a batch, encoded control images of
/// so many.
pub(crate) fn residual_shape(port: &Port, batch: usize, shape: LatentShape) -> Vec<usize> {
    let wholes = [batch, 1, shape.height_cells, shape.width_cells];
    port.dims.iter().zip(wholes).map(|(dim, whole)| dim.divided(whole)).collect()
}

/// The shape of a timestep for a batch: graphs want none, one, one per image, or a column.
pub(crate) fn timestep_shape(port: &Port, batch: usize) -> Vec<usize> {
    let size = |(axis, dim): (usize, &Dim)| match dim {
        Dim::Fixed(size) => *size,
        // `steps` is what optimum once called it; the graph repeats a single one for the batch.
        Dim::Free(name) if axis > 0 || name == "steps" => 1,
        Dim::Free(_) => batch,
    };
    port.dims.iter().enumerate().map(size).collect()
}
