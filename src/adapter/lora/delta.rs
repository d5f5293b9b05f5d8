//! What a LoRA file adds to one weight: products, sums and Kronecker products of small matrices.
//! It knows nothing of how files name them.

use std::collections::BTreeMap;

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, s};

use super::key::Part;
use super::rotation;
use crate::Error;
use crate::adapter::floats;
use crate::weights::Weights;

/// The highest rank that is believed; files have 4 to 256.
const MAX_RANK: usize = 4096;

/// A tensor of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
}

impl Piece {
    fn values(&self, file: &Weights) -> Result<Vec<f32>, Error> {
        floats(&self.name, file.get(&self.name).expect("a piece is one of the file's tensors"))
    }

    /// The outermost dimension by all others.
    fn matrix(&self, file: &Weights) -> Result<Array2<f32>, Error> {
        let values = self.values(file)?;
        Ok(Array2::from_shape_vec(matrix_sizes(&self.shape), values).expect("there are as many values"))
    }
}

/// A tensor's rows (its outermost dimension), and the elements in each.
pub(super) fn matrix_sizes(shape: &[usize]) -> (usize, usize) {
    match shape {
        [] => (1, 1),
        [rows, rest @ ..] => (*rows, rest.iter().product()),
    }
}

/// A matrix or a convolution's kernel, whole or as a product.
#[derive(Debug)]
enum Factor {
    Whole(Piece),
    /// `left` times `right`: `[out, rank]` and `[rank, in, kernel..]`; with a core (Tucker's decomposition; Phan et al.
    /// 2020) `[out, rank]`, `[rank, rank, kernel..]` and `[rank, in]`.
    Product {
        left: Piece,
        /// Whether `left` is stored as `[rank, out]`.
        flipped: bool,
        core: Option<Piece>,
        right: Piece,
    },
}

impl Factor {
    /// The shape that the pieces make, or what is wrong with theirs.
    fn shape(&self) -> Result<Vec<usize>, String> {
        let (left, flipped, core, right) = match self {
            Self::Whole(piece) => return Ok(piece.shape.clone()),
            Self::Product { left, flipped, core, right } => (left, flipped, core, right),
        };
        let (mut outputs, mut left_rank) = matrix_sizes(&left.shape);
        if *flipped {
            (outputs, left_rank) = (left_rank, outputs);
        }
        let (right_rank, mut inputs) = matrix_sizes(&right.shape);
        let (ranks, kernel) = match core.as_ref().map(|core| &core.shape[..]) {
            None => {
                inputs = right.shape.get(1).copied().unwrap_or(1);
                ((right_rank, right_rank), right.shape.get(2..).unwrap_or_default())
            }
            Some([outer, inner, kernel @ ..]) => ((*outer, *inner), kernel),
            Some(shape) => return Err(format!("expected two ranks and a kernel, got shape {shape:?}")),
        };
        if (left_rank, right_rank) != ranks {
            let mut shapes = vec![&left.shape];
            shapes.extend(core.iter().map(|core| &core.shape));
            shapes.push(&right.shape);
            return Err(format!("expected shapes of one rank, got {shapes:?}"));
        }
        let rank = left_rank.max(right_rank);
        if rank > MAX_RANK {
            return Err(format!("rank: expected at most {MAX_RANK}, got {rank}"));
        }
        Ok([&[outputs, inputs], kernel].concat())
    }

    /// What the scale is divided by.
    fn rank(&self) -> Option<usize> {
        match self {
            Self::Whole(_) => None,
            Self::Product { right, .. } => right.shape.first().copied(),
        }
    }

    /// The matrix, or the two matrices whose product it is.
    fn sides(&self, file: &Weights) -> Result<(Array2<f32>, Option<Array2<f32>>), Error> {
        let (left, flipped, core, right) = match self {
            Self::Whole(piece) => return Ok((piece.matrix(file)?, None)),
            Self::Product { left, flipped, core, right } => (left, flipped, core, right),
        };
        let left = left.matrix(file)?;
        let left = if *flipped { left.reversed_axes() } else { left };
        let right = right.matrix(file)?;
        let right = match core {
            Some(core) => contract(core.matrix(file)?, &right),
            None => right,
        };
        Ok((left, Some(right)))
    }

