//! The text encoders: prompts become the states that the U-Net attends to.

use super::feed::{Feed, constants, runs};
use crate::engine::{Session, SessionOptions};
use crate::graph::{Dim, Port};
use crate::model::{Model, TextEncoderPart};
use crate::signature::{Role, Signature};
use crate::tokenizer::Tokenizer;
use crate::{Error, ErrorKind};

/// The tokenizers and text encoders of a model.
pub(crate) struct TextEncoder {
    encoders: Vec<Encoder>,
}

struct Encoder {
    name: &'static str,
    tokenizer: Tokenizer,
    context: usize,
    session: Session,
    signature: Signature,
    ids: Port,
    /// The name of the output with the states that the U-Net was trained on.
    states: String,
    /// The name of the output with the whole prompt's vector, where this encoder gives the U-Net's.
    pooled: Option<String>,
}

/// What the U-Net is told about the picture, per prompt.
pub(crate) struct Conditioning {
    /// `[prompts, tokens, width]`
    pub(crate) states: Vec<f32>,
    pub(crate) shape: [usize; 3],
    /// `[prompts, width]`, for a U-Net that takes it.
    pub(crate) pooled: Option<Vec<f32>>,
    /// Per prompt, what of it was too long to be read.
    pub(crate) cut: Vec<Option<String>>,
}

impl TextEncoder {
    pub(crate) fn open(model: &Model, options: &SessionOptions) -> Result<Self, Error> {
        let parts = model.text_encoders();
        // A U-Net that takes the whole prompt's vector was trained on the states before the last layer.
        let is_pooled = model.unet().signature().input(Role::Pooled).is_some();
        let encoders = parts.iter().enumerate().map(|(index, part)| {
            Encoder::open(part, is_pooled, is_pooled && index + 1 == parts.len(), options)
        });
        let encoders = encoders.collect::<Result<Vec<_>, Error>>()?;
        let contexts: Vec<usize> = encoders.iter().map(|encoder| encoder.context).collect();
        if contexts.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(Error::new(
                ErrorKind::Model,
                format!("text encoders: expected contexts of one length, got {contexts:?} tokens"),
            ));
        }
        Ok(Self { encoders })
    }

    /// Encodes prompts; an absent one is zeros. [`ErrorKind::Numeric`] for a state that is not a number.
    pub(crate) fn encode(&mut self, prompts: &[Option<&str>]) -> Result<Conditioning, Error> {
        let count = prompts.len();
        let encoded = self.encoders.iter_mut().map(|encoder| encoder.encode(prompts));
        let encoded = encoded.collect::<Result<Vec<Encoded>, Error>>()?;
        let tokens = encoded[0].tokens;
        let width = encoded.iter().map(|one| one.width).sum();
        // Per token, the states of all encoders one after the other.
        let mut states = Vec::with_capacity(count * tokens * width);
        for token in 0..count * tokens {
            for one in &encoded {
                states.extend_from_slice(&one.states[token * one.width..][..one.width]);
            }
        }
        let mut conditioning =
            Conditioning { states, shape: [count, tokens, width], pooled: None, cut: vec![None; count] };
        for one in encoded {
            conditioning.pooled = one.pooled.or(conditioning.pooled);
            conditioning.cut = one.cut;
        }
        Ok(conditioning)
    }
}

struct Encoded {
    tokens: usize,
    width: usize,
    states: Vec<f32>,
    pooled: Option<Vec<f32>>,
    cut: Vec<Option<String>>,
}

impl Encoder {
    fn open(
        part: &TextEncoderPart,
        penultimate: bool,
        pooled: bool,
        options: &SessionOptions,
    ) -> Result<Self, Error> {
        let name = part.name();
        let signature = part.signature().clone();
        let output = |role: Role| {
            signature.output(role).map(|port| port.name.clone()).ok_or_else(|| {
                let got = signature.outputs.iter().map(|binding| binding.role.to_string());
                let got = got.collect::<Vec<_>>().join(", ");
                Error::new(ErrorKind::Model, format!("{name}: expected an output of {role}, got {got}"))
                    .help("export it with all hidden states")
            })
        };
        let states = output(if penultimate { Role::PenultimateStates } else { Role::States })?;
        let pooled = pooled.then(|| output(Role::Pooled)).transpose()?;
        let ids = signature.input(Role::TokenIds).expect("no signature without token ids").clone();
        let context = match ids.dims[1] {
            Dim::Fixed(context) => context,
            Dim::Free(_) => part.context(),
        };
        let tokenizer = part.tokenizer(context)?;
        let session = Session::open(part.bind()?, options)?;
        Ok(Self { name, tokenizer, context, session, signature, ids, states, pooled })
    }

    fn encode(&mut self, prompts: &[Option<&str>]) -> Result<Encoded, Error> {
        let tokens = self.context;
        let (mut ids, mut cut) = (Vec::new(), Vec::new());
        for prompt in prompts {
            let encoded = self.tokenizer.encode(prompt.unwrap_or_default())?;
            ids.push(encoded.ids);
            cut.push(encoded.cut);
        }
        let names: Vec<&str> =
            [Some(&self.states), self.pooled.as_ref()].into_iter().flatten().map(String::as_str).collect();
        let mut states = vec![Vec::new(); prompts.len()];
        let mut pooled = vec![Vec::new(); prompts.len()];
        for members in runs(&self.ids, prompts.len()) {
            let batch = members.len();
            let numbers = members.iter().flat_map(|&member| ids[member].iter().map(|&id| id as f64));
            let mut feeds = constants(&self.signature, batch, tokens)?;
            feeds.push(Feed::of(&self.ids, &[batch, tokens], numbers)?);
            let inputs: Vec<_> = feeds.iter().map(Feed::input).collect();
            let outputs = self.session.compute(&inputs, &names)?;
            for (output, into) in outputs.iter().zip([&mut states, &mut pooled]) {
                let one = output.data.len() / batch;
                for (slot, &member) in members.iter().enumerate() {
                    into[member] = output.data[slot * one..][..one].to_vec();
                }
            }
        }
        let mut states = states.concat();
        let mut pooled = self.pooled.is_some().then(|| pooled.concat());
        for values in [Some(&mut states), pooled.as_mut()].into_iter().flatten() {
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                return Err(Error::new(
                    ErrorKind::Numeric,
                    format!("{}: expected finite states, got {value}", self.name),
                ));
            }
            let one = values.len() / prompts.len();
            for (values, prompt) in values.chunks_exact_mut(one.max(1)).zip(prompts) {
                if prompt.is_none() {
                    values.fill(0.0);
                }
            }
        }
        let width = states.len() / (prompts.len() * tokens);
        if width == 0 || states.len() != prompts.len() * tokens * width {
            return Err(Error::new(
                ErrorKind::Model,
                format!("{}: expected states for {tokens} tokens, got {} numbers", self.name, states.len()),
            ));
        }
        Ok(Encoded { tokens, width, states, pooled, cut })
    }
}
