//! Rotations of a weight's outputs or inputs: OFT and BOFT as LyCORIS and PEFT have them. It knows nothing of files.

use ndarray::{Array2, Axis, s};

/// The weight `[out, in * kernel]` with its outputs rotated, `strength` of the way.
///
/// A block `B` stands for the rotation `R = (I + Q) (I - Q)^-1` with `Q = B - B^T` (Cayley's transform; Qiu et al. 2023,
/// equation 3), where `Q` of all blocks together is no longer than `limit`, if that is above 0. `shape` is `[blocks, size,
/// size]`, and a block's outputs become `R^T w`; or `[turns, blocks, size, size]`, where they become `R w` and outputs change places
/// before and after (Liu et al. 2023, section 4).
pub(super) fn rotated(
    weight: &Array2<f32>,
    blocks: &[f32],
    shape: &[usize],
    limit: f32,
    strength: f32,
) -> Array2<f32> {
    let size = shape[shape.len() - 1];
    let area = size * size;
    let skew =
        |block: &[f32], row: usize, column: usize| block[row * size + column] - block[column * size + row];
    let squares = blocks.chunks_exact(area).flat_map(|block| {
        (0..area).map(move |index| f64::from(skew(block, index / size, index % size)).powi(2))
    });
    let length = squares.sum::<f64>().sqrt() + 1e-8;
    let shorter = if limit > 0.0 && length > f64::from(limit) { f64::from(limit) / length } else { 1.0 };
    let rotations: Vec<Array2<f64>> = blocks
        .chunks_exact(area)
        .map(|block| {
            let q = Array2::from_shape_fn((size, size), |(row, column)| {
                f64::from(skew(block, row, column)) * shorter
            });
            let mut turn = cayley(&q) * f64::from(strength);
            turn.diag_mut().iter_mut().for_each(|one| *one += 1.0 - f64::from(strength));
            turn
        })
        .collect();
    let mut turned = weight.mapv(f64::from);
    match shape.len() {
        3 => turn(&mut turned, rotations.iter().map(|rotation| rotation.t()), size),
        _ => {
            let (turns, count) = (shape[0], shape[1]);
            for index in 0..turns {
                let places = butterfly(turned.nrows(), (1 << index) * size / 2);
                let mut moved = turned.select(Axis(0), &places);
                turn(
                    &mut moved,
                    rotations[index * count..][..count].iter().map(|rotation| rotation.view()),
                    size,
                );
                for (row, &place) in moved.outer_iter().zip(&places) {
                    turned.row_mut(place).assign(&row);
                }
            }
        }
    }
    turned.mapv(|value| value as f32)
}

/// The weight `[out, in * kernel]` with its inputs rotated by `[blocks, size * (size - 1) / 2]` triangles above the diagonals
/// of skew-symmetric blocks `Q`; one block is shared by all inputs.
///
/// Cayley's transform is a Neumann series of five terms, `I + 2 Q + 2 Q^2 + 2 Q^3 + Q^4` (Qiu et al. 2025, "Orthogonal
/// Finetuning Made Scalable", equation 3, of which PEFT adds the last term once), which is PEFT's default; its files do not
/// say when another was used.
pub(super) fn rotated_inputs_by_triangles(weight: &Array2<f32>, blocks: &[f32], size: usize) -> Array2<f32> {
    let rotations: Vec<Array2<f64>> = blocks
        .chunks_exact(size * (size - 1) / 2)
        .map(|triangle| {
            let mut q = Array2::zeros((size, size));
            let above = (0..size).flat_map(|row| (row + 1..size).map(move |column| (row, column)));
            for ((row, column), &value) in above.zip(triangle) {
                q[(row, column)] = f64::from(value);
                q[(column, row)] = -f64::from(value);
            }
            let square = q.dot(&q);
            let cube = square.dot(&q);
            Array2::eye(size) + (&q + &square + &cube) * 2.0 + cube.dot(&q)
        })
        .collect();
    let mut turned = weight.t().mapv(f64::from);
    turn(&mut turned, rotations.iter().map(|rotation| rotation.view()).cycle(), size);
    turned.t().mapv(|value| value as f32)
}

