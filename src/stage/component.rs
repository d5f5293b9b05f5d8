//! A component of a model: its sessions, open for as long as its residency says, the first of which passes the trial that it is
//! given, and its form in 32-bit floats. It knows nothing of what it computes, nor of what trials are.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Weak};

use crate::engine::{self, Placement, Precision, Residency, Session, SessionOptions};
use crate::graph::Graph;
use crate::memory;
use crate::model::Part;
use crate::recipe::Retry;
use crate::state::Record;
use crate::tile::Tile;
use crate::{Error, ErrorKind};

/// What the first session of a component must pass before it is used: an error says why it did not.
pub(crate) type Trial = Box<dyn Fn(&mut Session, &Part, &SessionOptions) -> Result<(), Error> + Send>;

/// How a component is run that computes in 32-bit floats instead, on the CPU: how its sessions are opened, and its tiles.
/// An error says why it cannot be.
pub(crate) type Precise = dyn Fn(&Part) -> Result<(SessionOptions, Option<Tile>), Error> + Send + Sync;

/// A part of a model with its session.
pub(crate) struct Component {
    part: Part,
    /// As planned.
    options: SessionOptions,
    /// Whether it takes less memory than planned, until [`Component::use_plan`].
    is_reduced: bool,
    session: Option<Session>,
    /// Where the first of its sessions ran: the others do, too.
    placement: Option<Placement>,
    /// The trial that it is yet to pass.
    trial: Option<Trial>,
    /// How it may be run in 32-bit floats; not at all where it is absent. It has the request with its images, so the run owns it.
    precise: Option<Weak<Precise>>,
    raised: Option<Raised>,
}

/// What a component was planned as that is computed in 32-bit floats instead.
struct Raised {
    part: Part,
    options: SessionOptions,
    /// From which step on, for one that is called in each.
    step: Option<usize>,
}

impl Component {
    /// The component of this part, which is opened when it is first needed.
    pub(crate) fn new(part: &Part, options: SessionOptions, trial: Option<Trial>) -> Self {
        let options = options.for_component(part.name());
        Self {
            part: part.clone(),
            options,
            is_reduced: false,
            session: None,
            placement: None,
            trial,
            precise: None,
            raised: None,
        }
    }

