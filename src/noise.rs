//! Standard normal noise that reproduces another program's generator, bit for bit.
//! It knows nothing of schedules, samplers or models: it fills slices.

mod brownian;
mod cephes;
mod mersenne;
mod numpy;
mod philox;
mod seed_sequence;
mod torch_cpu;
mod variation;

pub use brownian::BrownianTree;
pub use numpy::Numpy;
pub use philox::Philox;
pub use torch_cpu::TorchCpu;
pub use variation::slerp;

use std::fmt;
use std::str::FromStr;

use crate::state::Record;
use crate::{Error, ErrorKind};

/// A stream of independent standard normal values.
pub trait NoiseSource {
    /// Fills `out` with the next `out.len()` values of the stream.
    ///
    /// How a request is cut into calls is part of the stream: one call for a whole tensor gives what the
    /// reproduced program gives for a tensor of that size.
    fn fill_normal(&mut self, out: &mut [f32]);

    /// Lists where in the stream the next value is.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] for a record of another generator.
    fn state(&mut self, record: &mut Record) -> Result<(), Error>;
}

impl<N: NoiseSource + ?Sized> NoiseSource for Box<N> {
    fn fill_normal(&mut self, out: &mut [f32]) {
        (**self).fill_normal(out);
    }

    fn state(&mut self, record: &mut Record) -> Result<(), Error> {
        (**self).state(record)
    }
}

/// Noise for the part of a run between two noise levels.
pub trait StepNoise {
    /// Fills `out` with standard normal noise for the part from one level down to another,
    /// `from_sigma > to_sigma >= 0`. Parts that do not overlap have independent noise.
    fn fill_between(&mut self, from_sigma: f64, to_sigma: f64, out: &mut [f32]);
}

/// The next values of the stream, whatever the levels.
impl<N: NoiseSource + ?Sized> StepNoise for N {
    fn fill_between(&mut self, _from_sigma: f64, _to_sigma: f64, out: &mut [f32]) {
        self.fill_normal(out);
    }
}

/// Whose stream of noise an image is drawn from.
///
/// ```
/// use calotype::noise::Rng;
/// assert_eq!("NV".parse::<Rng>()?, Rng::Philox);
/// let mut first = [0.0];
/// Rng::Numpy.source(0)?.fill_normal(&mut first);
/// assert_eq!(first, [1.764_052_4]); // numpy.random.seed(0); numpy.random.randn()
/// # Ok::<(), calotype::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Rng {
    /// PyTorch on the CPU ([`TorchCpu`]): diffusers' and ComfyUI's usual noise, A1111's "CPU".
    #[default]
    Torch,
    /// PyTorch on an NVIDIA GPU ([`Philox`]): A1111's "NV", and its "GPU" but for the last bits.
    Philox,
    /// `numpy.random.seed` ([`Numpy`]): the noise of diffusers' ONNX pipelines.
    Numpy,
}

impl Rng {
    /// Every generator.
    pub const ALL: [Self; 3] = [Self::Torch, Self::Philox, Self::Numpy];

    /// The stream of a seed; [`ErrorKind::Usage`] for a seed that the reproduced program refuses, too: numpy's are at
    /// most 2^32 - 1. Torch takes every seed, but on the CPU it uses the low 32 bits alone.
    ///
    /// Every image has a generator of its own: the source of `seed + k` draws, of a batch that begins at `seed`,
    /// image `k` (A1111's batches, and diffusers' with a list of generators), whatever the batch's size.
    pub fn source(self, seed: u64) -> Result<Box<dyn NoiseSource + Send>, Error> {
        Ok(match self {
            Self::Torch => Box::new(TorchCpu::new(seed)),
            Self::Philox => Box::new(Philox::new(seed)),
            Self::Numpy => Box::new(Numpy::new(seed.try_into().map_err(|_| {
                Error::new(
                    ErrorKind::Usage,
                    format!("seed: expected 0 to {} for numpy, got {seed}", u32::MAX),
                )
                .help("torch and philox support larger ones")
            })?)),
        })
    }

    /// The name, then what others call it.
    const fn names(self) -> &'static [&'static str] {
        match self {
            Self::Torch => &["torch", "cpu"],
            Self::Philox => &["philox", "gpu", "nv", "cuda"],
            Self::Numpy => &["numpy"],
        }
    }
}

impl fmt::Display for Rng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.names()[0])
    }
}

impl FromStr for Rng {
    type Err = Error;

    /// Reads a name as it is written here or in A1111's settings (`CPU`, `GPU`, `NV`), in any case;
    /// [`ErrorKind::Usage`] for any other name.
    fn from_str(text: &str) -> Result<Self, Error> {
        let is_named = |rng: &Self| rng.names().iter().any(|name| name.eq_ignore_ascii_case(text));
        Self::ALL.into_iter().find(is_named).ok_or_else(|| {
            let names = Self::ALL.map(|rng| rng.names()[0]).join(", ");
            Error::new(ErrorKind::Usage, format!("rng: expected one of {names}, got {text:?}"))
        })
    }
}
