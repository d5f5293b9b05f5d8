//! What each operator gives for operands of given types and shapes, as ONNX's and ONNX Runtime's documents define it.
//! It knows the operators of published diffusion networks, of all versions in use; any other is an error.

use super::content::{Content, MAX_ELEMENTS, places, strides};
use super::{Tensor, initializer};
use crate::graph::dtype::dtype;
use crate::graph::proto::{AttributeProto, NodeProto};
use crate::weights::Dtype;

type Rule = Result<Vec<Tensor>, String>;

/// What gives the type and shape of its first operand.
const ELEMENTWISE: [&str; 30] = [
    "Relu",
    "Sigmoid",
    "Tanh",
    "Erf",
    "Exp",
    "Log",
    "Sin",
    "Cos",
    "Abs",
    "Reciprocal",
    "Softplus",
    "LeakyRelu",
    "Elu",
    "HardSigmoid",
    "HardSwish",
    "Mish",
    "Clip",
    "Softmax",
    "LogSoftmax",
    "Gelu",
    "Round",
    "Trilu",
    "CumSum",
    "InstanceNormalization",
    "GroupNormalization",
    "PRelu",
    "com.microsoft.QuickGelu",
    "com.microsoft.Gelu",
    "com.microsoft.FastGelu",
    "com.microsoft.BiasGelu",
];

/// What a node gives, of which it may name fewer.
pub(super) fn apply(node: &NodeProto, operands: &[Option<&Tensor>]) -> Rule {
    let op = Op { node, operands };
    match full_name(node).as_str() {
        name if ELEMENTWISE.contains(&name) => one(op.get(0)?.dtype, op.get(0)?.shape.clone()),
        "Identity" | "Dropout" => Ok(vec![op.get(0)?.clone()]),
        "Neg" | "Floor" | "Ceil" | "Sqrt" | "Not" => op.unary(),
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Mod" | "Min" | "Max" => op.binary(op.get(0)?.dtype),
        "And" | "Or" | "Xor" | "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" => {
            op.binary(Dtype::Bool)
        }
        "Where" => op.choose(),
        "Cast" => op.cast(dtype(op.required_int("to")? as i32)?),
        "Shape" => op.shape(),
        "Size" => {
            let count = op.get(0)?.elements();
            Ok(vec![Tensor::new(Dtype::I64, Vec::new())?.with(Some(Content::Ints(vec![count as i64])))])
        }
        "Constant" => op.constant(),
        "ConstantOfShape" => op.constant_of_shape(),
        "RandomNormalLike" | "RandomUniformLike" => {
            let dtype = match op.attribute("dtype") {
                Some(attribute) => dtype(attribute.i() as i32)?,
                None => op.get(0)?.dtype,
            };
            one(dtype, op.get(0)?.shape.clone())
        }
        "Range" => op.range(),
        "Reshape" => op.reshape(),
        "Flatten" => op.flatten(),
        "Squeeze" => op.squeeze(),
        "Unsqueeze" => op.unsqueeze(),
        "Transpose" => op.transpose(),
        "Expand" => op.expand(),
        "Tile" => op.tile(),
        "Concat" => op.concat(),
        "Split" => op.split(),
        "Slice" => op.slice(),
        "Gather" => op.gather(),
        "GatherND" => op.gather_nd(),
        "GatherElements" => one(op.get(0)?.dtype, op.get(1)?.shape.clone()),
        "Pad" => op.pad(),
        "Resize" | "Upsample" => op.resize(),
        "DepthToSpace" => op.blocks(true),
        "SpaceToDepth" => op.blocks(false),
        "MatMul" => op.product(false, false),
        "com.microsoft.FusedMatMul" => op.product(op.flag("transA"), op.flag("transB")),
        "com.microsoft.MatMulNBits" => op.product_of_blocks(),
        "com.microsoft.MatMulIntegerToFloat" => {
            one(op.get(2)?.dtype, op.product(false, false)?.remove(0).shape)
        }
        "DynamicQuantizeLinear" => {
            let [integers, scale, zero] = [
                Tensor::new(Dtype::U8, op.get(0)?.shape.clone())?,
                Tensor::new(Dtype::F32, Vec::new())?,
                Tensor::new(Dtype::U8, Vec::new())?,
            ];
            Ok(vec![integers, scale, zero])
        }
        "Gemm" => op.gemm(),
        "Einsum" => op.einsum(),
        "Conv" => op.conv(),
        "ConvTranspose" => op.conv_transpose(),
        "AveragePool" => op.average_pool(),
        "LayerNormalization" => op.layer_norm(),
        "com.microsoft.SkipLayerNormalization" => op.skip_layer_norm(),
        "com.microsoft.MultiHeadAttention" => op.attention(),
        "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceL2"
        | "ReduceSumSquare" => op.reduce(),
        "ArgMax" | "ArgMin" => op.arg_max(),
        "QuantizeLinear" => {
            let dtype = op.get(2).map_or(Dtype::U8, |zero| zero.dtype);
            one(dtype, op.get(0)?.shape.clone())
        }
        "DequantizeLinear" => {
            op.get(0)?;
            one(op.get(1)?.dtype, op.get(0)?.shape.clone())
        }
        _ => Err("expected a supported operator, got one of unknown shapes".into()),
    }
}

/// The name of an operator with its domain, unless that is ONNX's own: `com.microsoft.QuickGelu`.
pub(super) fn full_name(node: &NodeProto) -> String {
    match node.domain() {
        "" | "ai.onnx" => node.op_type().into(),
        domain => format!("{domain}.{}", node.op_type()),
    }
}

fn one(dtype: Dtype, shape: Vec<usize>) -> Rule {
    Ok(vec![Tensor::new(dtype, shape)?])
}