    /// The same, open already if it is to be kept.
    pub(crate) fn open(part: &Part, options: SessionOptions, trial: Option<Trial>) -> Result<Self, Error> {
        let mut component = Self::new(part, options, trial);
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

    #[cfg(test)]
    #[cfg(feature = "builtin")]
    pub(crate) fn is_open(&self) -> bool {
        self.session.is_some()
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
                let options = effective(&self.options, self.is_reduced);
                let mut session = Session::open(self.part.bind()?, &options)?;
                if let Some(trial) = &self.trial {
                    trial(&mut session, &self.part, &options)?;
                    // A trial that is not passed is held again.
                    self.trial = None;
                }
                if !session.placement().is_cpu() {
                    // The device has its own.
                    self.part.weights().release_all();
                }
                self.placement.get_or_insert_with(|| session.placement().clone());
                Ok(empty.insert(session))
            }
        }
    }

    /// Whether its weights are read from the disk as they are needed.
    pub(crate) fn is_streamed(&self) -> bool {
        self.is_reduced || matches!(self.options.residency, Residency::Streamed { .. })
    }

    /// Takes as little CPU memory as possible until [`Component::use_plan`]; tells whether that is a change. Devices keep
    /// what they have.
    pub(crate) fn reduce_memory(&mut self) -> bool {
        if self.is_reduced
            || self.options.residency == Residency::LEAST
            || !self.options.providers.is_cpu(self.part.name())
        {
            return false;
        }
        self.is_reduced = true;
        self.release();
        true
    }

    /// Ends reduced memory and higher precision: the next session is opened as planned. `precise` says how the component may be
    /// run in 32-bit floats for as long as somebody keeps it.
    pub(crate) fn use_plan(&mut self, precise: Option<&Arc<Precise>>) {
        self.precise = precise.map(Arc::downgrade);
        let raised = self.raised.take();
        if std::mem::take(&mut self.is_reduced) || raised.is_some() {
            self.close();
        }
        if let Some(Raised { part, options, .. }) = raised {
            (self.part, self.options) = (part, options);
        }
    }

    /// After a call whose numbers are not finite, which `error` says: has the component compute in 32-bit floats on the CPU until
    /// [`Component::use_plan`], and gives the size of its tiles. Where it does already, or cannot, the same error, with what can
    /// be done.
    pub(crate) fn raise_precision(
        &mut self,
        error: Error,
        step: Option<usize>,
    ) -> Result<Option<Tile>, Error> {
        let Some(precise) = self.precise.as_ref().and_then(Weak::upgrade) else { return Err(error) };
        if self.raised.is_some() {
            return Err(error.help(IN_VAIN));
        }
        let wide = match self.part.in_f32() {
            Ok(wide) => wide,
            Err(problem) => return Err(error.help(format!("{UNTRIED}: {problem}"))),
        };
        let is_coarse = |placement: &Placement| !placement.is_cpu() && placement.precision != Precision::Full;
        let wide = match wide {
            Some(wide) => wide,
            None if self.placement.as_ref().is_some_and(is_coarse) => self.part.clone(),
            None => return Err(error.help(ALREADY_WIDE)),
        };
        let (options, tile) = match precise(&wide) {
            Ok(how) => how,
            Err(problem) => return Err(error.help(format!("{UNTRIED}: {problem}"))),
        };
        tracing::warn!(%error, "computed again in 32-bit floats");
        self.close();
        let options = options.for_component(wide.name());
        let part = std::mem::replace(&mut self.part, wide);
        let options = std::mem::replace(&mut self.options, options);
        self.raised = Some(Raised { part, options, step });
        Ok(tile)
    }

    /// Calls its session in a step, the first being 0, and in higher precision where it gives a number that is not finite, which the
    /// call tells.
    pub(crate) fn run_finite(
        &mut self,
        step: usize,
        mut call: impl FnMut(&mut Session) -> Result<Option<f32>, Error>,
    ) -> Result<(), Error> {
        let name = self.part.name();
        let number = step + 1;
        let not_finite = |value: f32| {
            Error::new(
                ErrorKind::Numeric,
                format!("{name}: expected finite numbers in step {number}, got {value}"),
            )
        };
        while let Some(value) = self.run(&mut call)? {
            // The second time it is an error.
            self.raise_precision(not_finite(value), Some(number))?;
        }
        Ok(())
    }

    /// What is said of it if it is computed in higher precision than planned.
    pub(crate) fn retry(&self) -> Option<Retry> {
        let raised = self.raised.as_ref()?;
        Some(Retry { component: self.part.name().into(), step: raised.step, precision: "f32".into() })
    }

    /// Lists what is carried from step to step: since which step, of so many, it has been computed in higher precision.
    pub(crate) fn state(&mut self, record: &mut Record, steps: usize) -> Result<(), Error> {
        let mut step = self.raised.as_ref().and_then(|raised| raised.step).unwrap_or(0);
        record.count(&mut step, steps)?;
        if step > 0 && self.raised.is_none() {
            let name = self.part.name();
            let problem =
                format!("{name}: expected finite numbers in step {step} before it was saved, got others");
            self.raise_precision(Error::new(ErrorKind::Numeric, problem), Some(step))?;
        }
        Ok(())
    }

    /// Calls its session, a second time with reduced memory where there was not enough.
    pub(crate) fn run<T>(
        &mut self,
        mut call: impl FnMut(&mut Session) -> Result<T, Error>,
    ) -> Result<T, Error> {
        match self.session().and_then(&mut call) {
            Err(error) if error.kind() == ErrorKind::Memory && self.reduce_memory() => {
                tracing::warn!(%error, "low memory: weights are streamed from disk from now on");
                self.session().and_then(call)
            }
            result => result,
        }
    }

    /// The component for as long as its stage runs.
    pub(crate) fn lease(&mut self) -> Lease<'_> {
        Lease(self)
    }

    /// A session of a graph that was made of its own, which is not tried.
    pub(crate) fn session_of(&mut self, graph: &Graph) -> Result<Session, Error> {
        let options = effective(&self.options, self.is_reduced);
        let session = Session::open(self.part.bind_graph(graph.clone())?, &options)?;
        self.placement.get_or_insert_with(|| session.placement().clone());
        Ok(session)
    }

    /// Gives its memory back at the end of its stage, unless it is to be kept.
    fn release(&mut self) {
        if self.is_reduced || self.options.residency != Residency::Keep {
            self.close();
            self.release_pages();
            tracing::debug!(stage = self.part.name(), resident_bytes = memory::resident_bytes(), "released");
        }
    }

    /// Gives back what costs little to have again: pages of its files, and what was computed in before.
    pub(crate) fn release_pages(&self) {
        self.part.weights().release_all();
        engine::trim();
    }
}

/// What to do about numbers that are not finite.
const ALREADY_WIDE: &str = "it computes in 32-bit floats or integers already: guidance, weights of words and LoRA strengths may be too \
                            large, or the model's file damaged";
