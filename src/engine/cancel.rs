//! Cancelling: a flag that ends calls of ONNX Runtime, from any thread. It knows nothing of what they compute.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use super::sys::{Loads, RunOptions};
use crate::{Error, ErrorKind};

/// Cancels what runs in the sessions that were opened with it ([`SessionOptions::cancel`](super::SessionOptions)), from any
/// thread and in the middle of a call; and whatever is begun in them later, until it is [reset](Self::reset).
///
/// The caller of a cancelled call gets its error within tens of milliseconds. ONNX Runtime itself ends a call only after the
/// operator that it is computing, and the opening of a session before its next graph transformation or weight; what takes
/// longer than that is abandoned: it ends on a thread of its own, with everything that it reads. Until then
/// [`abandoned_for`](super::abandoned_for) gives how long that has been; the next call of the same session waits for it, as
/// does every session that is opened or run within a budget, because its memory is still in use. A program that ends
/// meanwhile ends by [`exit`](super::exit), or waits up to ten seconds at its end.
#[derive(Clone, Default)]
pub struct Cancel(Arc<Mutex<Arc<Flag>>>);

/// What a cancel is between two resets: calls keep the one that they were begun with, so that one that was cancelled stays
/// cancelled, however soon others may run again.
#[derive(Default)]
pub(super) struct Flag {
    is_cancelled: AtomicBool,
    /// What running calls look at; made for the first of them, when there is a library.
    options: OnceLock<RunOptions>,
    /// The sessions that are being opened.
    loads: Loads,
    /// Who waits for the end of a call.
    waiting: Mutex<Vec<Weak<dyn Wake>>>,
}

/// One who waits for the end of a call or for its cancellation, whichever is first.
pub(super) trait Wake: Send + Sync {
    /// Has it look at the flag.
    fn wake(&self);
}

impl Cancel {
    /// One that nothing has cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels.
    pub fn cancel(&self) {
        self.flag().cancel();
    }

    /// Lets what is begun from now on run; what was cancelled before stays cancelled.
    pub fn reset(&self) {
        let mut flag = self.lock();
        if flag.is_cancelled() {
            *flag = Arc::default();
        }
    }

    /// Whether it was cancelled, and not reset.
    pub fn is_cancelled(&self) -> bool {
        self.flag().is_cancelled()
    }

    /// [`ErrorKind::Cancelled`] when it was.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.flag().check()
    }

    /// The flag of what is begun now.
    pub(super) fn flag(&self) -> Arc<Flag> {
        Arc::clone(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Flag>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flag {
    pub(super) fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::SeqCst)
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        match self.is_cancelled() {
            true => Err(Error::new(ErrorKind::Cancelled, "stopped")),
            false => Ok(()),
        }
    }

    fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::SeqCst);
        if let Some(options) = self.options.get() {
            options.terminate();
        }
        self.loads.cancel();
        let waiting = self.waiting().clone();
        waiting.iter().filter_map(Weak::upgrade).for_each(|waiting| waiting.wake());
    }

    /// Wakes this one when it is cancelled, until [`Flag::forget`].
    pub(super) fn wake_at_cancel(&self, waiting: Weak<dyn Wake>) {
        self.waiting().push(waiting);
    }

    pub(super) fn forget(&self, waiting: &Weak<dyn Wake>) {
        let mut all = self.waiting();
        if let Some(place) = all.iter().position(|one| one.ptr_eq(waiting)) {
            all.swap_remove(place);
        }
    }

    /// Opens sessions that are cancelled with it; [`ErrorKind::Cancelled`] where it was cancelled before or meanwhile.
    pub(super) fn watch_loads<T>(&self, open: impl FnOnce(&Loads) -> Result<T, Error>) -> Result<T, Error> {
        self.check()?;
        open(&self.loads).map_err(|error| self.check().err().unwrap_or(error))
    }

    /// Makes a call that looks at these options; [`ErrorKind::Cancelled`] where it was cancelled before or meanwhile.
    pub(super) fn watch<T>(&self, call: impl FnOnce(&RunOptions) -> Result<T, Error>) -> Result<T, Error> {
        let options = match self.options.get() {
            Some(options) => options,
            None => {
                let made = RunOptions::new()?;
                self.options.get_or_init(|| made)
            }
        };
        // Only now: whoever cancels later finds the options.
        self.check()?;
        call(options).map_err(|error| self.check().err().unwrap_or(error))
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Weak<dyn Wake>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cancel").field(&self.is_cancelled()).finish()
    }
}
