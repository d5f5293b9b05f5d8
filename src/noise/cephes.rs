//! The single-precision logarithm, sine and cosine of Moshier's Cephes library, rounded as torch's x86-64 build
//! rounds them. It knows nothing of random numbers.
//!
//! Torch uses `avx_mathfun.h` (Pommier 2007, Garberoglio 2012, after Cephes' `logf.c` and `sinf.c`), and its
//! compiler fuses each product that is added to something into one rounding. Here every such place is a `mul_add`,
//! and no other is: the golden values of `tests/noise.rs` tell.

// The coefficients are quoted as Cephes prints them, beyond what f32 holds.
#![allow(clippy::excessive_precision)]

/// The natural logarithm of a positive normal number.
#[inline(always)]
pub(super) fn ln(x: f32) -> f32 {
    // x = m * 2^e with m in [sqrt(1/2), sqrt(2)), then m - 1.
    let exponent = (x.to_bits() >> 23) as i32 - 126;
    let mantissa = f32::from_bits((x.to_bits() & 0x007f_ffff) | 0x3f00_0000);
    let (e, x) = if mantissa < std::f32::consts::FRAC_1_SQRT_2 {
        (exponent - 1, mantissa - 1.0 + mantissa)
    } else {
        (exponent, mantissa - 1.0)
    };
    let e = e as f32;
    let z = x * x;
    let y = polynomial(
        x,
        [
            7.037_683_629_2e-2,
            -1.151_461_031_0e-1,
            1.167_699_874_0e-1,
            -1.242_014_084_6e-1,
            1.424_932_278_7e-1,
            -1.666_805_766_5e-1,
            2.000_071_476_5e-1,
            -2.499_999_399_3e-1,
            3.333_333_117_4e-1,
        ],
    ) * x;
    let y = y.mul_add(z, e * -2.121_944_40e-4) - 0.5 * z;
    e.mul_add(0.693_359_375, x + y)
}

/// The sine and cosine of an angle in `[0, 2 pi]`, in radians.
#[inline(always)]
pub(super) fn sin_cos(angle: f32) -> (f32, f32) {
    // The octant, rounded up to an even one, and the angle's distance from it in three steps of pi/4.
    let octant = ((angle * (4.0 / std::f32::consts::PI)) as i32 + 1) & !1;
    let y = octant as f32;
    let x = y.mul_add(-0.785_156_25, angle);
    let x = y.mul_add(-2.418_756_484_985_351_562_5e-4, x);
    let x = y.mul_add(-3.774_894_977_445_941_08e-8, x);
    let z = x * x;

    let p =
        polynomial(z, [2.443_315_711_809_948e-5, -1.388_731_625_493_765e-3, 4.166_664_568_298_827e-2]) * z;
    let cos = p.mul_add(z, -0.5 * z) + 1.0;
    let p = polynomial(z, [-1.951_529_589_1e-4, 8.332_160_873_6e-3, -1.666_665_461_1e-1]) * z;
    let sin = p.mul_add(x, x);

    // An octant is a quarter turn where it is 2 or 6; the signs follow from the half planes.
    let (sin, cos) = if octant & 2 == 0 { (sin, cos) } else { (cos, sin) };
    (if octant & 4 == 0 { sin } else { -sin }, if (octant + 2) & 4 == 0 { cos } else { -cos })
}

/// Horner's rule, highest power first.
#[inline(always)]
fn polynomial<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    coefficients.into_iter().reduce(|sum, coefficient| sum.mul_add(x, coefficient)).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ln_is_the_logarithm() {
        for i in 1..=4096 {
            let x = i as f32 / 4096.0;
            let exact = f64::from(x).ln();
            assert!((f64::from(ln(x)) - exact).abs() <= 2e-7 * exact.abs().max(1e-3), "ln({x})");
        }
    }

    #[test]
    fn sin_cos_are_right_in_every_octant() {
        for i in 0..=4096 {
            let angle = std::f32::consts::TAU * i as f32 / 4096.0;
            let (sin, cos) = sin_cos(angle);
            let (exact_sin, exact_cos) = f64::from(angle).sin_cos();
            assert!((f64::from(sin) - exact_sin).abs() < 2e-7, "sin({angle})");
            assert!((f64::from(cos) - exact_cos).abs() < 2e-7, "cos({angle})");
        }
    }
}