    fn matrix(&self, file: &Weights) -> Result<Array2<f32>, Error> {
        let (left, right) = self.sides(file)?;
        Ok(match right {
            Some(right) => left.dot(&right),
            None => left,
        })
    }
}

/// The sum over `b` of `core[a, b * kernel] * right[b, in]`, as `[a, in * kernel]`.
fn contract(core: Array2<f32>, right: &Array2<f32>) -> Array2<f32> {
    let (rank, inputs) = right.dim();
    let kernel = core.ncols() / rank;
    let mut product = Array2::zeros((core.nrows(), inputs * kernel));
    for (core, mut product) in core.outer_iter().zip(product.outer_iter_mut()) {
        let core = core.into_shape_with_order((rank, kernel)).expect("a row of the core has that size");
        product.assign(&right.t().dot(&core).flatten());
    }
    product
}

/// What is added to a weight, but for its scale.
#[derive(Debug)]
pub(super) struct Delta(Form);

#[derive(Debug)]
enum Form {
    /// LoRA (Hu et al. 2021, section 4.1: `B A`), LoCon, and a whole difference.
    Plain(Factor),
    /// LoHa: two products, multiplied element by element (Hyeon-Woo et al. 2022, proposition 1).
    Hadamard(Factor, Factor),
    /// LoKr: the Kronecker product of two (Yeh et al. 2024, section 4).
    Kronecker(Factor, Factor),
    /// OFT: blocks of outputs are rotated (Qiu et al. 2023, equations 3 and 4, with Cayley's transform); or BOFT, several times,
    /// between which they change places (Liu et al. 2023, section 4). LyCORIS's forms.
    Rotation {
        /// `[blocks, size, size]`, or with a dimension of turns in front.
        blocks: Piece,
        rescale: Option<Piece>,
        /// How far the blocks may be from nothing, per output; 0 is any.
        constraint: f32,
    },
    /// PEFT's OFT and BOFT: inputs are rotated, then outputs take their factors.
    InputRotation {
        /// `[blocks, size * (size - 1) / 2]` triangles (OFT), or `[turns, blocks, size, size]` (BOFT).
        blocks: Piece,
        is_boft: bool,
        rescale: Option<Piece>,
    },
    /// GLoRA: `W a1 a2 + b1 b2` (Chavan et al. 2023, equation 9, without biases and prompts, as LyCORIS has it).
    Generalised { a: Factor, b: Factor },
    /// IA3 (Liu et al. 2022, section 3.3): inputs or outputs times these factors, to which `shift` is added.
    Factors { factors: Piece, on_input: bool, shift: f32 },
    /// A difference of a bias: what the second of two layers adds.
    Bias(Piece),
}

impl Delta {
    /// Takes the pieces of one delta, if they are there.
    ///
    /// `number` reads the only element of a piece, and `alpha` is the file's.
    pub(super) fn take(
        pieces: &mut BTreeMap<Part, Piece>,
        number: impl Fn(&Piece) -> Result<f64, String>,
        alpha: Option<f64>,
    ) -> Result<Option<Self>, String> {
        let on_input = pieces.remove(&Part::OnInput).map(|piece| number(&piece)).transpose()?;
        Ok(Self::taken(pieces, on_input.map(|number| number != 0.0), alpha))
    }

