//! A component of a model: its sessions, open for as long as its residency says, and tried once where another provider than
//! the processor runs them. It knows nothing of what it computes.

use super::trial::Trial;
use crate::Error;
use crate::engine::{self, Placement, Residency, Session, SessionOptions};
use crate::graph::Graph;
use crate::memory;
use crate::model::{Model, Part};

/// Segments small enough for any board, which are read again for every call.
const SQUEEZED: Residency = Residency::Streamed { grain_bytes: 16 << 20, resident_bytes: 0 };

/// A part of a model with its session.
pub(crate) struct Component {
    part: Part,
    options: SessionOptions,
    session: Option<Session>,
    /// Where the first of its sessions ran: the others do, too.
    placement: Option<Placement>,
    /// The trial that it is yet to pass.
    trial: Option<Trial>,
}

impl Component {
    /// The component of this part, which is opened when it is first needed.
    pub(crate) fn new(model: &Model, part: &Part, options: SessionOptions) -> Self {
        let trial = Trial::of(model, part, &options);
        let options = options.for_component(part.name());
        Self { part: part.clone(), options, session: None, placement: None, trial }
    }

    /// The same, open already if it is to be kept.
    pub(crate) fn open(model: &Model, part: &Part, options: SessionOptions) -> Result<Self, Error> {
        let mut component = Self::new(model, part, options);
        if component.options.residency == Residency::Keep {
            component.session()?;
        }
        Ok(component)
    }

    pub(crate) fn part(&self) -> &Part {
        &self.part
    }

    /// Where it runs, once it was needed.
    pub(crate) fn placement(&self) -> Option<&Placement> {
        self.placement.as_ref()
    }

    /// Closes its session, so that its weights are not in memory twice.
    pub(crate) fn close(&mut self) {
        self.session = None;
    }

    /// Its session, which is opened if it is not open, and tried if none was before.
    pub(crate) fn session(&mut self) -> Result<&mut Session, Error> {
        match &mut self.session {
            Some(session) => Ok(session),
            empty => {
                let mut session = Session::open(self.part.bind()?, &self.options)?;
                if let Some(trial) = &self.trial {
                    trial.hold(&mut session, &self.part, &self.options)?;
                    // A trial that is not passed is held again.
                    self.trial = None;
                }
                self.placement.get_or_insert_with(|| session.placement().clone());
                Ok(empty.insert(session))
            }
        }
    }

    /// Whether its weights are read from the disk as they are needed.
    pub(crate) fn is_streamed(&self) -> bool {
        matches!(self.options.residency, Residency::Streamed { .. })
    }

    /// Takes as little of the processor's memory as it can from now on; whether that is a change. Devices keep what they
    /// have.
    pub(crate) fn squeeze(&mut self) -> bool {
        if self.is_streamed() || !self.options.providers.is_cpu(self.part.name()) {
            return false;
        }
        self.options.residency = SQUEEZED;
        self.rest();
        true
    }

    /// A session of a graph that was made of its own, which is not tried.
    pub(crate) fn session_of(&mut self, graph: &Graph) -> Result<Session, Error> {
        let session = Session::open(self.part.bind_graph(graph.clone())?, &self.options)?;
        self.placement.get_or_insert_with(|| session.placement().clone());
        Ok(session)
    }

    /// Gives its memory back at the end of its stage, unless it is to be kept.
    pub(crate) fn rest(&mut self) {
        if self.options.residency != Residency::Keep {
            self.close();
            self.part.weights().release_all();
            engine::trim();
            tracing::debug!(stage = self.part.name(), resident_bytes = memory::resident_bytes(), "rests");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    #[test]
    fn what_others_than_the_processor_run_is_tried_once_and_kept_for_good() {
        let model = Model::built_in().unwrap();
        // No library that this is tested with has it, so that the processor runs what is behind it.
        let providers = "unet=qnn,unet=cpu".parse().unwrap();
        let options = SessionOptions {
            providers,
            residency: Residency::PerStage,
            pool_bytes: Some(1 << 20),
            ..SessionOptions::new(NonZeroUsize::MIN)
        };
        let mut unet = Component::new(&model, model.unet(), options.clone());
        assert_eq!((unet.options.residency, unet.options.pool_bytes), (Residency::Keep, None));
        assert!(unet.trial.is_some());
        unet.session().unwrap();
        unet.rest();
        assert!(unet.session.is_some() && unet.trial.is_none());
        assert!(!unet.squeeze() && unet.session.is_some());
        unet.close();
        unet.session().unwrap();

        let mut decoder = Component::open(&model, model.vae_decoder(), options).unwrap();
        assert_eq!(
            (decoder.options.residency, decoder.options.pool_bytes),
            (Residency::PerStage, Some(1 << 20))
        );
        assert!(decoder.trial.is_none() && decoder.session.is_none() && decoder.placement().is_none());
        decoder.session().unwrap();
        decoder.rest();
        assert!(decoder.squeeze() && !decoder.squeeze() && decoder.is_streamed());
        assert!(decoder.session.is_none() && decoder.placement().unwrap().is_cpu());
    }
}
