//! Cancelling: a flag that ends calls of ONNX Runtime, from any thread. It knows nothing of what they compute.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::sys::{Loads, RunOptions};
use crate::{Error, ErrorKind};

/// Cancels what runs in the sessions that were opened with it ([`SessionOptions::cancel`](super::SessionOptions)), from any
/// thread and in the middle of a call; and whatever is begun in them later, until it is [reset](Self::reset).
///
/// A call ends after the operator that it is computing, and the opening of a session before its next graph transformation or
/// weight.
#[derive(Clone, Default)]
pub struct Cancel(Arc<Inner>);

#[derive(Default)]
struct Inner {
    is_cancelled: AtomicBool,
    /// What running calls look at; made for the first of them, when there is a library.
    options: OnceLock<RunOptions>,
    /// The sessions that are being opened.
    loads: Loads,
}

impl Cancel {
    /// One that nothing has cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels.
    pub fn cancel(&self) {
        self.set(true);
    }

    /// Lets what is begun from now on run.
    pub fn reset(&self) {
        self.set(false);
    }

    /// Whether it was cancelled, and not reset.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled.load(Ordering::SeqCst)
    }

    /// [`ErrorKind::Cancelled`] when it was.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self.is_cancelled() {
            true => Err(Error::new(ErrorKind::Cancelled, "stopped")),
            false => Ok(()),
        }
    }

    fn set(&self, is_cancelled: bool) {
        self.0.is_cancelled.store(is_cancelled, Ordering::SeqCst);
        if let Some(options) = self.0.options.get() {
            options.set_terminate(is_cancelled);
        }
        self.0.loads.set_cancelled(is_cancelled);
    }

    /// Opens sessions that are cancelled with it; [`ErrorKind::Cancelled`] where it was cancelled before or meanwhile.
    pub(super) fn watch_loads<T>(&self, open: impl FnOnce(&Loads) -> Result<T, Error>) -> Result<T, Error> {
        self.check()?;
        open(&self.0.loads).map_err(|error| self.check().err().unwrap_or(error))
    }

    /// Makes a call that looks at these options; [`ErrorKind::Cancelled`] where it was cancelled before or meanwhile.
    pub(super) fn watch<T>(&self, call: impl FnOnce(&RunOptions) -> Result<T, Error>) -> Result<T, Error> {
        let options = match self.0.options.get() {
            Some(options) => options,
            None => {
                let made = RunOptions::new()?;
                self.0.options.get_or_init(|| made)
            }
        };
        // Only now: whoever cancels later finds the options.
        self.check()?;
        call(options).map_err(|error| self.check().err().unwrap_or(error))
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cancel").field(&self.is_cancelled()).finish()
    }
}
