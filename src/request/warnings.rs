//! What of a request its model does not do as asked: words that it does not know or was not trained on, and timesteps that
//! it rounds. It knows nothing of how that is shown.

use super::Request;
use crate::Error;
use crate::error::named;
use crate::model::{Model, TextEncoderPart};
use crate::prompt::Text;
use crate::signature::Role;
use crate::tokenizer::Tokenizer;
use crate::weights::Dtype;

/// What a prompt and a negative prompt are called.
const PROMPTS: [&str; 2] = ["prompt", "negative prompt"];

/// What of a request a model does not do as asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Warnings {
    /// The words of the prompt and of the negative prompt that a text encoder of the model does not know, each once: all of
    /// them are the same to it.
    pub unknown_words: [Vec<String>; 2],
    /// The other words of both, each once, that were in no caption which the model was trained on: what it generates for
    /// them is arbitrary, or what it generates for a related word. Empty for models that do not list their words.
    pub untrained_words: [Vec<String>; 2],
    /// How many steps have a fractional timestep, where the U-Net takes integers only, as that of many ONNX folders does:
    /// they are rounded to the nearest. Methods of two evaluations also ask between steps.
    pub rounded_timesteps: usize,
    /// Steps in all.
    steps: usize,
}

impl Request {
    /// What this model, for which the request was made, does not do as asked. What is wrong with the files of images is
    /// known once they are [loaded](Request::load), and where a prompt is truncated once it is encoded:
    /// [`Output::warnings`](crate::pipeline::Output::warnings).
    ///
    /// # Errors
    /// [`ErrorKind::Model`](crate::ErrorKind::Model) for a tokenizer that is damaged, or cannot encode the prompt.
    pub fn warnings(&self, model: &Model) -> Result<Warnings, Error> {
        let lacking = model.text_encoders().iter().filter(|encoder| encoder.may_lack_words());
        let unknown_words = self.words(lacking, Tokenizer::unknown_words)?;
        let trained = &model.manifest().trained_words;
        let encoders = model.text_encoders().iter().filter(|_| !trained.is_empty());
        let mut untrained_words =
            self.words(encoders, |tokenizer, text| tokenizer.words_beside(text, trained))?;
        for (untrained, unknown) in untrained_words.iter_mut().zip(&unknown_words) {
            untrained.retain(|word| !unknown.contains(word));
        }
        let rounded_timesteps = self.rounded_timesteps(model);
        Ok(Warnings { unknown_words, untrained_words, rounded_timesteps, steps: self.steps() })
    }

    /// The words of both prompts that `of` finds in a text, each once.
    fn words<'a>(
        &self,
        encoders: impl Iterator<Item = &'a TextEncoderPart>,
        of: impl Fn(&Tokenizer, &Text) -> Result<Vec<String>, Error>,
    ) -> Result<[Vec<String>; 2], Error> {
        let mut words = [Vec::new(), Vec::new()];
        for encoder in encoders {
            let tokenizer = encoder.tokenizer(encoder.context())?;
            for (read, words) in [Some(&self.prompt), self.negative.as_ref()].into_iter().zip(&mut words) {
                for text in read.iter().flat_map(|read| &read.parts).flat_map(|part| &part.texts) {
                    for word in of(&tokenizer, text)? {
                        if !words.contains(&word) {
                            words.push(word);
                        }
                    }
                }
            }
        }
        Ok(words)
    }

    fn rounded_timesteps(&self, model: &Model) -> usize {
        let timestep = model.unet().signature().input(Role::Timestep);
        if !timestep.is_some_and(|port| matches!(port.dtype, Dtype::I64 | Dtype::I32)) {
            return 0;
        }
        self.schedule.steps().iter().filter(|step| step.timestep.fract() != 0.0).count()
    }
}

impl Warnings {
    /// Each as a line, with a face's own names for settings.
    pub fn lines(&self, name: impl Fn(&str) -> String) -> Vec<String> {
        let mut lines = Vec::new();
        if self.rounded_timesteps > 0 {
            let way_out =
                named("{sampler} ddim, or {schedule} trailing or simple, has integer timesteps", &name);
            lines.push(format!(
                "timesteps: {} of {} are fractions and are rounded, because this model's U-Net takes integers only; {way_out}",
                self.rounded_timesteps, self.steps
            ));
        }
        for (words, what) in [
            (&self.unknown_words, "words that this model does not know"),
            (&self.untrained_words, "words that this model was not trained on"),
        ] {
            for (which, words) in PROMPTS.into_iter().zip(words).filter(|(_, words)| !words.is_empty()) {
                let words = words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", ");
                lines.push(format!("{which}: {what}: {words}"));
            }
        }
        lines
    }
}
