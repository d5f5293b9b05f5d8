//! Shapes: what each node of a graph gives for inputs of known sizes. It knows no number but those that shapes are made of.

use std::collections::HashMap;

use super::proto::{AttributeProto, GraphProto, NodeProto, TensorProto};
use super::{declared, dtype};
use crate::weights::Dtype;

/// Integers of longer tensors are never sizes.
const MAX_SIZES: usize = 64;

/// The type and size of a value, and its elements where shapes are made of them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shape {
    pub(super) dtype: Dtype,
    pub(super) dims: Vec<usize>,
    sizes: Option<Vec<i64>>,
}

impl Shape {
    pub(super) fn new(dtype: Dtype, dims: Vec<usize>) -> Self {
        Self { dtype, dims, sizes: None }
    }

    /// How many bytes it takes.
    pub(super) fn len_bytes(&self) -> Result<usize, String> {
        let len = self.dims.iter().try_fold(self.dtype.size_bytes(), |len, &dim| len.checked_mul(dim));
        len.ok_or_else(|| format!("expected a tensor that memory can hold, got {:?}", self.dims))
    }

    fn elements(&self) -> Result<usize, String> {
        Ok(self.len_bytes()? / self.dtype.size_bytes())
    }

    fn with(&self, dims: Vec<usize>) -> Self {
        Self::new(self.dtype, dims)
    }

    fn of_sizes(sizes: Vec<i64>) -> Self {
        Self { dtype: Dtype::I64, dims: vec![sizes.len()], sizes: Some(sizes) }
    }
}

/// The shapes of a graph's initializers.
pub(super) fn of_initializers(graph: &GraphProto) -> Result<HashMap<&str, Shape>, String> {
    let shape = |tensor: &TensorProto| -> Result<Shape, String> {
        let own = declared(0, tensor)?;
        let mut shape = Shape::new(own.dtype, own.shape);
        if shape.elements()? <= MAX_SIZES {
            shape.sizes = match (own.dtype, &tensor.raw_data) {
                (Dtype::I64, Some(raw)) => Some(
                    raw.as_chunks::<8>().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect(),
                ),
                // The scales of a resize, which are whole numbers here.
                (Dtype::F32, Some(raw)) => {
                    Some(raw.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes) as i64).collect())
                }
                (Dtype::I64, None) => Some(tensor.int64_data.clone()),
                _ => None,
            };
        }
        Ok(shape)
    };
    graph.initializer.iter().map(|tensor| Ok((tensor.name(), shape(tensor)?))).collect()
}

