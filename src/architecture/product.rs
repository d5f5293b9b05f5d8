//! A chain of matrix products, by which a device's speed is measured. It is no network.

use super::builder::Builder;
use crate::Error;
use crate::graph::{Dim, Graph};
use crate::weights::Dtype;

/// What the graph is fed: matrices of `side` rows and columns.
pub(crate) const INPUTS: [&str; 2] = ["a", "b"];
/// What the graph gives: `a` times `b`, [`PRODUCTS`] times over.
pub(crate) const OUTPUT: &str = "product";
/// How many products follow each other.
pub(crate) const PRODUCTS: u64 = 4;

/// The graph, under the name of the component whose providers compute it.
///
/// # Errors
/// None for a `side` that memory allows.
pub(crate) fn graph(component: &str, side: usize) -> Result<Graph, Error> {
    let dims = [Dim::Fixed(side), Dim::Fixed(side)];
    let mut builder = Builder::new();
    let [mut a, b] = INPUTS.map(|name| builder.input(name, Dtype::F32, &dims));
    for _ in 0..PRODUCTS {
        a = builder.op("MatMul", &[&a, &b], &[]);
    }
    builder.output(OUTPUT, &a, &dims);
    builder.finish(component)
}