/// A node and what it is given.
struct Op<'a> {
    node: &'a NodeProto,
    operands: &'a [Option<&'a Tensor>],
}

impl<'a> Op<'a> {
    fn find(&self, index: usize) -> Option<&'a Tensor> {
        self.operands.get(index).copied().flatten()
    }

    fn get(&self, index: usize) -> Result<&'a Tensor, String> {
        self.find(index).ok_or_else(|| format!("input {index}: expected a value, got none"))
    }

    /// An operand of at least `rank` dimensions.
    fn ranked(&self, index: usize, rank: usize) -> Result<&'a Tensor, String> {
        let tensor = self.get(index)?;
        if tensor.shape.len() < rank {
            return Err(format!("input {index}: expected {rank} dimensions or more, got {:?}", tensor.shape));
        }
        Ok(tensor)
    }

    fn content(&self, index: usize) -> Result<&'a Content, String> {
        let content = self.get(index)?.content.as_ref();
        content.ok_or_else(|| format!("input {index}: expected values that depend on shapes only, got data"))
    }

    fn ints(&self, index: usize) -> Result<&'a [i64], String> {
        let ints = self.content(index)?.ints();
        ints.ok_or_else(|| format!("input {index}: expected integers, got floats"))
    }

    fn attribute(&self, name: &str) -> Option<&'a AttributeProto> {
        self.node.attribute.iter().find(|attribute| attribute.name() == name)
    }

    fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).map_or(default, |attribute| attribute.i())
    }

    fn flag(&self, name: &str) -> bool {
        self.int(name, 0) != 0
    }

    fn required_int(&self, name: &str) -> Result<i64, String> {
        let attribute = self.attribute(name);
        attribute
            .map(|attribute| attribute.i())
            .ok_or_else(|| format!("attribute {name}: expected one, got none"))
    }

    fn int_list(&self, name: &str) -> Option<&'a [i64]> {
        self.attribute(name).map(|attribute| attribute.ints.as_slice())
    }

    /// A list that older versions have as an attribute, newer ones as an input; neither may be there.
    fn list(&self, name: &str, index: usize) -> Result<Option<&'a [i64]>, String> {
        match (self.int_list(name), self.find(index)) {
            (None, Some(_)) => self.ints(index).map(Some),
            (list, _) => Ok(list),
        }
    }

    fn text(&self, name: &str) -> &'a str {
        let bytes = self.attribute(name).and_then(|attribute| attribute.s.as_deref());
        bytes.and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
    }

    fn unary(&self) -> Rule {
        let x = self.get(0)?;
        let content = match (&x.content, self.node.op_type()) {
            (Some(Content::Ints(values)), "Neg") => {
                Some(Content::Ints(values.iter().map(|value| value.wrapping_neg()).collect()))
            }
            (Some(Content::Ints(values)), "Not") => {
                Some(Content::Ints(values.iter().map(|&value| (value == 0).into()).collect()))
            }
            (Some(Content::Floats(values)), op) => {
                let compute: fn(f32) -> f32 = match op {
                    "Neg" => |value| -value,
                    "Floor" => f32::floor,
                    "Ceil" => f32::ceil,
                    _ => f32::sqrt,
                };
                Some(Content::Floats(values.iter().map(|&value| compute(value)).collect()))
            }
            _ => None,
        };
        Ok(vec![Tensor::new(x.dtype, x.shape.clone())?.with(content)])
    }

    fn binary(&self, dtype: Dtype) -> Rule {
        let mut shape = self.get(0)?.shape.clone();
        for index in 1..self.operands.len() {
            shape = broadcast(&shape, &self.get(index)?.shape)?;
        }
        let result = Tensor::new(dtype, shape)?;
        let content = match self.operands {
            [Some(a), Some(b)] => {
                spread(a, &result.shape).zip(spread(b, &result.shape)).and_then(|(a, b)| self.compute(&a, &b))
            }
            _ => None,
        };
        Ok(vec![result.with(content)])
    }

    /// Element by element; nothing where arithmetic has no answer.
    fn compute(&self, a: &Content, b: &Content) -> Option<Content> {
        let op = self.node.op_type();
        if let (Some(a), Some(b)) = (a.floats(), b.floats()) {
            let pairs = || a.iter().zip(b);
            let compute: fn(f32, f32) -> f32 = match op {
                "Add" => |a, b| a + b,
                "Sub" => |a, b| a - b,
                "Mul" => |a, b| a * b,
                "Div" => |a, b| a / b,
                "Min" => f32::min,
                "Max" => f32::max,
                "Pow" => f32::powf,
                _ => return None,
            };
            return Some(Content::Floats(pairs().map(|(a, b)| compute(*a, *b)).collect()));
        }
        let compute: fn(i64, i64) -> Option<i64> = match op {
            "Add" => i64::checked_add,
            "Sub" => i64::checked_sub,
            "Mul" => i64::checked_mul,
            "Div" => i64::checked_div,
            "Mod" => i64::checked_rem_euclid,
            "Min" => |a, b| Some(a.min(b)),
            "Max" => |a, b| Some(a.max(b)),
            "And" => |a, b| Some(a & b),
            "Or" => |a, b| Some(a | b),
            "Equal" => |a, b| Some((a == b).into()),
            "Less" => |a, b| Some((a < b).into()),
            "LessOrEqual" => |a, b| Some((a <= b).into()),
            "Greater" => |a, b| Some((a > b).into()),
            "GreaterOrEqual" => |a, b| Some((a >= b).into()),
            _ => return None,
        };
        let values = a.ints()?.iter().zip(b.ints()?).map(|(a, b)| compute(*a, *b));
        values.collect::<Option<_>>().map(Content::Ints)
    }

    fn choose(&self) -> Rule {
        let (condition, a, b) = (self.get(0)?, self.get(1)?, self.get(2)?);
        let shape = broadcast(&condition.shape, &broadcast(&a.shape, &b.shape)?)?;
        let result = Tensor::new(a.dtype, shape)?;
        let content = || {
            let both = match (spread(a, &result.shape)?, spread(b, &result.shape)?) {
                (Content::Ints(a), Content::Ints(b)) => Content::Ints([a, b].concat()),
                (Content::Floats(a), Content::Floats(b)) => Content::Floats([a, b].concat()),
                _ => return None,
            };
            let condition = spread(condition, &result.shape)?;
            let chosen = condition.ints()?.iter().enumerate();
            let count = condition.len();
            both.pick(
                &chosen.map(|(index, &yes)| if yes != 0 { index } else { count + index }).collect::<Vec<_>>(),
            )
        };
        let content = content();
        Ok(vec![result.with(content)])
    }

    fn cast(&self, dtype: Dtype) -> Rule {
        let x = self.get(0)?;
        let content = x.content.as_ref().and_then(|content| content.cast(dtype));
        Ok(vec![Tensor::new(dtype, x.shape.clone())?.with(content)])
    }

    fn shape(&self) -> Rule {
        let shape = &self.get(0)?.shape;
        let rank = shape.len() as i64;
        let bound =
            |place: i64| (if place < 0 { place.saturating_add(rank) } else { place }).clamp(0, rank) as usize;
        let (start, end) = (bound(self.int("start", 0)), bound(self.int("end", rank)));
        let sizes: Vec<i64> =
            shape.get(start..end).unwrap_or_default().iter().map(|&size| size as i64).collect();
        Ok(vec![Tensor::new(Dtype::I64, vec![sizes.len()])?.with(Some(Content::Ints(sizes)))])
    }

    fn constant(&self) -> Rule {
        if let Some(tensor) = self.attribute("value").and_then(|attribute| attribute.t.as_ref()) {
            return Ok(vec![initializer(tensor)?]);
        }
        let [attribute] = &self.node.attribute[..] else {
            return Err("expected one attribute".into());
        };
        let (dtype, shape, content) = match attribute.name() {
            "value_int" => (Dtype::I64, Vec::new(), Content::Ints(vec![attribute.i()])),
            "value_ints" => (Dtype::I64, vec![attribute.ints.len()], Content::Ints(attribute.ints.clone())),
            "value_float" => (Dtype::F32, Vec::new(), Content::Floats(vec![attribute.f()])),
            "value_floats" => {
                (Dtype::F32, vec![attribute.floats.len()], Content::Floats(attribute.floats.clone()))
            }
            name => return Err(format!("expected a constant of numbers, got attribute {name}")),
        };
        Ok(vec![Tensor::new(dtype, shape)?.with((content.len() <= MAX_ELEMENTS).then_some(content))])
    }

    fn constant_of_shape(&self) -> Rule {
        let value = match self.attribute("value").and_then(|attribute| attribute.t.as_ref()) {
            Some(tensor) => initializer(tensor)?,
            None => Tensor::new(Dtype::F32, Vec::new())?.with(Some(Content::Floats(vec![0.0]))),
        };
        let result = Tensor::new(value.dtype, sizes(self.ints(0)?)?)?;
        let few = result.elements() <= MAX_ELEMENTS;
        let content =
            value.content.filter(|_| few).and_then(|content| content.pick(&vec![0; result.elements()]));
        Ok(vec![result.with(content)])
    }

    fn range(&self) -> Rule {
        let dtype = self.get(0)?.dtype;
        let (count, content) = match (self.content(0)?, self.content(1)?, self.content(2)?) {
            (Content::Ints(start), Content::Ints(limit), Content::Ints(delta)) => {
                let (start, limit, delta) = (single(start)?, single(limit)?, single(delta)?);
                if delta == 0 {
                    return Err("expected a step, got 0".into());
                }
                let (start, limit, delta) = (i128::from(start), i128::from(limit), i128::from(delta));
                let count = ((limit - start + delta - delta.signum()) / delta).max(0);
                let values =
                    (0..count.min(MAX_ELEMENTS as i128 + 1)).map(|index| (start + index * delta) as i64);
                (
                    usize::try_from(count).map_err(|_| "expected a shorter range")?,
                    Content::Ints(values.collect()),
                )
            }
            (Content::Floats(start), Content::Floats(limit), Content::Floats(delta)) => {
                let (start, limit, delta) = (single(start)?, single(limit)?, single(delta)?);
                let count = ((f64::from(limit) - f64::from(start)) / f64::from(delta)).ceil().max(0.0);
                if !count.is_finite() {
                    return Err(format!("expected a range, got {start} to {limit} by {delta}"));
                }
                let values =
                    (0..(count as usize).min(MAX_ELEMENTS + 1)).map(|index| start + index as f32 * delta);
                (count as usize, Content::Floats(values.collect()))
            }
            _ => return Err("expected three numbers of one type".into()),
        };
        let result = Tensor::new(dtype, vec![count])?;
        Ok(vec![result.with((count <= MAX_ELEMENTS).then_some(content))])
    }

    /// The same elements in another shape.
    fn same(&self, shape: Vec<usize>) -> Rule {
        let x = self.get(0)?;
        let result = Tensor::new(x.dtype, shape)?;
        if result.elements() != x.elements() {
            return Err(format!("expected a shape of {} elements, got {:?}", x.elements(), result.shape));
        }
        Ok(vec![result.with(x.content.clone())])
    }

    fn reshape(&self) -> Rule {
        let x = self.get(0)?;
        let wanted = self.list("shape", 1)?.ok_or("expected a shape, got none")?;
        let keeps_zeros = !self.flag("allowzero");
        let mut rest = None;
        let mut shape = Vec::with_capacity(wanted.len());
        for (index, &size) in wanted.iter().enumerate() {
            shape.push(match size {
                0 if keeps_zeros => *x
                    .shape
                    .get(index)
                    .ok_or_else(|| format!("expected a shape for {:?}, got {wanted:?}", x.shape))?,
                -1 if rest.is_none() => {
                    rest = Some(index);
                    1
                }
                size => usize::try_from(size).map_err(|_| format!("expected a shape, got {wanted:?}"))?,
            });
        }
        if let Some(rest) = rest {
            let others = Tensor::new(x.dtype, shape.clone())?.elements();
            if others == 0 || !x.elements().is_multiple_of(others) {
                return Err(format!("expected a shape for {:?}, got {wanted:?}", x.shape));
            }
            shape[rest] = x.elements() / others;
        }
        self.same(shape)
    }

    fn flatten(&self) -> Rule {
        let shape = &self.get(0)?.shape;
        let end = shape.len() as i64;
        let axis = self.int("axis", 1);
        let at = if axis == end { shape.len() } else { place(axis, shape.len())? };
        self.same(vec![shape[..at].iter().product(), shape[at..].iter().product()])
    }

    fn squeeze(&self) -> Rule {
        let shape = &self.get(0)?.shape;
        let gone = match self.list("axes", 1)? {
            Some(axes) => axes.iter().map(|&axis| place(axis, shape.len())).collect::<Result<Vec<_>, _>>()?,
            None => (0..shape.len()).filter(|&index| shape[index] == 1).collect(),
        };
        if let Some(index) = gone.iter().find(|&&index| shape[index] != 1) {
            return Err(format!("dimension {index}: expected size 1, got {}", shape[*index]));
        }
        let kept = shape.iter().enumerate().filter(|(index, _)| !gone.contains(index));
        self.same(kept.map(|(_, &size)| size).collect())
    }

    fn unsqueeze(&self) -> Rule {
        let axes = self.list("axes", 1)?.ok_or("expected axes, got none")?;
        let mut old = self.get(0)?.shape.iter();
        let rank = old.len() + axes.len();
        let new = axes.iter().map(|&axis| place(axis, rank)).collect::<Result<Vec<_>, _>>()?;
        let shape: Vec<usize> = (0..rank)
            .filter_map(|index| if new.contains(&index) { Some(1) } else { old.next().copied() })
            .collect();
        if shape.len() != rank {
            return Err(format!("expected different axes, got {axes:?}"));
        }
        self.same(shape)
    }

    /// A tensor whose elements are those of operand 0 that lie `strides` apart.
    fn view(&self, shape: Vec<usize>, first: usize, strides: &[isize]) -> Rule {
        let x = self.get(0)?;
        let result = Tensor::new(x.dtype, shape)?;
        let content =
            x.content.as_ref().and_then(|content| content.pick(&places(first, &result.shape, strides)?));
        Ok(vec![result.with(content)])
    }

    fn transpose(&self) -> Rule {
        let shape = &self.get(0)?.shape;
        let order: Vec<usize> = match self.int_list("perm") {
            Some(order) => order.iter().map(|&axis| place(axis, shape.len())).collect::<Result<_, _>>()?,
            None => (0..shape.len()).rev().collect(),
        };
        if order.len() != shape.len() || !(0..shape.len()).all(|axis| order.contains(&axis)) {
            return Err(format!("expected an order of {} dimensions, got {order:?}", shape.len()));
        }
        let strides = strides(shape);
        let turned: Vec<isize> = order.iter().map(|&axis| strides[axis] as isize).collect();
        self.view(order.iter().map(|&axis| shape[axis]).collect(), 0, &turned)
    }

    fn expand(&self) -> Rule {
        let x = self.get(0)?;
        let shape = broadcast(&x.shape, &sizes(self.ints(1)?)?)?;
        let result = Tensor::new(x.dtype, shape)?;
        let content = spread(x, &result.shape);
        Ok(vec![result.with(content)])
    }

    fn tile(&self) -> Rule {
        let x = self.get(0)?;
        let repeats = sizes(self.ints(1)?)?;
        if repeats.len() != x.shape.len() {
            return Err(format!("expected {} repeats, got {repeats:?}", x.shape.len()));
        }
        one(x.dtype, x.shape.iter().zip(&repeats).map(|(a, b)| a.saturating_mul(*b)).collect())
    }

    fn concat(&self) -> Rule {
        let first = self.get(0)?;
        let axis = place(self.required_int("axis")?, first.shape.len())?;
        let mut shape = first.shape.clone();
        shape[axis] = 0;
        for index in 0..self.operands.len() {
            let part = self.get(index)?;
            let fits = |(at, (a, b)): (usize, (&usize, &usize))| at == axis || a == b;
            if part.shape.len() != shape.len() || !shape.iter().zip(&part.shape).enumerate().all(fits) {
                return Err(format!(
                    "input {index}: expected {:?} but for axis {axis}, got {:?}",
                    shape, part.shape
                ));
            }
            shape[axis] =
                shape[axis].checked_add(part.shape[axis]).ok_or("expected a size that can be counted")?;
        }
        let result = Tensor::new(first.dtype, shape)?;
        let content = (result.shape.len() == 1).then(|| self.joined()).flatten();
        Ok(vec![result.with(content)])
    }

    /// The elements of all operands, one after the other.
    fn joined(&self) -> Option<Content> {
        let parts = || self.operands.iter().map(|operand| operand.and_then(|part| part.content.as_ref()));
        let joined = match parts().next()?? {
            Content::Ints(_) => {
                Content::Ints(parts().map(|part| part?.ints()).collect::<Option<Vec<_>>>()?.concat())
            }
            Content::Floats(_) => {
                Content::Floats(parts().map(|part| part?.floats()).collect::<Option<Vec<_>>>()?.concat())
            }
        };
        (joined.len() <= MAX_ELEMENTS).then_some(joined)
    }

    fn split(&self) -> Rule {
        let x = self.get(0)?;
        let axis = place(self.int("axis", 0), x.shape.len())?;
        let whole = x.shape[axis];
        let lens = match self.list("split", 1)? {
            Some(lens) => sizes(lens)?,
            None => {
                let count = self.int("num_outputs", self.node.output.len() as i64);
                let count = usize::try_from(count).ok().filter(|count| (1..=MAX_ELEMENTS).contains(count));
                let count = count.ok_or("num_outputs: expected a count of parts")?;
                let len = whole.div_ceil(count);
                (0..count).map(|index| len.min(whole.saturating_sub(index * len))).collect()
            }
        };
        if lens.iter().try_fold(0usize, |all, len| all.checked_add(*len)) != Some(whole) {
            return Err(format!("expected parts of {whole}, got {lens:?}"));
        }
        let steps: Vec<isize> = strides(&x.shape).iter().map(|&stride| stride as isize).collect();
        let mut first = 0;
        let mut parts = Vec::with_capacity(lens.len());
        for len in lens {
            let mut shape = x.shape.clone();
            shape[axis] = len;
            parts.extend(self.view(shape, first * steps[axis] as usize, &steps)?);
            first += len;
        }
        Ok(parts)
    }

    fn slice(&self) -> Rule {
        let x = self.get(0)?;
        // What is cut out at places that are fed is at most all.
        if [1, 2].into_iter().filter_map(|index| self.find(index)).any(|places| places.content.is_none()) {
            return one(x.dtype, x.shape.clone());
        }
        let starts = self.list("starts", 1)?.ok_or("expected starts, got none")?;
        let ends = self.list("ends", 2)?.ok_or("expected ends, got none")?;
        let axes = match self.list("axes", 3)? {
            Some(axes) => axes.to_vec(),
            None => (0..starts.len() as i64).collect(),
        };
        let ones = vec![1; starts.len()];
        let steps = if self.find(4).is_some() { self.ints(4)? } else { &ones };
        if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
            return Err(format!(
                "expected lists of one length, got {starts:?}, {ends:?}, {axes:?}, {steps:?}"
            ));
        }
        let mut shape = x.shape.clone();
        let mut apart: Vec<isize> = strides(&x.shape).iter().map(|&stride| stride as isize).collect();
        let mut first = 0usize;
        for (((&start, &end), &axis), &step) in starts.iter().zip(ends).zip(&axes).zip(steps) {
            let axis = place(axis, shape.len())?;
            let size = x.shape[axis] as i64;
            let from_back = |at: i64| if at < 0 { at.saturating_add(size) } else { at };
            let (start, end) = match step {
                0 => return Err("expected a step, got 0".into()),
                1.. => (from_back(start).clamp(0, size), from_back(end).clamp(0, size)),
                _ => (from_back(start).clamp(-1, size - 1), from_back(end).clamp(-1, size - 1)),
            };
            let span = if step > 0 { end - start } else { start - end };
            let count = if span > 0 { (span as u64).div_ceil(step.unsigned_abs()) as usize } else { 0 };
            first = first.saturating_add((start.max(0) as usize).saturating_mul(apart[axis].unsigned_abs()));
            apart[axis] = apart[axis].saturating_mul(step as isize);
            shape[axis] = count;
        }
        self.view(shape, first, &apart)
    }

    fn gather(&self) -> Rule {
        let (x, indices) = (self.get(0)?, self.get(1)?);
        let axis = place(self.int("axis", 0), x.shape.len())?;
        let shape = [&x.shape[..axis], &indices.shape, &x.shape[axis + 1..]].concat();
        let result = Tensor::new(x.dtype, shape)?;
        let content = match (&x.content, indices.content.as_ref().and_then(Content::ints)) {
            (Some(content), Some(indices)) if x.shape.len() == 1 => {
                let chosen =
                    indices.iter().map(|&index| place(index, x.shape[0])).collect::<Result<Vec<_>, _>>()?;
                content.pick(&chosen)
            }
            _ => None,
        };
        Ok(vec![result.with(content)])
    }

    fn gather_nd(&self) -> Rule {
        let (x, indices) = (self.get(0)?, self.get(1)?);
        let Some((&depth, rows)) = indices.shape.split_last() else {
            return Err("expected indices with a dimension, got one number".into());
        };
        let taken =
            usize::try_from(self.int("batch_dims", 0)).ok().and_then(|batch| batch.checked_add(depth));
        let rest = taken.and_then(|taken| x.shape.get(taken..)).ok_or_else(|| {
            format!("expected indices of at most {} dimensions, got {depth}", x.shape.len())
        })?;
        Ok(vec![Tensor::new(x.dtype, [rows, rest].concat())?])
    }

    fn pad(&self) -> Rule {
        let x = self.get(0)?;
        let pads = self.list("pads", 1)?.ok_or("expected pads, got none")?;
        let axes = match self.find(3) {
            Some(_) => {
                self.ints(3)?.iter().map(|&axis| place(axis, x.shape.len())).collect::<Result<Vec<_>, _>>()?
            }
            None => (0..x.shape.len()).collect(),
        };
        let (before, after) = pads.split_at(pads.len() / 2);
        if before.len() != axes.len() || after.len() != axes.len() {
            return Err(format!("expected pads at both ends of {} dimensions, got {pads:?}", axes.len()));
        }
        let mut shape = x.shape.clone();
        for ((&axis, &before), &after) in axes.iter().zip(before).zip(after) {
            let size = i128::from(before) + i128::from(after) + x.shape[axis] as i128;
            shape[axis] = usize::try_from(size)
                .map_err(|_| format!("expected pads for {:?}, got {pads:?}", x.shape))?;
        }
        one(x.dtype, shape)
    }

    /// Channels that become pixels, or pixels that become channels.
    fn blocks(&self, enlarges: bool) -> Rule {
        let block = usize::try_from(self.required_int("blocksize")?).unwrap_or(0);
        let input = self.get(0)?;
        let [batch, channels, height, width] = input.shape[..] else {
            return Err(format!("expected an input of 4 dimensions, got {:?}", input.shape));
        };
        let area = block.checked_mul(block).filter(|area| *area > 0);
        let area = area.ok_or_else(|| format!("expected a block size of 1 and more, got {block}"))?;
        let is_whole =
            if enlarges { channels % area == 0 } else { height % block == 0 && width % block == 0 };
        if !is_whole {
            return Err(format!("expected a multiple of blocks of {block}, got {:?}", input.shape));
        }
        let scaled = |side: usize| side.checked_mul(block).ok_or("expected a shape that fits into memory");
        let shape = match enlarges {
            true => vec![batch, channels / area, scaled(height)?, scaled(width)?],
            false => {
                let channels = channels.checked_mul(area).ok_or("expected a shape that fits into memory")?;
                vec![batch, channels, height / block, width / block]
            }
        };
        one(input.dtype, shape)
    }

    fn resize(&self) -> Rule {
        let x = self.get(0)?;
        // The scales were the second input before there was a region of interest.
        let scales = if self.operands.len() == 2 { 1 } else { 2 };
        let policy = self.text("keep_aspect_ratio_policy");
        if self.attribute("axes").is_some() || !matches!(policy, "" | "stretch") {
            return Err("expected a resize of all dimensions, got axes or an aspect ratio".into());
        }
        let is_given = |tensor: &&Tensor| tensor.elements() > 0;
        let shape = if self.find(3).filter(is_given).is_some() {
            sizes(self.ints(3)?)?
        } else if self.find(scales).filter(is_given).is_some() || self.attribute("scales").is_none() {
            let scales = self.content(scales)?.floats().ok_or("expected scales in floats")?;
            self.scaled(x, scales)?
        } else {
            let attribute = self.attribute("scales");
            self.scaled(x, attribute.map_or(&[], |attribute| &attribute.floats))?
        };
        if shape.len() != x.shape.len() {
            return Err(format!("expected sizes for {:?}, got {shape:?}", x.shape));
        }
        one(x.dtype, shape)
    }

    fn scaled(&self, x: &Tensor, scales: &[f32]) -> Result<Vec<usize>, String> {
        if scales.len() != x.shape.len() || !scales.iter().all(|scale| scale.is_finite() && *scale > 0.0) {
            return Err(format!("expected scales for {:?}, got {scales:?}", x.shape));
        }
        // ONNX Runtime multiplies in 32-bit floats, too.
        Ok(x.shape.iter().zip(scales).map(|(&size, &scale)| (size as f32 * scale) as usize).collect())
    }

    fn product(&self, turn_a: bool, turn_b: bool) -> Rule {
        let (a, b) = (self.ranked(0, 1)?, self.ranked(1, 1)?);
        let matrix = |tensor: &Tensor, is_left: bool, turn: bool| {
            let mut shape = tensor.shape.clone();
            match shape.len() {
                1 if is_left => shape.insert(0, 1),
                1 => shape.push(1),
                rank if turn => shape.swap(rank - 1, rank - 2),
                _ => {}
            }
            shape
        };
        let (left, right) = (matrix(a, true, turn_a), matrix(b, false, turn_b));
        let (rows, columns) = (left.len() - 2, right.len() - 2);
        if left[rows + 1] != right[columns] {
            return Err(format!("expected factors that fit, got {:?} and {:?}", a.shape, b.shape));
        }
        let mut shape = broadcast(&left[..rows], &right[..columns])?;
        if a.shape.len() > 1 {
            shape.push(left[rows]);
        }
        if b.shape.len() > 1 {
            shape.push(right[columns + 1]);
        }
        one(a.dtype, shape)
    }

    fn product_of_blocks(&self) -> Rule {
        let x = self.ranked(0, 1)?;
        let (outputs, inputs) = (self.required_int("N")?, self.required_int("K")?);
        let mut shape = x.shape.clone();
        let last = shape.len() - 1;
        if i64::try_from(shape[last]) != Ok(inputs) {
            return Err(format!("expected {inputs} columns, got {:?}", x.shape));
        }
        shape[last] = usize::try_from(outputs).map_err(|_| format!("N: expected a size, got {outputs}"))?;
        one(x.dtype, shape)
    }

    fn gemm(&self) -> Rule {
        let (a, b) = (self.get(0)?, self.get(1)?);
        let ([_, _], [_, _]) = (&a.shape[..], &b.shape[..]) else {
            return Err(format!("expected matrices, got {:?} and {:?}", a.shape, b.shape));
        };
        self.product(self.flag("transA"), self.flag("transB"))
    }

    /// An Einstein sum with explicit result, without ellipsis: `bhqd,bhkd->bhqk`.
    fn einsum(&self) -> Rule {
        let equation: String = self.text("equation").chars().filter(|char| !char.is_whitespace()).collect();
        let unfit = || format!("equation: expected one like \"ij,jk->ik\", got {equation:?}");
        let (terms, result) = equation.split_once("->").ok_or_else(unfit)?;
        let terms: Vec<&str> = terms.split(',').collect();
        if terms.len() != self.operands.len() {
            return Err(unfit());
        }
        let mut known: Vec<(char, usize)> = Vec::new();
        for (index, term) in terms.iter().enumerate() {
            let shape = &self.get(index)?.shape;
            if !term.chars().all(|char| char.is_ascii_alphabetic()) || term.len() != shape.len() {
                return Err(unfit());
            }
            for (char, &size) in term.chars().zip(shape) {
                match known.iter_mut().find(|(name, _)| *name == char) {
                    Some((_, other)) if *other == size || size == 1 => {}
                    Some((_, other)) if *other == 1 => *other = size,
                    Some(_) => return Err(format!("equation {equation}: {char}: got two sizes")),
                    None => known.push((char, size)),
                }
            }
        }
        let size = |char| known.iter().find(|(name, _)| *name == char).map(|(_, size)| *size);
        one(self.get(0)?.dtype, result.chars().map(size).collect::<Option<_>>().ok_or_else(unfit)?)
    }

    /// Per spatial dimension: kernel, stride, dilation, and zeros before and after.
    fn window(&self, kernel: &[usize]) -> Result<Vec<[i128; 5]>, String> {
        let rank = kernel.len();
        let ones = vec![1; rank];
        let zeros = vec![0; 2 * rank];
        let strides = self.int_list("strides").unwrap_or(&ones);
        let dilations = self.int_list("dilations").unwrap_or(&ones);
        let pads = self.int_list("pads").unwrap_or(&zeros);
        let is_positive = |list: &[i64]| list.len() == rank && list.iter().all(|&size| size > 0);
        if !is_positive(strides)
            || !is_positive(dilations)
            || pads.len() != 2 * rank
            || pads.iter().any(|&pad| pad < 0)
        {
            return Err(format!(
                "expected {rank} strides, dilations and pads, got {strides:?}, {dilations:?}, {pads:?}"
            ));
        }
        if !matches!(self.text("auto_pad"), "" | "NOTSET") {
            return Err(format!("auto_pad: expected NOTSET, got {}", self.text("auto_pad")));
        }
        let all = (0..rank).map(|at| {
            [
                kernel[at] as i128,
                strides[at].into(),
                dilations[at].into(),
                pads[at].into(),
                pads[at + rank].into(),
            ]
        });
        Ok(all.collect())
    }

    /// The operands of a convolution: `[batch, channels, ..]` and a kernel of as many dimensions.
    fn filtered(&self) -> Result<(&'a Tensor, &'a Tensor), String> {
        let (x, weight) = (self.ranked(0, 3)?, self.ranked(1, 3)?);
        if x.shape.len() != weight.shape.len() {
            return Err(format!("expected an image and a kernel, got {:?} and {:?}", x.shape, weight.shape));
        }
        Ok((x, weight))
    }

    fn conv(&self) -> Rule {
        let (x, weight) = self.filtered()?;
        let groups = self.int("group", 1);
        if (weight.shape[1] as i128) * i128::from(groups) != x.shape[1] as i128 {
            return Err(format!("expected channels for {:?}, got {:?}", weight.shape, x.shape));
        }
        let mut shape = vec![x.shape[0], weight.shape[0]];
        for (&size, [kernel, stride, dilation, before, after]) in
            x.shape[2..].iter().zip(self.window(&weight.shape[2..])?)
        {
            let room = size as i128 + before + after - dilation * (kernel - 1) - 1;
            if room < 0 {
                return Err(format!(
                    "expected an image of the kernel's size {:?}, got {:?}",
                    weight.shape, x.shape
                ));
            }
            shape.push((room / stride + 1) as usize);
        }
        one(x.dtype, shape)
    }

    fn average_pool(&self) -> Rule {
        let x = self.ranked(0, 3)?;
        let kernel = self.int_list("kernel_shape").unwrap_or_default().iter();
        let kernel = kernel.map(|&size| usize::try_from(size)).collect::<Result<Vec<_>, _>>();
        let kernel = kernel.ok().filter(|kernel| kernel.len() == x.shape.len() - 2);
        let kernel = kernel.ok_or("kernel_shape: expected a size for each side of the image")?;
        let mut shape = x.shape[..2].to_vec();
        for (&size, [kernel, stride, dilation, before, after]) in
            x.shape[2..].iter().zip(self.window(&kernel)?)
        {
            let room = size as i128 + before + after - dilation * (kernel - 1) - 1;
            let whole = room.div_euclid(stride) + 1;
            // Rounded up, as long as the last window begins within the image.
            let is_more = self.flag("ceil_mode")
                && room.rem_euclid(stride) != 0
                && whole * stride < size as i128 + before;
            let windows = usize::try_from(whole).ok().map(|whole| whole + usize::from(is_more));
            shape.push(windows.filter(|&windows| windows > 0).ok_or_else(|| {
                format!("expected an image of the kernel's size {kernel}, got {:?}", x.shape)
            })?);
        }
        one(x.dtype, shape)
    }

    fn conv_transpose(&self) -> Rule {
        let (x, weight) = self.filtered()?;
        if weight.shape[0] != x.shape[1] || self.attribute("output_shape").is_some() {
            return Err(format!("expected channels for {:?}, got {:?}", weight.shape, x.shape));
        }
        let groups = usize::try_from(self.int("group", 1)).map_err(|_| "group: expected a count")?;
        let mut shape = vec![x.shape[0], weight.shape[1].saturating_mul(groups)];
        let zeros = vec![0; x.shape.len() - 2];
        let more = self.int_list("output_padding").unwrap_or(&zeros);
        for ((&size, [kernel, stride, dilation, before, after]), &more) in
            x.shape[2..].iter().zip(self.window(&weight.shape[2..])?).zip(more)
        {
            let size =
                stride * (size as i128 - 1) + i128::from(more) + dilation * (kernel - 1) + 1 - before - after;
            shape.push(
                usize::try_from(size).map_err(|_| format!("expected a larger image, got {:?}", x.shape))?,
            );
        }
        one(x.dtype, shape)
    }

    fn layer_norm(&self) -> Rule {
        let x = self.get(0)?;
        let axis = place(self.int("axis", -1), x.shape.len())?;
        let mut moments = x.shape.clone();
        moments[axis..].fill(1);
        let moments = Tensor::new(Dtype::F32, moments)?;
        Ok(vec![Tensor::new(x.dtype, x.shape.clone())?, moments.clone(), moments])
    }

    /// The normalised sum, mean and deviation (which no CPU kernel gives), and the sum.
    fn skip_layer_norm(&self) -> Rule {
        let x = Tensor::new(self.get(0)?.dtype, self.get(0)?.shape.clone())?;
        let moments = Tensor::new(Dtype::F32, vec![1])?;
        Ok(vec![x.clone(), moments.clone(), moments, x])
    }

    /// Queries, keys and values as `[batch, tokens, width]`.
    fn attention(&self) -> Rule {
        let (q, k, v) = (self.get(0)?, self.get(1)?, self.get(2)?);
        match (&q.shape[..], &k.shape[..], &v.shape[..]) {
            ([batch, tokens, width], [_, _, key_width], [_, _, value_width])
                if width == key_width && self.node.output.len() == 1 =>
            {
                one(q.dtype, vec![*batch, *tokens, *value_width])
            }
            _ => Err(format!(
                "expected queries, keys and values as [batch, tokens, width], got {:?}, {:?} and {:?}",
                q.shape, k.shape, v.shape
            )),
        }
    }

    fn reduced(&self, axes: &[usize], keeps: bool) -> Result<Vec<usize>, String> {
        let shape = self.get(0)?.shape.iter().enumerate();
        Ok(shape
            .filter(|(index, _)| keeps || !axes.contains(index))
            .map(|(index, &size)| if axes.contains(&index) { 1 } else { size })
            .collect())
    }

    fn reduce(&self) -> Rule {
        let x = self.get(0)?;
        let axes = self.list("axes", 1)?.unwrap_or_default();
        let axes = match axes {
            [] if self.flag("noop_with_empty_axes") => return one(x.dtype, x.shape.clone()),
            [] => (0..x.shape.len()).collect(),
            axes => axes.iter().map(|&axis| place(axis, x.shape.len())).collect::<Result<Vec<_>, _>>()?,
        };
        let result = Tensor::new(x.dtype, self.reduced(&axes, self.int("keepdims", 1) != 0)?)?;
        let content = match (&x.content, self.node.op_type()) {
            (Some(Content::Ints(values)), "ReduceProd") if result.elements() == 1 => values
                .iter()
                .try_fold(1i64, |all, &value| all.checked_mul(value))
                .map(|value| Content::Ints(vec![value])),
            _ => None,
        };
        Ok(vec![result.with(content)])
    }

    fn arg_max(&self) -> Rule {
        let axis = place(self.int("axis", 0), self.get(0)?.shape.len())?;
        one(Dtype::I64, self.reduced(&[axis], self.int("keepdims", 1) != 0)?)
    }
}