/// The weight `[out, in * kernel]` with its inputs rotated by blocks `[turns, blocks, size, size]`, before and after each turn of
/// which inputs change places (Liu et al. 2023, section 4, as PEFT has it).
pub(super) fn rotated_inputs_by_blocks(
    weight: &Array2<f32>,
    blocks: &[f32],
    shape: [usize; 4],
) -> Array2<f32> {
    let [turns, count, size, _] = shape;
    let rotations: Vec<Array2<f64>> = blocks
        .chunks_exact(size * size)
        .map(|block| {
            let at = |row: usize, column: usize| f64::from(block[row * size + column]);
            cayley(&Array2::from_shape_fn((size, size), |(row, column)| {
                0.5 * (at(column, row) - at(row, column))
            }))
        })
        .collect();
    let mut turned = weight.t().mapv(f64::from);
    for index in 0..turns {
        let places = if turns == 1 {
            (0..turned.nrows()).collect()
        } else {
            halves(turned.nrows(), size << index, size / 2)
        };
        let mut moved = turned.clone();
        for (row, &place) in turned.outer_iter().zip(&places) {
            moved.row_mut(place).assign(&row);
        }
        turn(&mut moved, rotations[index * count..][..count].iter().map(|rotation| rotation.view()), size);
        turned = moved.select(Axis(0), &places);
    }
    turned.t().mapv(|value| value as f32)
}

/// The places that rows come from where, in each stretch of `stretch` rows, every other run of `run` rows goes before the rest.
fn halves(rows: usize, stretch: usize, run: usize) -> Vec<usize> {
    let runs = stretch / run;
    (0..rows)
        .map(|row| {
            let (start, index, within) = (row / stretch * stretch, row % stretch / run, row % run);
            let from = if index < runs / 2 { 2 * index } else { 2 * (index - runs / 2) + 1 };
            start + from * run + within
        })
        .collect()
}

/// Multiplies each block of rows by its matrix.
fn turn<'a>(
    weight: &mut Array2<f64>,
    matrices: impl Iterator<Item = ndarray::ArrayView2<'a, f64>>,
    size: usize,
) {
    for (index, matrix) in matrices.enumerate().take(weight.nrows() / size) {
        let mut rows = weight.slice_mut(s![index * size..(index + 1) * size, ..]);
        let product = matrix.dot(&rows);
        rows.assign(&product);
    }
}

/// The places that rows come from where pairs of runs of `run` rows are interleaved.
fn butterfly(rows: usize, run: usize) -> Vec<usize> {
    (0..rows).map(|row| row / (2 * run) * 2 * run + row % 2 * run + row % (2 * run) / 2).collect()
}

/// `(I - Q)^-1 (I + Q)` of a skew-symmetric `Q`, where `I - Q` always has an inverse; by Gauss's elimination.
fn cayley(q: &Array2<f64>) -> Array2<f64> {
    let size = q.nrows();
    let identity = Array2::<f64>::eye(size);
    let (mut left, mut right) = (&identity - q, &identity + q);
    for at in 0..size {
        let pivot =
            (at..size).max_by(|a, b| left[(*a, at)].abs().total_cmp(&left[(*b, at)].abs())).unwrap_or(at);
        for column in 0..size {
            left.swap((at, column), (pivot, column));
            right.swap((at, column), (pivot, column));
        }
        let factor = left[(at, at)].recip();
        left.row_mut(at).mapv_inplace(|value| value * factor);
        right.row_mut(at).mapv_inplace(|value| value * factor);
        let (left_row, right_row) = (left.row(at).to_owned(), right.row(at).to_owned());
        for row in (0..size).filter(|row| *row != at) {
            let factor = -left[(row, at)];
            left.row_mut(row).scaled_add(factor, &left_row);
            right.row_mut(row).scaled_add(factor, &right_row);
        }
    }
    right
}
