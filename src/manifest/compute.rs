//! How a component of a bundle computes in integers, and how far that takes it from floats. It knows no graph.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::graph::int8::{Int8, WeightBits};
use crate::{Error, ErrorKind};

/// In which numbers a component's layers multiply, where they are not floats; see [`crate::graph::int8`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compute {
    /// 8-bit integers, with one scale for each output channel and one for what a layer reads.
    Int8,
    /// The same in convolutions, and one scale for every 32 numbers in linear layers.
    Int8Fine,
    /// 8-bit integers with one scale for each output channel and one for what a layer reads, measured when the bundle was made;
    /// in standard operators, for providers that have kernels for them; see [`crate::graph::qdq`].
    Qdq,
}

impl Compute {
    const ALL: [Self; 3] = [Self::Int8, Self::Int8Fine, Self::Qdq];

    /// What a graph is made to do with the ranges of each run; nothing where ranges are measured before.
    pub(crate) fn dynamic(self, bits: WeightBits) -> Option<Int8> {
        let has_blocks = match self {
            Self::Int8 => false,
            Self::Int8Fine => true,
            Self::Qdq => return None,
        };
        Some(Int8 { has_blocks, bits })
    }
}

impl fmt::Display for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Int8 => "int8",
            Self::Int8Fine => "int8-fine",
            Self::Qdq => "qdq",
        })
    }
}

impl FromStr for Compute {
    type Err = Error;

    /// Reads what `Display` writes; [`ErrorKind::Usage`] for anything else.
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|compute| compute.to_string() == text).ok_or_else(|| {
            let known = Self::ALL.map(|compute| compute.to_string()).join(", ");
            Error::new(ErrorKind::Usage, format!("compute: expected one of {known}, got {text:?}"))
        })
    }
}

/// How a component computes in integers, and what that costs: all errors are those of its outputs on seeded inputs, relative
/// to what floats give, `|integers - floats| / |floats|`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ComputeRecord {
    /// In which numbers.
    pub form: Compute,
    /// How long the integers of weights with a scale per channel are.
    pub weight_bits: WeightBits,
    /// The error of the component.
    pub error: f64,
    /// The most that it was to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_error: Option<f64>,
    /// By block, the error when no other one computes in integers.
    pub losses: BTreeMap<String, f64>,
    /// The blocks that stay in floats: for the sake of `max_error`, or because they always do in this form.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub floats: Vec<String>,
}
