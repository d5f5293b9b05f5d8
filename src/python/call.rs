//! Calls that compute: one at a time, without Python's lock, and ended by a signal. It knows nothing of what is computed.

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;

use crate::binding::{Binding, usage};
use crate::engine::Cancel;
use crate::error::{Error as Problem, ErrorKind};

/// How long a signal may wait before Python's handler is called.
const SIGNAL_WAIT: Duration = Duration::from_millis(20);

/// What the objects of a pipeline share.
pub(super) struct Shared {
    cancel: Cancel,
    /// Whether a call draws whole images, and has the pipeline between its steps, too.
    is_drawing: AtomicBool,
    state: Mutex<State>,
}

/// What one call has at a time.
pub(super) struct State {
    pub(super) binding: Binding,
    /// How many runs were begun; the last of them is the one there is.
    pub(super) runs: u64,
    /// A panic left it half done.
    is_broken: bool,
}

/// That a call draws whole images, until it is dropped.
pub(super) struct Drawing<'a>(&'a AtomicBool);

impl Drop for Drawing<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

impl Shared {
    pub(super) fn new(binding: Binding) -> Self {
        let state = State { binding, runs: 0, is_broken: false };
        let cancel = state.binding.cancel();
        Self { cancel, is_drawing: AtomicBool::new(false), state: Mutex::new(state) }
    }

    /// Cancels the call that computes, from any thread; nothing where none does.
    pub(super) fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Has the pipeline for as long as whole images are drawn.
    pub(super) fn draw(&self) -> Result<Drawing<'_>, Problem> {
        match self.is_drawing.swap(true, Ordering::SeqCst) {
            true => Err(in_use()),
            false => Ok(Drawing(&self.is_drawing)),
        }
    }

    /// Refuses what would end the run of a call that draws.
    pub(super) fn expect_idle(&self) -> Result<(), Problem> {
        match self.is_drawing.load(Ordering::SeqCst) {
            true => Err(in_use()),
            false => Ok(()),
        }
    }

    /// Computes on another thread, while this one waits for signals: an exception of Python's handler cancels what is computed, and is
    /// raised when that has ended.
    pub(super) fn call<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut State) -> Result<T, Problem> + Send,
    ) -> PyResult<T> {
        py.detach(|| {
            let mut guard = match self.state.try_lock() {
                Ok(guard) => guard,
                Err(TryLockError::WouldBlock) => return Err(in_use().into()),
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            };
            let state = &mut *guard;
            if state.is_broken {
                let problem = "pipeline: expected one without internal errors, got one that had one";
                return Err(Problem::new(ErrorKind::Internal, problem).help("open another").into());
            }
            // What was cancelled before has ended.
            self.cancel.reset();
            let result = interruptible(&self.cancel, || work(state));
            guard.is_broken = matches!(result, Err(Ended::Panic(_)));
            result.map_err(Ended::into)
        })
    }

    /// Ends a run that nobody has any more, if it is the one there is and no call computes.
    pub(super) fn forget(&self, run: u64) {
        let state = match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::WouldBlock) => None,
            Err(TryLockError::Poisoned(poisoned)) => Some(PoisonError::into_inner(poisoned)),
        };
        if let Some(mut state) = state.filter(|state| state.runs == run && !state.is_broken) {
            state.binding.end();
        }
    }
}

/// Why there is no result.
enum Ended {
    Problem(Problem),
    Signal(PyErr),
    Panic(Box<dyn Any + Send>),
}

impl From<Ended> for PyErr {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Problem(problem) => problem.into(),
            Ended::Signal(error) => error,
            Ended::Panic(panic) => {
                let text = panic.downcast_ref::<&str>().copied();
                let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
                let message = format!("internal error (a bug in calotype): {}", text.unwrap_or("a panic"));
                Problem::new(ErrorKind::Internal, message).into()
            }
        }
    }
}

/// Without Python's lock, which is taken for a moment now and then.
fn interruptible<T: Send>(
    cancel: &Cancel,
    work: impl FnOnce() -> Result<T, Problem> + Send,
) -> Result<T, Ended> {
    let (working, is_done) = channel::<()>();
    thread::scope(|scope| {
        let worker = scope.spawn(move || {
            // Dropped at the end, however that comes.
            let _working = working;
            work()
        });
        let mut signal = None;
        while let Err(RecvTimeoutError::Timeout) = is_done.recv_timeout(SIGNAL_WAIT) {
            if signal.is_none()
                && let Err(error) = Python::attach(|py| py.check_signals())
            {
                signal = Some(error);
                cancel.cancel();
            }
        }
        match (worker.join(), signal) {
            (Err(panic), _) => Err(Ended::Panic(panic)),
            (_, Some(signal)) => Err(Ended::Signal(signal)),
            (Ok(result), None) => result.map_err(Ended::Problem),
        }
    })
}

fn in_use() -> Problem {
    usage("pipeline: expected one call at a time, got a second one, from another thread or from a callback")
}
