//! How far the outputs of a packed model lie from those of its source, component by component, on seeded inputs.
//! It has one component of one model open at a time.

use crate::engine::{Session, SessionOptions};
use crate::graph::BoundGraph;
use crate::model::{Model, Part};
use crate::prompt::Text;
use crate::stage::feed::Feed;
use crate::stage::seeded::{self, PROMPTS};
use crate::stage::text_encoder::TextEncoder;
use crate::{Error, ErrorKind, memory};

/// The seed of all that is random in the inputs.
const SEED: u64 = 0;

/// How far one output lies from that of the source.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputError {
    /// The output's name.
    pub output: String,
    /// The length of the difference, relative to that of the source's output: `|packed - source| / |source|`.
    pub relative: f64,
}

/// The errors of a component's outputs, in the order of [`Model::parts`].
///
/// # Errors
/// [`ErrorKind::Numeric`] when an output is not made of numbers; otherwise those of opening and running the components.
pub(super) fn compare(
    source: &Model,
    packed: &Model,
    options: &SessionOptions,
) -> Result<Vec<Vec<OutputError>>, Error> {
    let manifest = source.manifest();
    let text = TextEncoder::open(source, |_| options.clone())?
        .encode(&[Some(&Text::literal(PROMPTS[0])?)])?
        .remove(0);
    let mut errors = Vec::new();
    for (part, packed) in source.parts().zip(packed.parts()) {
        let feeds = seeded::feeds(part, source.encoder(part), manifest, Some(&text), SEED)?;
        let expected = outputs(part, &feeds, options)?;
        let got = outputs(packed, &feeds, options)?;
        let names = part.signature().outputs.iter().map(|binding| &binding.port.name);
        let compared = names.zip(expected.iter().zip(&got)).map(|(name, (expected, got))| {
            let relative = relative_error(expected, got).map_err(|problem| {
                Error::new(ErrorKind::Numeric, format!("{}: output {name}: {problem}", part.name()))
            })?;
            Ok(OutputError { output: name.clone(), relative })
        });
        errors.push(compared.collect::<Result<_, Error>>()?);
        if let Some(budget_bytes) = options.budget_bytes {
            memory::check_budget(part.name(), budget_bytes)?;
        }
    }
    Ok(errors)
}

/// One run of a component, which is closed again.
fn outputs(part: &Part, feeds: &[Feed], options: &SessionOptions) -> Result<Vec<Vec<f32>>, Error> {
    Ok(outputs_of(part, part.bind()?, &[feeds], options)?.remove(0))
}

/// Of each run, the outputs of a component in some form, which is closed again.
pub(super) fn outputs_of(
    part: &Part,
    bound: BoundGraph,
    runs: &[impl AsRef<[Feed]>],
    options: &SessionOptions,
) -> Result<Vec<Vec<Vec<f32>>>, Error> {
    let names: Vec<&str> = part.signature().outputs.iter().map(|binding| &binding.port.name[..]).collect();
    outputs_of_names(bound, runs, &names, options)
}

/// The same, of the outputs of these names.
pub(super) fn outputs_of_names(
    bound: BoundGraph,
    runs: &[impl AsRef<[Feed]>],
    names: &[&str],
    options: &SessionOptions,
) -> Result<Vec<Vec<Vec<f32>>>, Error> {
    let mut session = Session::open(bound, options)?;
    let mut run = |feeds: &[Feed]| {
        let inputs: Vec<_> = feeds.iter().map(Feed::input).collect();
        let outputs = session.compute(&inputs, names)?;
        Ok(outputs.into_iter().map(|output| output.data).collect())
    };
    runs.iter().map(|feeds| run(feeds.as_ref())).collect()
}

/// `|got - expected| / |expected|`; 0 when both are nothing.
pub(super) fn relative_error(expected: &[f32], got: &[f32]) -> Result<f64, String> {
    if expected.len() != got.len() {
        return Err(format!("expected {} numbers, got {}", expected.len(), got.len()));
    }
    for (whose, values) in [("the source", expected), ("the packed model", got)] {
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(format!("expected finite numbers from {whose}, got {value}"));
        }
    }
    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let (expected, got) = (|| expected.iter().map(|x| f64::from(*x)), got.iter().map(|x| f64::from(*x)));
    let difference = length(&mut expected().zip(got).map(|(expected, got)| got - expected));
    Ok(if difference == 0.0 { 0.0 } else { difference / length(&mut expected()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_is_relative_to_the_source() {
        assert_eq!(relative_error(&[3.0, 4.0], &[3.0, 4.0]), Ok(0.0));
        assert_eq!(relative_error(&[3.0, 4.0], &[3.0, 4.5]), Ok(0.1));
        assert_eq!(relative_error(&[3.0, 4.0], &[0.0, 0.0]), Ok(1.0));
        assert_eq!(relative_error(&[0.0], &[0.0]), Ok(0.0));
        assert_eq!(relative_error(&[0.0], &[1.0]), Ok(f64::INFINITY));
    }

    #[test]
    fn what_is_no_number_has_no_error() {
        assert_eq!(relative_error(&[1.0], &[]).unwrap_err(), "expected 1 numbers, got 0");
        let refusal = relative_error(&[f32::NAN], &[1.0]).unwrap_err();
        assert_eq!(refusal, "expected finite numbers from the source, got NaN");
        let refusal = relative_error(&[1.0], &[f32::INFINITY]).unwrap_err();
        assert_eq!(refusal, "expected finite numbers from the packed model, got inf");
    }
}