const IN_VAIN: &str =
    "32-bit floats were tried after less precise ones, too: the model's file may be damaged";
/// Why nothing was done.
const UNTRIED: &str = "32-bit floats were not tried";

/// How sessions are opened: as planned, or with as little memory as can be.
fn effective(options: &SessionOptions, is_reduced: bool) -> SessionOptions {
    let residency = if is_reduced { Residency::LEAST } else { options.residency };
    SessionOptions { residency, ..options.clone() }
}

/// A component while its stage runs. When the stage ends, however it does, the component gives its memory back, unless it is
/// to be kept.
pub(crate) struct Lease<'a>(&'a mut Component);

impl Deref for Lease<'_> {
    type Target = Component;

    fn deref(&self) -> &Component {
        self.0
    }
}

impl DerefMut for Lease<'_> {
    fn deref_mut(&mut self) -> &mut Component {
        self.0
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

#[cfg(test)]
#[cfg(feature = "builtin")]
mod tests {
    use std::num::NonZeroUsize;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::model::Model;

    #[test]
    fn what_other_providers_than_the_cpu_run_is_tried_once_and_kept_for_good() {
        let model = Model::built_in().unwrap();
        // No library that this is tested with has it, so that the CPU runs what is behind it.
        let providers = "unet=qnn,unet=cpu".parse().unwrap();
        let options = SessionOptions {
            providers,
            residency: Residency::PerStage,
            pool_bytes: Some(1 << 20),
            ..SessionOptions::new(NonZeroUsize::MIN)
        };
        let held = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&held);
        let trial: Trial = Box::new(move |session, part, _| {
            assert_eq!((session.inputs().len(), part.name()), (3, "unet"));
            match counted.fetch_add(1, Ordering::Relaxed) {
                0 => Err(Error::new(ErrorKind::Numeric, "the first time")),
                _ => Ok(()),
            }
        });
        let mut unet = Component::new(model.unet(), options.clone(), Some(trial));
        assert_eq!((unet.options.residency, unet.options.pool_bytes), (Residency::Keep, None));
        // One that is not passed is held again.
        assert_eq!(unet.session().map(|_| ()).unwrap_err().kind(), ErrorKind::Numeric);
        assert!(unet.session.is_none());
        unet.session().unwrap();
        drop(unet.lease());
        assert!(unet.session.is_some());
        assert!(!unet.reduce_memory() && unet.session.is_some());
        unet.close();
        unet.session().unwrap();
        assert_eq!(held.load(Ordering::Relaxed), 2);

        let mut decoder = Component::open(model.vae_decoder(), options, None).unwrap();
        assert_eq!(
            (decoder.options.residency, decoder.options.pool_bytes),
            (Residency::PerStage, Some(1 << 20))
        );
        assert!(decoder.session.is_none() && decoder.placement().is_none());
        decoder.session().unwrap();
        drop(decoder.lease());
        assert!(decoder.session.is_none());
        assert!(decoder.reduce_memory() && !decoder.reduce_memory() && decoder.is_streamed());
        assert!(decoder.session.is_none() && decoder.placement().unwrap().is_cpu());
        decoder.use_plan(None);
        assert!(!decoder.is_streamed() && decoder.options.residency == Residency::PerStage);
    }

    /// A call that finds too little memory is made again with reduced memory, once; other errors are passed on.
    #[test]
    fn too_little_memory_is_tried_with_less() {
        let model = Model::built_in().unwrap();
        let options = SessionOptions::new(NonZeroUsize::MIN);
        let mut decoder = Component::new(model.vae_decoder(), options, None);
        let mut calls = Vec::new();
        let mut fail = |kind: ErrorKind, times: usize| {
            let mut left = times;
            decoder.use_plan(None);
            let result = decoder.run(|_| {
                calls.push(kind);
                if left == 0 {
                    return Ok(());
                }
                left -= 1;
                Err(Error::new(kind, "a call"))
            });
            (result.map_err(|error| error.kind()), decoder.is_streamed(), std::mem::take(&mut calls).len())
        };
        assert_eq!(fail(ErrorKind::Memory, 0), (Ok(()), false, 1));
        assert_eq!(fail(ErrorKind::Memory, 1), (Ok(()), true, 2));
        assert_eq!(fail(ErrorKind::Memory, 2), (Err(ErrorKind::Memory), true, 2));
        assert_eq!(fail(ErrorKind::Model, 1), (Err(ErrorKind::Model), false, 1));
    }
}