/// What a node gives. `known` are the values that it may read.
pub(super) fn of_outputs(node: &NodeProto, known: &HashMap<&str, Shape>) -> Result<Vec<Shape>, String> {
    let input = |index: usize| {
        let name = node.input.get(index).map_or("", String::as_str);
        known.get(name).ok_or_else(|| format!("input {index}: expected a value that was computed before, got {name:?}"))
    };
    let sizes = |index: usize| {
        let shape = input(index)?;
        shape.sizes.clone().ok_or_else(|| format!("input {index}: expected sizes, got numbers that depend on data"))
    };
    let int = |name: &str, otherwise: i64| attribute(node, name).map_or(otherwise, AttributeProto::i);
    let one = |shape: Shape| Ok(vec![shape]);
    match node.op_type() {
        "Identity" | "QuickGelu" | "Relu" | "Gelu" | "Tanh" | "Sigmoid" | "Cos" | "Sin" | "Exp" | "Sqrt"
        | "Erf" | "Softmax" | "InstanceNormalization" | "LayerNormalization" | "GroupNormalization" => {
            one(input(0)?.clone())
        }
        "Add" | "Mul" | "Sub" | "Div" | "Pow" => {
            let (a, b) = (input(0)?, input(1)?);
            let mut shape = a.with(broadcast(&a.dims, &b.dims)?);
            if let (Some(a), Some(b)) = (&a.sizes, &b.sizes) {
                let pairs = 0..a.len().max(b.len());
                let pairs = pairs.map(|at| (a[at % a.len().max(1)], b[at % b.len().max(1)]));
                let number = |(a, b): (i64, i64)| match node.op_type() {
                    "Add" => a.checked_add(b),
                    "Mul" => a.checked_mul(b),
                    "Sub" => a.checked_sub(b),
                    "Div" => a.checked_div(b),
                    _ => None,
                };
                shape.sizes = pairs.map(number).collect();
            }
            one(shape)
        }
        "ReduceMean" | "ReduceSum" => {
            let source = input(0)?;
            let axes = match attribute(node, "axes") {
                Some(axes) => axes.ints.clone(),
                None => sizes(1)?,
            };
            let axes: Vec<usize> = axes.iter().map(|&axis| place(axis, source.dims.len())).collect();
            let keeps = int("keepdims", 1) != 0;
            let dims = source.dims.iter().enumerate().filter_map(|(axis, &dim)| match axes.contains(&axis) {
                true => keeps.then_some(1),
                false => Some(dim),
            });
            one(source.with(dims.collect()))
        }
        "Equal" | "Less" | "Greater" => {
            one(Shape::new(Dtype::Bool, broadcast(&input(0)?.dims, &input(1)?.dims)?))
        }
        "Cast" => {
            let source = input(0)?;
            one(Shape { dtype: dtype(int("to", 0) as i32)?, ..source.clone() })
        }
        "DequantizeLinear" => one(Shape::new(input(1)?.dtype, input(0)?.dims.clone())),
        "Shape" => {
            let dims: Vec<i64> = input(0)?.dims.iter().map(|&dim| dim as i64).collect();
            let (from, to) = (place(int("start", 0), dims.len()), place(int("end", i64::MAX), dims.len()));
            one(Shape::of_sizes(dims.get(from..to.max(from)).unwrap_or_default().to_vec()))
        }
        "Reshape" => {
            let (source, wanted) = (input(0)?, sizes(1)?);
            one(source.with(reshaped(&source.dims, &wanted)?))
        }
        "Unsqueeze" | "Squeeze" => {
            let source = input(0)?;
            let axes = sizes(1)?;
            let mut dims = source.dims.clone();
            if node.op_type() == "Unsqueeze" {
                let rank = dims.len() + axes.len();
                let mut axes: Vec<usize> = axes.iter().map(|&axis| place(axis, rank)).collect();
                axes.sort_unstable();
                axes.iter().for_each(|&axis| dims.insert(axis.min(dims.len()), 1));
            } else {
                let gone: Vec<usize> = axes.iter().map(|&axis| place(axis, source.dims.len())).collect();
                let kept = source.dims.iter().enumerate().filter(|(axis, _)| !gone.contains(axis));
                dims = kept.map(|(_, &dim)| dim).collect();
            }
            one(Shape { dims, ..source.clone() })
        }
        "Transpose" => {
            let source = input(0)?;
            let order = attribute(node, "perm").map(|order| order.ints.clone()).unwrap_or_default();
            let dims = order.iter().map(|&axis| source.dims.get(axis as usize).copied());
            let dims = dims.collect::<Option<Vec<usize>>>().filter(|dims| dims.len() == source.dims.len());
            one(source.with(dims.ok_or("expected an order of all axes")?))
        }
        "Concat" => {
            let first = input(0)?;
            let axis = place(int("axis", 0), first.dims.len());
            let mut shape = first.clone();
            for index in 1..node.input.len() {
                let next = input(index)?;
                let (size, more) = (shape.dims.get_mut(axis), next.dims.get(axis));
                let (Some(size), Some(more)) = (size, more) else {
                    return Err(format!("expected an axis of all inputs, got {axis}"));
                };
                *size = size.checked_add(*more).ok_or("expected a size that memory can hold")?;
                shape.sizes = shape.sizes.zip(next.sizes.clone()).map(|(a, b)| [a, b].concat());
            }
            one(shape)
        }
        "Split" => {
            let source = input(0)?;
            let axis = place(int("axis", 0), source.dims.len());
            let parts = node.output.len();
            let size = source.dims.get(axis).copied().filter(|size| parts > 0 && size.is_multiple_of(parts));
            let size = size.ok_or_else(|| format!("expected an axis of {parts} equal parts, got {:?}", source.dims))?;
            let mut part = source.with(source.dims.clone());
            part.dims[axis] = size / parts;
            Ok(vec![part; parts])
        }
        "Slice" => {
            let source = input(0)?;
            // What is cut out at places that are fed is at most all.
            let (Ok(starts), Ok(ends)) = (sizes(1), sizes(2)) else { return one(source.with(source.dims.clone())) };
            let axes = sizes(3)?;
            if node.input.len() > 4 && sizes(4)?.iter().any(|&step| step != 1) {
                return Err("expected steps of 1".into());
            }
            let mut shape = source.clone();
            for ((&start, &end), &axis) in starts.iter().zip(&ends).zip(&axes) {
                let axis = place(axis, source.dims.len());
                let size = *source.dims.get(axis).ok_or("expected an axis of the input")?;
                let (start, end) = (place(start, size), place(end, size));
                shape.dims[axis] = end.saturating_sub(start);
                shape.sizes = shape.sizes.and_then(|all| all.get(start..end.max(start)).map(<[i64]>::to_vec));
            }
            one(shape)
        }
        "Gather" => {
            let (source, indices) = (input(0)?, input(1)?);
            let axis = place(int("axis", 0), source.dims.len());
            if axis >= source.dims.len() {
                return Err("expected an axis of the input".into());
            }
            let dims = [&source.dims[..axis], &indices.dims, &source.dims[axis + 1..]].concat();
            let mut shape = source.with(dims);
            if let (Some(all), Some(indices)) = (&source.sizes, &indices.sizes) {
                shape.sizes = indices.iter().map(|&index| all.get(place(index, all.len())).copied()).collect();
            }
            one(shape)
        }
        "GatherND" => {
            let (source, indices) = (input(0)?, input(1)?);
            let batch = int("batch_dims", 0) as usize;
            let Some((&depth, outer)) = indices.dims.split_last() else {
                return Err("expected indices with dimensions".into());
            };
            let rest = source.dims.get(batch.saturating_add(depth)..).ok_or("expected indices into the input")?;
            one(source.with([outer, rest].concat()))
        }
        "ArgMax" => {
            let source = input(0)?;
            let axis = place(int("axis", 0), source.dims.len());
            let mut dims = source.dims.clone();
            match (axis < dims.len(), int("keepdims", 1)) {
                (false, _) => return Err("expected an axis of the input".into()),
                (true, 0) => drop(dims.remove(axis)),
                (true, _) => dims[axis] = 1,
            }
            one(Shape::new(Dtype::I64, dims))
        }
        "Conv" => {
            let (source, kernel) = (input(0)?, input(1)?);
            let ints = |name: &str, otherwise: i64| match attribute(node, name) {
                Some(attribute) => attribute.ints.clone(),
                None => vec![otherwise; 4],
            };
            let (strides, pads, spread) = (ints("strides", 1), ints("pads", 0), ints("dilations", 1));
            let ([batch, _, rest @ ..], [outputs, _, window @ ..]) = (&source.dims[..], &kernel.dims[..]) else {
                return Err("expected a picture and a kernel".into());
            };
            let axes = rest.len();
            if window.len() != axes || pads.len() < 2 * axes || strides.len() < axes || spread.len() < axes {
                return Err("expected a stride and padding for each axis".into());
            }
            let mut dims = vec![*batch, *outputs];
            for axis in 0..axes {
                let padded = rest[axis] as i64 + pads[axis] + pads[axes + axis];
                let reach = spread[axis].saturating_mul(window[axis] as i64 - 1) + 1;
                if strides[axis] < 1 || padded < reach {
                    return Err(format!("expected a kernel that fits, got {window:?} on {rest:?}"));
                }
                dims.push(((padded - reach) / strides[axis] + 1) as usize);
            }
            one(source.with(dims))
        }
        "FusedMatMul" | "MatMul" => {
            let (a, b) = (input(0)?, input(1)?);
            let ([outer @ .., _], [stack @ .., rows, columns]) = (&a.dims[..], &b.dims[..]) else {
                return Err("expected matrices".into());
            };
            let width = if int("transB", 0) == 0 { columns } else { rows };
            let dims = match (stack, outer.split_last()) {
                ([], _) => [outer, &[*width]].concat(),
                (stack, Some((height, outer))) => [broadcast(outer, stack)?, vec![*height, *width]].concat(),
                (_, None) => return Err("expected matrices".into()),
            };
            one(a.with(dims))
        }
        "Gemm" => {
            let (a, b) = (input(0)?, input(1)?);
            let ([rows, inner], [height, width]) = (&a.dims[..], &b.dims[..]) else {
                return Err("expected matrices".into());
            };
            let rows = if int("transA", 0) == 0 { rows } else { inner };
            one(a.with(vec![*rows, if int("transB", 0) == 0 { *width } else { *height }]))
        }
        "MatMulNBits" => {
            let source = input(0)?;
            let (_, outer) = source.dims.split_last().ok_or("expected a matrix")?;
            one(source.with([outer, &[int("N", 0) as usize]].concat()))
        }
        "MultiHeadAttention" => {
            let (q, v) = (input(0)?, input(2)?);
            let ([batch, tokens, _], Some(width)) = (&q.dims[..], v.dims.last()) else {
                return Err("expected [batch, tokens, width]".into());
            };
            one(q.with(vec![*batch, *tokens, *width]))
        }
        "Resize" => {
            let source = input(0)?;
            let dims: Vec<i64> = match node.input.get(3).filter(|name| !name.is_empty()) {
                Some(_) => sizes(3)?,
                None => {
                    let scales = sizes(2)?;
                    source.dims.iter().zip(scales).map(|(&dim, scale)| (dim as i64).saturating_mul(scale)).collect()
                }
            };
            let dims = dims.into_iter().map(|dim| usize::try_from(dim).map_err(|_| "expected sizes".to_owned()));
            one(source.with(dims.collect::<Result<_, _>>()?))
        }
        other => Err(format!("expected an operator whose memory is known, got {other}")),
    }
}