    fn taken(pieces: &mut BTreeMap<Part, Piece>, on_input: Option<bool>, alpha: Option<f64>) -> Option<Self> {
        use Part::*;
        let form = if let Some(on_input) = on_input {
            Form::Factors { factors: pieces.remove(&Factors)?, on_input, shift: 0.0 }
        } else if let Some(factors) = pieces.remove(&Ia3) {
            let on_input = factors.shape.first() == Some(&1);
            Form::Factors { factors, on_input, shift: -1.0 }
        } else if let Some(blocks) = pieces.remove(&Rotation) {
            Form::Rotation {
                blocks,
                rescale: pieces.remove(&Rescale),
                constraint: alpha.unwrap_or(0.0) as f32,
            }
        } else if let Some(blocks) = pieces.remove(&InputTriangles) {
            Form::InputRotation { blocks, is_boft: false, rescale: pieces.remove(&Rescale) }
        } else if let Some(blocks) = pieces.remove(&InputBlocks) {
            Form::InputRotation { blocks, is_boft: true, rescale: pieces.remove(&Rescale) }
        } else if pieces.contains_key(&Generalised1A) {
            Form::Generalised {
                a: take_product(pieces, Generalised1A, None, Generalised2A)?,
                b: take_product(pieces, Generalised1B, None, Generalised2B)?,
            }
        } else if pieces.contains_key(&Up) {
            Form::Plain(take_product(pieces, Up, Some(Mid), Down)?)
        } else if pieces.contains_key(&Hadamard1A) {
            Form::Hadamard(
                take_product(pieces, Hadamard1A, Some(Hadamard1Core), Hadamard1B)?,
                take_product(pieces, Hadamard2A, Some(Hadamard2Core), Hadamard2B)?,
            )
        } else if pieces.contains_key(&Kronecker2) || pieces.contains_key(&Kronecker2A) {
            let first = match pieces.remove(&Kronecker1) {
                Some(whole) => Factor::Whole(whole),
                None => take_product(pieces, Kronecker1A, None, Kronecker1B)?,
            };
            let second = match pieces.remove(&Kronecker2) {
                Some(whole) => Factor::Whole(whole),
                None => take_product(pieces, Kronecker2A, Some(Kronecker2Core), Kronecker2B)?,
            };
            Form::Kronecker(first, second)
        } else {
            Form::Plain(Factor::Whole(pieces.remove(&Difference)?))
        };
        Some(Self(form))
    }

    /// A difference that is stored as it is added.
    pub(super) fn whole(piece: Piece) -> Self {
        Self(Form::Plain(Factor::Whole(piece)))
    }

    /// What the second of two layers adds, as a difference of the bias.
    pub(super) fn bias(piece: Piece) -> Self {
        Self(Form::Bias(piece))
    }

    /// Whether it is a share of the weight that it is for.
    pub(super) fn needs_weight(&self) -> bool {
        matches!(
            self.0,
            Form::Rotation { .. }
                | Form::InputRotation { .. }
                | Form::Generalised { .. }
                | Form::Factors { .. }
        )
    }

    /// Whether it fits a weight of this shape; what it is for where it does not.
    pub(super) fn fits(&self, weight: &[usize]) -> Result<(), String> {
        let outputs = matrix_sizes(weight).0;
        let inputs = weight.get(1).copied().unwrap_or(1);
        let count = |piece: &Piece| piece.shape.iter().product::<usize>();
        let one_each = |piece: &Piece, what: &str, of: usize| match count(piece) == of {
            true => Ok(()),
            false => Err(format!("expected one factor for each of {of} {what}, got shape {:?}", piece.shape)),
        };
        match &self.0 {
            Form::Factors { factors, on_input: true, .. } => one_each(factors, "inputs", inputs),
            Form::Factors { factors, .. } => one_each(factors, "outputs", outputs),
            Form::Rotation { blocks, rescale, .. } => {
                if let [.., number, _, size] = blocks.shape[..]
                    && number.saturating_mul(size) != outputs
                {
                    return Err(format!(
                        "expected blocks for {outputs} outputs, got shape {:?}",
                        blocks.shape
                    ));
                }
                rescale.as_ref().map_or(Ok(()), |rescale| one_each(rescale, "outputs", outputs))
            }
            Form::InputRotation { blocks, is_boft, rescale } => {
                let inputs = matrix_sizes(weight).1;
                let size = block_size(&blocks.shape, *is_boft)?;
                let count = match blocks.shape[..] {
                    [1, _] => inputs / size,
                    [count, _] | [_, count, ..] => count,
                    _ => 0,
                };
                if count.saturating_mul(size) != inputs {
                    return Err(format!("expected blocks for {inputs} inputs, got shape {:?}", blocks.shape));
                }
                rescale.as_ref().map_or(Ok(()), |rescale| one_each(rescale, "outputs", outputs))
            }
            Form::Generalised { a, b } => {
                let (a, b) = (a.shape()?, b.shape()?);
                if a != [inputs, inputs] {
                    return Err(format!("expected shape {:?} for its inputs, got {a:?}", [inputs, inputs]));
                }
                match matrix_sizes(&b) == matrix_sizes(weight) {
                    true => Ok(()),
                    false => Err(format!("expected shape {weight:?}, got {b:?}")),
                }
            }
            _ => Ok(()),
        }
    }

