//! What texts become: the states that the U-Net attends to. It knows nothing of what makes them.

use crate::tokenizer::Cut;
use crate::{Error, ErrorKind};

/// What a text becomes. Those of one model have one width.
#[derive(Clone, Debug)]
pub struct TextStates {
    /// `[tokens, width]`: the states of all chunks one after the other, weighted, per token those of all encoders.
    pub states: Vec<f32>,
    /// How many tokens that are, special tokens and padding included.
    pub tokens: usize,
    /// The first chunk's vector, for a U-Net that takes it.
    pub pooled: Option<Vec<f32>>,
    /// What of the text was not read.
    pub cut: Option<Cut>,
}

impl TextStates {
    /// Per token, the states of another encoder behind these.
    pub(crate) fn join(&mut self, other: Self) -> Result<(), Error> {
        if self.tokens != other.tokens {
            return Err(Error::new(
                ErrorKind::Model,
                format!(
                    "text encoders: expected the same number of tokens for a text, got {} and {}",
                    self.tokens, other.tokens
                ),
            ));
        }
        let width = |one: &Self| one.states.len() / one.tokens;
        let rows = self.states.chunks_exact(width(self)).zip(other.states.chunks_exact(width(&other)));
        self.states = rows.flat_map(|(one, other)| one.iter().chain(other)).copied().collect();
        self.pooled = other.pooled.or(self.pooled.take());
        self.cut = other.cut;
        Ok(())
    }
}
