//! A component of a model: its session, open for as long as its residency says. It knows nothing of what it computes.

use crate::Error;
use crate::engine::{self, Residency, Session, SessionOptions};
use crate::memory;
use crate::model::Part;

/// Segments small enough for any board, which are read again for every call.
const SQUEEZED: Residency = Residency::Streamed { grain_bytes: 16 << 20, resident_bytes: 0 };

/// A part of a model with its session.
pub(crate) struct Component {
    part: Part,
    options: SessionOptions,
    session: Option<Session>,
}

impl Component {
    /// The component of this part, which is opened when it is first needed.
    pub(crate) fn new(part: &Part, options: SessionOptions) -> Self {
        Self { part: part.clone(), options, session: None }
    }

    /// The same, open already if it is to be kept.
    pub(crate) fn open(part: &Part, options: SessionOptions) -> Result<Self, Error> {
        let mut component = Self::new(part, options);
        if options.residency == Residency::Keep {
            component.session()?;
        }
        Ok(component)
    }

    pub(crate) fn part(&self) -> &Part {
        &self.part
    }

    /// How its sessions are opened, those of graphs that were made of its own too.
    pub(crate) fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// Closes its session, so that its weights are not in memory twice.
    pub(crate) fn close(&mut self) {
        self.session = None;
    }

    /// Its session, which is opened if it is not open.
    pub(crate) fn session(&mut self) -> Result<&mut Session, Error> {
        match &mut self.session {
            Some(session) => Ok(session),
            empty => Ok(empty.insert(Session::open(self.part.bind()?, &self.options)?)),
        }
    }

    #[cfg(test)]
    pub(crate) fn is_streamed(&self) -> bool {
        matches!(self.options.residency, Residency::Streamed { .. })
    }

    /// Takes as little memory as it can from now on; whether that is a change.
    pub(crate) fn squeeze(&mut self) -> bool {
        if matches!(self.options.residency, Residency::Streamed { .. }) {
            return false;
        }
        self.options.residency = SQUEEZED;
        self.rest();
        true
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