    /// The shape of the weight that it is for, if the pieces tell it, or what is wrong with the shapes of its pieces.
    pub(super) fn shape(&self) -> Result<Option<Vec<usize>>, String> {
        Ok(Some(match &self.0 {
            Form::Generalised { a, b } => {
                a.shape()?;
                b.shape()?;
                return Ok(None);
            }
            Form::Factors { .. } => return Ok(None),
            Form::InputRotation { blocks, is_boft, .. } => {
                block_size(&blocks.shape, *is_boft)?;
                return Ok(None);
            }
            Form::Rotation { blocks, .. } => {
                match blocks.shape[..] {
                    [_, rows, size] if rows == size => {}
                    [turns, number, rows, size]
                        if rows == size
                            && size % 2 == 0
                            && turns > 0
                            && turns < 32
                            && number % (1 << (turns - 1)) == 0 => {}
                    _ => return Err(format!("expected square blocks, got shape {:?}", blocks.shape)),
                }
                return Ok(None);
            }
            Form::Bias(piece) => piece.shape.clone(),
            Form::Plain(factor) => factor.shape()?,
            Form::Hadamard(first, second) => {
                let (first, second) = (first.shape()?, second.shape()?);
                if first != second {
                    return Err(format!("expected two products of one shape, got {first:?} and {second:?}"));
                }
                first
            }
            Form::Kronecker(first, second) => {
                let (first, second) = (first.shape()?, second.shape()?);
                let size = |shape: &[usize], axis: usize| shape.get(axis).copied().unwrap_or(1);
                if first.iter().skip(2).any(|&size| size != 1) {
                    return Err(format!("expected a matrix as first factor, got shape {first:?}"));
                }
                let dim = |axis| size(&first, axis).saturating_mul(size(&second, axis));
                [&[dim(0), dim(1)], second.get(2..).unwrap_or_default()].concat()
            }
        }))
    }

    /// What the file's scale is divided by, where there is a rank.
    pub(super) fn rank(&self) -> Option<usize> {
        match &self.0 {
            Form::Plain(factor) | Form::Hadamard(factor, _) => factor.rank(),
            Form::Kronecker(first, second) => second.rank().or_else(|| first.rank()),
            Form::Generalised { a, .. } => a.rank(),
            Form::Rotation { .. } | Form::InputRotation { .. } | Form::Factors { .. } | Form::Bias(_) => None,
        }
    }

