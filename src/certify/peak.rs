//! How fast a device multiplies, as the same library does it for the networks.

use std::time::{Duration, Instant};

use crate::Error;
use crate::architecture::product::{INPUTS, OUTPUT, PRODUCTS, graph};
use crate::engine::{Residency, Session, SessionOptions, TensorRef};
use crate::weights::Weights;

/// The side of the matrices: large enough that a product takes nearly all of the time, small enough for 20 MiB in all.
const SIDE: usize = 1024;
/// After how many runs, and after how long, no other is begun.
const RUNS: usize = 10;
const AT_MOST: Duration = Duration::from_secs(1);

/// The most multiplications with an addition in a second that products of matrices of 32-bit floats reach on the first
/// provider of a component, with the threads of the options: the fastest of some runs.
///
/// # Errors
/// As [`Session::open`] and [`Session::run`].
pub fn peak(component: &str, options: &SessionOptions) -> Result<f64, Error> {
    let bound = graph(component, SIDE)?.bind(Weights::default().into())?;
    let mut session =
        Session::open(bound, &SessionOptions { residency: Residency::Keep, ..options.clone() })?;
    // Products of numbers like these stay as large as they are.
    let bound = (3.0 / SIDE as f32).sqrt();
    let numbers = |seed: u32| {
        let hash = |index: usize| (index as u32 ^ seed).wrapping_mul(0x9e37_79b9) >> 8;
        let number = |index| (hash(index) as f32 / (1 << 23) as f32 - 1.0) * bound;
        (0..SIDE * SIDE).map(number).collect::<Vec<f32>>()
    };
    let (matrices, shape) = ([1, 2].map(numbers), [SIDE, SIDE]);
    let inputs: Vec<(&str, TensorRef)> = INPUTS
        .iter()
        .zip(&matrices)
        .map(|(name, matrix)| (*name, TensorRef::new(&shape, &matrix[..])))
        .collect();
    let mut product = vec![0.0; SIDE * SIDE];
    let mut fastest = Duration::MAX;
    let started = Instant::now();
    for _ in 0..RUNS {
        let run = Instant::now();
        session.run(&inputs, &mut [(OUTPUT, &mut product)])?;
        fastest = fastest.min(run.elapsed());
        if started.elapsed() > AT_MOST {
            break;
        }
    }
    Ok((PRODUCTS * (SIDE as u64).pow(3)) as f64 / fastest.as_secs_f64())
}