/// The place that an axis or index means, of which negative ones count from the back.
fn place(axis: i64, len: usize) -> Result<usize, String> {
    let from_front = if axis < 0 { axis.checked_add(len as i64) } else { Some(axis) };
    let place = from_front.and_then(|axis| usize::try_from(axis).ok()).filter(|&axis| axis < len);
    place.ok_or_else(|| format!("expected an axis or index below {len}, got {axis}"))
}

fn single<T: Copy>(values: &[T]) -> Result<T, String> {
    match values {
        [value] => Ok(*value),
        _ => Err(format!("expected one number, got {}", values.len())),
    }
}

fn sizes(values: &[i64]) -> Result<Vec<usize>, String> {
    let sizes = values
        .iter()
        .map(|&size| usize::try_from(size).map_err(|_| format!("expected sizes, got {values:?}")));
    sizes.collect()
}

/// The shape to which two extend each other, last dimensions aligned (NumPy's rule).
fn broadcast(a: &[usize], b: &[usize]) -> Result<Vec<usize>, String> {
    let rank = a.len().max(b.len());
    let size =
        |shape: &[usize], index: usize| (index + shape.len()).checked_sub(rank).map_or(1, |at| shape[at]);
    let sizes = (0..rank).map(|index| match (size(a, index), size(b, index)) {
        (a, b) if a == b => Ok(a),
        (1, size) | (size, 1) => Ok(size),
        _ => Err(format!("expected shapes that extend each other, got {a:?} and {b:?}")),
    });
    sizes.collect()
}

/// The elements of a tensor, extended to a shape.
fn spread(tensor: &Tensor, shape: &[usize]) -> Option<Content> {
    let content = tensor.content.as_ref()?;
    let missing = shape.len().checked_sub(tensor.shape.len())?;
    let own = strides(&tensor.shape);
    let apart = (0..shape.len()).map(|index| match index.checked_sub(missing) {
        Some(at) if tensor.shape[at] != 1 => own[at] as isize,
        _ => 0,
    });
    content.pick(&places(0, shape, &apart.collect::<Vec<_>>())?)
}