    /// Adds it, `scale` times, to a weight of its shape: `[out, in * kernel]`; `original` is that weight before anything was
    /// added, and `inputs` are its own.
    pub(super) fn add(
        &self,
        file: &Weights,
        scale: f32,
        weight: &mut Array2<f32>,
        original: Option<&Array2<f32>>,
        inputs: usize,
    ) -> Result<(), Error> {
        match (&self.0, original) {
            (Form::Rotation { blocks, rescale, constraint }, Some(original)) => {
                let values = blocks.values(file)?;
                let rescale = rescale.as_ref().map(|rescale| rescale.values(file)).transpose()?;
                let limit = constraint * original.nrows() as f32;
                let mut turned = rotation::rotated(original, &values, &blocks.shape, limit, scale);
                if let Some(rescale) = rescale {
                    turned.outer_iter_mut().zip(rescale).for_each(|(mut row, factor)| row *= factor);
                }
                weight.zip_mut_with(&turned, |weight, turned| *weight += turned);
                *weight -= original;
                return Ok(());
            }
            (Form::InputRotation { blocks, rescale, .. }, Some(original)) => {
                let (values, size) = (blocks.values(file)?, blocks.shape[blocks.shape.len() - 1]);
                let mut turned = match blocks.shape[..] {
                    [turns, count, rows, columns] => {
                        rotation::rotated_inputs_by_blocks(original, &values, [turns, count, rows, columns])
                    }
                    _ => rotation::rotated_inputs_by_triangles(original, &values, triangle_size(size)),
                };
                if let Some(rescale) = rescale {
                    let factors = rescale.values(file)?;
                    turned.outer_iter_mut().zip(factors).for_each(|(mut row, factor)| row *= factor);
                }
                weight.scaled_add(scale, &(turned - original));
                return Ok(());
            }
            (Form::Generalised { a, b }, Some(original)) => {
                let (a, kernel) = (a.matrix(file)?, original.ncols() / inputs);
                for column in 0..kernel {
                    let of_kernel = original.slice(s![.., column..;kernel]);
                    let mut into = weight.slice_mut(s![.., column..;kernel]);
                    into.scaled_add(scale, &of_kernel.dot(&a));
                }
                let (left, right) = b.sides(file)?;
                let product = right.map_or_else(|| left.clone(), |right| left.dot(&right));
                weight.scaled_add(scale, &product);
                return Ok(());
            }
            (Form::Factors { factors, on_input, shift }, Some(original)) => {
                let (factors, kernel) = (factors.values(file)?, original.ncols() / inputs);
                for ((row, column), value) in weight.indexed_iter_mut() {
                    let factor = factors[if *on_input { column / kernel } else { row }] + shift;
                    *value += scale * factor * original[(row, column)];
                }
                return Ok(());
            }
            _ => {}
        }
        match &self.0 {
            Form::Bias(piece) => {
                let values = piece.values(file)?;
                weight.iter_mut().zip(values).for_each(|(weight, value)| *weight += scale * value);
            }
            // Those above, which are asked with the original.
            Form::Rotation { .. }
            | Form::InputRotation { .. }
            | Form::Generalised { .. }
            | Form::Factors { .. } => {}
            Form::Plain(factor) => match factor.sides(file)? {
                (left, Some(right)) => general_mat_mul(scale, &left, &right, 1.0, weight),
                (whole, None) => weight.scaled_add(scale, &whole),
            },
            Form::Hadamard(first, second) => {
                let product = first.matrix(file)? * second.matrix(file)?;
                weight.scaled_add(scale, &product);
            }
            Form::Kronecker(first, second) => {
                let (first, second) = (first.matrix(file)?, second.matrix(file)?);
                let (rows, columns) = second.dim();
                for ((row, column), &value) in first.indexed_iter() {
                    let (row, column) = (row * rows, column * columns);
                    let mut block = weight.slice_mut(s![row..row + rows, column..column + columns]);
                    block.scaled_add(scale * value, &second);
                }
            }
        }
        Ok(())
    }
}

/// The size of the square matrix with so many elements above its diagonal, rounded down.
fn triangle_size(elements: usize) -> usize {
    (1 + 8 * elements).isqrt().div_ceil(2)
}

/// The size of the blocks that rotate inputs, or what is wrong with their shape. OFT and BOFT, which the tensor's name tells
/// apart, have shapes of their own.
fn block_size(shape: &[usize], is_boft: bool) -> Result<usize, String> {
    match *shape {
        [count, elements] if !is_boft && count > 0 && elements > 0 && elements <= MAX_RANK * MAX_RANK => {
            let size = triangle_size(elements);
            match size * (size - 1) / 2 == elements {
                true => Ok(size),
                false => Err(format!("expected size * (size - 1) / 2 elements a block, got shape {shape:?}")),
            }
        }
        [turns, count, rows, columns]
            if is_boft
                && rows == columns
                && rows > 0
                && (turns == 1
                    || (rows % 2 == 0 && (2..32).contains(&turns) && count % (1 << (turns - 1)) == 0)) =>
        {
            Ok(rows)
        }
        _ if is_boft => {
            Err(format!("expected square blocks, [turns, blocks, size, size], got shape {shape:?}"))
        }
        _ => Err(format!("expected triangles, [blocks, size * (size - 1) / 2], got shape {shape:?}")),
    }
}

