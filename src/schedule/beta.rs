//! The beta distribution: the value below which it has a given share.
//! It knows nothing of schedules.

/// More than the continued fraction takes for parameters of up to 50.
const MAX_TERMS: u32 = 500;

/// The value below which the beta distribution has the share `part` of 0 to 1; `alpha` and `beta` are above 0.
///
/// Found by halving what [`share`] is known to cross in, until no number lies between; above the median the distribution
/// is turned around, because numbers near 0 are told apart more finely than those near 1.
pub(super) fn quantile(part: f64, alpha: f64, beta: f64) -> f64 {
    if part > share(0.5, alpha, beta) {
        return 1.0 - lower_quantile(1.0 - part, beta, alpha);
    }
    lower_quantile(part, alpha, beta)
}

/// The same of a value of at most 1/2.
fn lower_quantile(part: f64, alpha: f64, beta: f64) -> f64 {
    let (mut low, mut high) = (0.0, 0.5);
    loop {
        let middle = (low + high) / 2.0;
        if middle <= low || middle >= high {
            return high;
        }
        if share(middle, alpha, beta) < part {
            low = middle;
        } else {
            high = middle;
        }
    }
}

/// The share of the beta distribution below `x`: the regularised incomplete beta function (DLMF 8.17).
fn share(x: f64, alpha: f64, beta: f64) -> f64 {
    // The fraction converges fast below the mean; DLMF 8.17.4 turns the rest around.
    if x > (alpha + 1.0) / (alpha + beta + 2.0) {
        return 1.0 - share(1.0 - x, beta, alpha);
    }
    if x <= 0.0 {
        return 0.0;
    }
    let ln_beta = ln_gamma(alpha) + ln_gamma(beta) - ln_gamma(alpha + beta);
    let front = (alpha * x.ln() + beta * (-x).ln_1p() - ln_beta).exp() / alpha;
    front * fraction(x, alpha, beta)
}

/// The continued fraction of DLMF 8.17.22, by the method of Lentz (1976) as modified by Thompson & Barnett (1986).
fn fraction(x: f64, alpha: f64, beta: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let nonzero = |value: f64| if value.abs() < TINY { TINY } else { value };
    let (mut c, mut d, mut value) = (f64::INFINITY, 1.0, 1.0);
    for term in 1..MAX_TERMS {
        let m = f64::from(term / 2);
        let numerator = if term % 2 == 0 {
            m * (beta - m) * x / ((alpha + 2.0 * m - 1.0) * (alpha + 2.0 * m))
        } else {
            -(alpha + m) * (alpha + beta + m) * x / ((alpha + 2.0 * m) * (alpha + 2.0 * m + 1.0))
        };
        d = 1.0 / nonzero(1.0 + numerator * d);
        c = nonzero(1.0 + numerator / c);
        value *= c * d;
        if (c * d - 1.0).abs() < f64::EPSILON {
            break;
        }
    }
    value
}

/// The logarithm of the gamma function above 0 (Lanczos 1964, with the coefficients for `g = 7` and nine terms).
fn ln_gamma(x: f64) -> f64 {
    const G: f64 = 7.0;
    const TERMS: [f64; 9] = [
        0.999_999_999_999_809_9,
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    // Below 1/2 the series is off: gamma(x) = gamma(x + 1) / x.
    if x < 0.5 {
        return ln_gamma(x + 1.0) - x.ln();
    }
    let x = x - 1.0;
    let base = x + G + 0.5;
    let terms = TERMS[1..].iter().zip(1..).map(|(term, i)| term / (x + f64::from(i)));
    let sum = TERMS[0] + terms.sum::<f64>();
    (x + 0.5) * base.ln() - base + (std::f64::consts::TAU.sqrt() * sum).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `scipy.stats.beta.ppf(PARTS, alpha, beta)` of scipy 1.17.1.
    #[test]
    fn quantiles_are_those_of_scipy() {
        const PARTS: [f64; 6] = [0.001, 1.0 / 19.0, 0.3, 0.5, 0.9, 0.999];
        let table = [
            (
                0.6,
                0.6,
                [
                    1.855873851745199e-5,
                    1.367108156446927e-2,
                    0.2340170038752357,
                    0.5,
                    0.9604155944112192,
                    0.9999814412614826,
                ],
            ),
            (
                0.5,
                0.7,
                [
                    1.569752374777285e-6,
                    4.344563612580222e-3,
                    0.1372622649636118,
                    0.3610839131320438,
                    0.9188348842782802,
                    0.9998844141222141,
                ],
            ),
            (1.0, 1.0, [1e-3, 1.0 / 19.0, 0.3, 0.5, 0.9, 0.999]),
            (
                2.0,
                5.0,
                [
                    8.255492787746678e-3,
                    6.464081774353884e-2,
                    0.1818034713189492,
                    0.2644499832956601,
                    0.5103163065514917,
                    0.818613866919134,
                ],
            ),
            (
                8.0,
                0.3,
                [
                    0.5477034719361736,
                    0.840094376798304,
                    0.9670433390351781,
                    0.9904923814225094,
                    0.9999577112871045,
                    0.9999999999908913,
                ],
            ),
            (
                50.0,
                50.0,
                [
                    0.3487478265970523,
                    0.4193372645125049,
                    0.4737325098149819,
                    0.5,
                    0.5639735809275088,
                    0.6512521734029477,
                ],
            ),
            (
                0.1,
                0.1,
                [
                    8.86928065555024e-28,
                    1.446613081895079e-10,
                    5.214870253734283e-3,
                    0.5,
                    0.9999999113071999,
                    1.0,
                ],
            ),
        ];
        for (alpha, beta, values) in table {
            for (part, expected) in PARTS.into_iter().zip(values) {
                let value = quantile(part, alpha, beta);
                assert!(
                    (value / expected - 1.0).abs() < 1e-11,
                    "{alpha}, {beta}: {part} at {value}, expected {expected}"
                );
            }
            assert_eq!(quantile(1.0, alpha, beta), 1.0);
            assert!(quantile(0.0, alpha, beta) < 1e-300);
        }
    }

    /// With two as a parameter the distribution has a closed form: `x^a (1 + a (1 - x))`.
    #[test]
    fn shares_have_their_closed_form() {
        for a in [0.1, 0.6, 3.0, 50.0] {
            for x in [1e-6, 0.1, 0.5, 0.9, 0.999f64] {
                let exact = x.powf(a) * (1.0 + a * (1.0 - x));
                assert!((share(x, a, 2.0) - exact).abs() < 1e-13, "{a}, {x}: {}", share(x, a, 2.0));
            }
        }
    }
}
