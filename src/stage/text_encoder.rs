//! The text encoder: prompts become the states that the U-Net attends to.

use crate::bundle::Bundle;
use crate::engine::{Session, SessionOptions, TensorRef};
use crate::graph::Dim;
use crate::tokenizer::Tokenizer;
use crate::{Error, ErrorKind};

/// Tokenizer and text encoder of a model.
pub(crate) struct TextEncoder {
    tokenizer: Tokenizer,
    session: Session,
    context: usize,
    width: usize,
}

/// What the U-Net is told about the picture: one block of states per prompt, `[prompts, tokens, width]`.
pub(crate) struct Conditioning {
    pub(crate) states: Vec<f32>,
    pub(crate) shape: [usize; 3],
    /// Per prompt, what of it was too long to be read.
    pub(crate) cut: Vec<Option<String>>,
}

impl TextEncoder {
    pub(crate) fn open(bundle: &Bundle, options: &SessionOptions) -> Result<Self, Error> {
        let manifest = bundle.manifest();
        let graph = bundle.bind("text_encoder", &manifest.components.text_encoder)?;
        let session = Session::open(graph, options)?;
        let width = match session.outputs() {
            [port] => match port.dims[..] {
                [_, _, Dim::Fixed(width)] => width,
                _ => return Err(unfit(format!("output of fixed width, got {port}"))),
            },
            ports => return Err(unfit(format!("one output, got {}", ports.len()))),
        };
        let context = manifest.tokenizer.context;
        let tokenizer =
            Tokenizer::from_bytes(&bundle.tokenizer()?, context, manifest.tokenizer.special_tokens())?;
        Ok(Self { tokenizer, session, context, width })
    }

    /// Encodes prompts in one run. [`ErrorKind::Numeric`] for a state that is not a number.
    pub(crate) fn encode(&mut self, prompts: &[&str]) -> Result<Conditioning, Error> {
        let (mut ids, mut cut) = (Vec::new(), Vec::new());
        for prompt in prompts {
            let encoded = self.tokenizer.encode(prompt)?;
            ids.extend(encoded.ids);
            cut.push(encoded.cut);
        }
        let shape = [prompts.len(), self.context, self.width];
        let mut states = vec![0.0; shape.iter().product()];
        let input = [("input_ids", TensorRef::new(&shape[..2], &ids[..]))];
        self.session.run(&input, &mut [("last_hidden_state", &mut states)])?;
        if let Some(state) = states.iter().find(|state| !state.is_finite()) {
            return Err(Error::new(
                ErrorKind::Numeric,
                format!("text_encoder: expected finite states, got {state}"),
            ));
        }
        Ok(Conditioning { states, shape, cut })
    }
}

fn unfit(expected: String) -> Error {
    Error::new(ErrorKind::Model, format!("text_encoder: expected {expected}"))
}
