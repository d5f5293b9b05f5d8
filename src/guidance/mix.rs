//! Mixes: sums of a step's predictions with one weight each, and what can be measured of them.
//! They know nothing of what the predictions are.

use super::MAX_VIEWS;

/// How many values are worked on at a time: few enough to stay in the fastest cache, so that a mix of any number of
/// predictions goes over memory once.
const BLOCK: usize = 256;

/// The weights of a sum.
#[derive(Clone, Copy)]
pub(super) struct Mix {
    /// Of the latents.
    pub(super) x: f64,
    /// Of what is kept from step to step.
    pub(super) kept: f64,
    /// Of the predictions.
    pub(super) views: [f64; MAX_VIEWS],
}

/// What is summed up; all parts have one length, the predictions one after the other.
#[derive(Clone, Copy)]
pub(super) struct Sources<'a> {
    pub(super) x: &'a [f32],
    pub(super) kept: &'a [f32],
    pub(super) predictions: &'a [f32],
}

/// The inner products of two mixes.
pub(super) struct Products {
    pub(super) aa: f64,
    pub(super) ab: f64,
    pub(super) bb: f64,
}

impl Mix {
    pub(super) const NOTHING: Self = Self { x: 0.0, kept: 0.0, views: [0.0; MAX_VIEWS] };

    /// One prediction alone.
    pub(super) fn view(view: usize) -> Self {
        let mut mix = Self::NOTHING;
        mix.views[view] = 1.0;
        mix
    }

    pub(super) fn times(mut self, factor: f64) -> Self {
        for weight in self.views.iter_mut().chain([&mut self.x, &mut self.kept]) {
            // What is not part of the sum stays out of it even if the factor is not a number.
            if *weight != 0.0 {
                *weight *= factor;
            }
        }
        self
    }

    pub(super) fn plus(mut self, other: Self) -> Self {
        self.x += other.x;
        self.kept += other.kept;
        self.views.iter_mut().zip(other.views).for_each(|(weight, other)| *weight += other);
        self
    }

    /// `self + share * (other - self)` in weights that are exact at 0 and 1.
    pub(super) fn toward(self, other: Self, share: f64) -> Self {
        self.times(1.0 - share).plus(other.times(share))
    }

    pub(super) fn write(&self, sources: Sources<'_>, out: &mut [f32]) {
        let mut sums = [0.0; BLOCK];
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            self.sum(sources, block, &mut sums[..out.len()]);
            out.iter_mut().zip(&sums).for_each(|(out, &sum)| *out = sum as f32);
        }
    }

    /// Writes the mix to what is kept, which it may itself be made of.
    pub(super) fn keep(&self, x: &[f32], kept: &mut [f32], predictions: &[f32]) {
        let mut sums = [0.0; BLOCK];
        for block in 0..kept.len().div_ceil(BLOCK) {
            let here = block * BLOCK..kept.len().min((block + 1) * BLOCK);
            let sums = &mut sums[..here.len()];
            self.sum(Sources { x, kept, predictions }, block, sums);
            kept[here].iter_mut().zip(sums).for_each(|(kept, sum)| *kept = *sum as f32);
        }
    }

    fn sum(&self, sources: Sources<'_>, block: usize, sums: &mut [f64]) {
        let Sources { x, kept, predictions } = sources;
        let predictions = self.views.iter().zip(predictions.chunks_exact(x.len()));
        sums.fill(0.0);
        for (&weight, source) in [(&self.x, x), (&self.kept, kept)].into_iter().chain(predictions) {
            // What has no weight is not read: it may be missing, or not finite.
            if weight != 0.0 {
                let source = &source[block * BLOCK..];
                sums.iter_mut().zip(source).for_each(|(sum, &value)| *sum += weight * f64::from(value));
            }
        }
    }
}

impl Sources<'_> {
    pub(super) fn products(self, a: Mix, b: Mix) -> Products {
        let mut products = Products { aa: 0.0, ab: 0.0, bb: 0.0 };
        self.visit([a, b], |[a, b]| {
            products.aa += a * a;
            products.ab += a * b;
            products.bb += b * b;
        });
        products
    }

    /// The standard deviations of two mixes. (torch divides by one less than the count, which their ratio does not tell.)
    pub(super) fn deviations(self, mixes: [Mix; 2]) -> [f64; 2] {
        // From the first value on, so that what is one value throughout has exactly none.
        let mut pivots = None;
        let (mut sums, mut squares) = ([0.0; 2], [0.0; 2]);
        self.visit(mixes, |values| {
            let pivots: &[f64; 2] = pivots.get_or_insert(values);
            for i in 0..2 {
                let value = values[i] - pivots[i];
                sums[i] += value;
                squares[i] += value * value;
            }
        });
        let count = self.x.len() as f64;
        std::array::from_fn(|i| ((squares[i] - sums[i] * sums[i] / count) / count).max(0.0).sqrt())
    }

    fn visit(self, mixes: [Mix; 2], mut with: impl FnMut([f64; 2])) {
        let mut sums = [[0.0; BLOCK]; 2];
        for (block, x) in self.x.chunks(BLOCK).enumerate() {
            mixes.iter().zip(&mut sums).for_each(|(mix, sums)| mix.sum(self, block, &mut sums[..x.len()]));
            (0..x.len()).for_each(|i| with([sums[0][i], sums[1][i]]));
        }
    }
}
