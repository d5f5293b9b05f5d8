//! Variation seeds: the way from one image's noise to another's.

use crate::tensor::LatentShape;

/// Moves `noise` towards `variation` by `strength`, from 0 (all noise) to 1 (all variation), as A1111 does with the
/// noise of an image and that of its variation seed.
///
/// Spherical linear interpolation (Shoemake 1985), which keeps the length of what it interpolates. The vectors are
/// not the whole tensors: each is a column of latent cells of one channel (A1111's `modules/rng.py` takes norms over
/// axis 1 of channels, rows, columns). Where their cosines are above 0.9995 on average, A1111 interpolates
/// linearly, and with the weights exchanged; so does this. Computed in double precision, A1111's single precision
/// differs by less than 1e-6.
///
/// As in A1111, the result is NaN in a column whose two noises are parallel while others are not, as all are in
/// latents of a single row.
///
/// # Panics
/// Where `noise` or `variation` does not have `shape`.
pub fn slerp(noise: &mut [f32], variation: &[f32], shape: LatentShape, strength: f64) {
    assert_eq!([noise.len(), variation.len()], [shape.len(); 2], "noise and variation have the given shape");
    let (width, cells) = (shape.width_cells, shape.height_cells * shape.width_cells);
    let starts = || (0..shape.channels).flat_map(move |channel| (0..width).map(move |x| channel * cells + x));
    let places = |start: usize| (start..start + cells).step_by(width);
    let cosine = |noise: &[f32], start: usize| {
        let dot =
            |a: &[f32], b: &[f32]| -> f64 { places(start).map(|i| f64::from(a[i]) * f64::from(b[i])).sum() };
        dot(noise, variation) / (dot(noise, noise).sqrt() * dot(variation, variation).sqrt())
    };
    let mix = |noise: &mut f32, variation: f32, weights: [f64; 2]| {
        *noise = (weights[0] * f64::from(*noise) + weights[1] * f64::from(variation)) as f32;
    };

    let cosines: f64 = starts().map(|start| cosine(noise, start)).sum();
    if cosines / (shape.channels * width) as f64 > 0.9995 {
        noise.iter_mut().zip(variation).for_each(|(a, &b)| mix(a, b, [strength, 1.0 - strength]));
        return;
    }
    for start in starts() {
        let omega = cosine(noise, start).acos();
        let weights = [1.0 - strength, strength].map(|part| (part * omega).sin() / omega.sin());
        places(start).for_each(|i| mix(&mut noise[i], variation[i], weights));
    }
}