fn take_product(
    pieces: &mut BTreeMap<Part, Piece>,
    left: Part,
    core: Option<Part>,
    right: Part,
) -> Option<Factor> {
    let core = core.and_then(|core| pieces.remove(&core));
    // LyCORIS has `[rank, out]` there, but for LoCon, which has it as without a core.
    let flipped = core.is_some() && left != Part::Up;
    Some(Factor::Product { left: pieces.remove(&left)?, flipped, core, right: pieces.remove(&right)? })
}

/// DoRA's magnitudes (Liu et al. 2024, equation 5: `m V / ||V||`): the lengths that a weight's vectors get.
#[derive(Debug)]
pub(super) struct Magnitudes {
    pub(super) piece: Piece,
    /// Whether there may be one per input, in a row, in place of one per output.
    pub(super) may_be_row: bool,
}

impl Magnitudes {
    /// Whether there is one per input of a weight of this shape; what is wrong when there is neither.
    pub(super) fn per_input(&self, weight: &[usize]) -> Result<bool, String> {
        let (outputs, inputs) = (matrix_sizes(weight).0, weight.get(1).copied().unwrap_or(1));
        let count: usize = self.piece.shape.iter().product();
        match self.piece.shape[..] {
            [1, ref inner @ ..] if self.may_be_row && !inner.is_empty() && count == inputs => Ok(true),
            _ if count == outputs => Ok(false),
            _ => Err(format!(
                "magnitudes: expected one for each of {outputs} outputs, got shape {:?}",
                self.piece.shape
            )),
        }
    }

    /// Gives the vectors of a weight `[out, in * kernel]` these lengths; one of length 0 stays.
    pub(super) fn rescale(
        &self,
        file: &Weights,
        shape: &[usize],
        weight: &mut Array2<f32>,
    ) -> Result<(), Error> {
        let is_per_input = self.per_input(shape).is_ok_and(|is_per_input| is_per_input);
        let magnitudes = self.piece.values(file)?;
        let kernel = shape.iter().skip(2).product::<usize>();
        let vector = |row: usize, column: usize| if is_per_input { column / kernel } else { row };
        let mut squares = vec![0.0f64; magnitudes.len()];
        for ((row, column), &value) in weight.indexed_iter() {
            squares[vector(row, column)] += f64::from(value).powi(2);
        }
        let factors: Vec<f32> = squares
            .iter()
            .zip(&magnitudes)
            .map(
                |(&square, &magnitude)| {
                    if square == 0.0 { 0.0 } else { (f64::from(magnitude) / square.sqrt()) as f32 }
                },
            )
            .collect();
        for ((row, column), value) in weight.indexed_iter_mut() {
            *value *= factors[vector(row, column)];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What PEFT writes under each name, and the shapes of the other method and of none.
    #[test]
    fn blocks_have_the_shape_of_their_method() {
        for (shape, oft, boft) in [
            (&[4, 6][..], Some(4), None),
            (&[1, 28], Some(8), None),
            (&[1, 4, 4, 4], None, Some(4)),
            (&[2, 4, 4, 4], None, Some(4)),
            (&[4, 7], None, None),
            (&[0, 6], None, None),
            (&[4, 0], None, None),
            (&[1, 4, 4, 5], None, None),
            (&[2, 3, 4, 4], None, None),
            (&[2, 4, 3, 3], None, None),
            (&[4, 4, 4], None, None),
            (&[4], None, None),
            (&[], None, None),
        ] {
            assert_eq!(
                (block_size(shape, false).ok(), block_size(shape, true).ok()),
                (oft, boft),
                "{shape:?}"
            );
        }
        let piece = |shape: &[usize]| Piece { name: "x".into(), shape: shape.into() };
        for (part, shape, fits) in [
            (Part::InputTriangles, &[4, 6][..], true),
            (Part::InputTriangles, &[1, 4, 4, 4], false),
            (Part::InputBlocks, &[1, 4, 4, 4], true),
            (Part::InputBlocks, &[4, 6], false),
        ] {
            let mut pieces = BTreeMap::from([(part, piece(shape))]);
            let delta = Delta::taken(&mut pieces, None, None).unwrap();
            assert_eq!(delta.fits(&[8, 16]).is_ok(), fits, "{part:?} {shape:?}");
            assert_eq!(delta.shape().is_ok(), fits, "{part:?} {shape:?}");
        }
    }
}