/// The attribute of this name.
pub(super) fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name() == name)
}

/// An index from the start, of one that is negative from the end; at most `len`.
fn place(index: i64, len: usize) -> usize {
    let from_end = if index < 0 { len as i64 } else { 0 };
    usize::try_from(index.saturating_add(from_end)).unwrap_or(0).min(len)
}

fn broadcast(a: &[usize], b: &[usize]) -> Result<Vec<usize>, String> {
    let rank = a.len().max(b.len());
    let size = |dims: &[usize], axis: usize| (axis + dims.len()).checked_sub(rank).map_or(1, |axis| dims[axis]);
    let sizes = (0..rank).map(|axis| match (size(a, axis), size(b, axis)) {
        (one, other) if one == other || other == 1 => Ok(one),
        (1, other) => Ok(other),
        _ => Err(format!("expected shapes that go together, got {a:?} and {b:?}")),
    });
    sizes.collect()
}

fn reshaped(dims: &[usize], wanted: &[i64]) -> Result<Vec<usize>, String> {
    let refuse = || format!("expected a shape for {dims:?}, got {wanted:?}");
    let elements = dims.iter().try_fold(1usize, |all, &dim| all.checked_mul(dim)).ok_or_else(refuse)?;
    let mut shape = Vec::new();
    let mut rest = None;
    for (axis, &size) in wanted.iter().enumerate() {
        shape.push(match size {
            0 => *dims.get(axis).ok_or_else(refuse)?,
            -1 if rest.is_none() => {
                rest = Some(axis);
                1
            }
            size => usize::try_from(size).map_err(|_| refuse())?,
        });
    }
    let known = shape.iter().try_fold(1usize, |all, &dim| all.checked_mul(dim)).ok_or_else(refuse)?;
    if let Some(axis) = rest {
        shape[axis] = elements.checked_div(known).ok_or_else(refuse)?;
    }
    if shape.iter().product::<usize>() != elements {
        return Err(refuse());
    }
    Ok(shape)
}
