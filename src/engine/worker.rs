//! The thread that a session lives on. Where a call is cancelled and does not end soon, its caller abandons it: the thread ends
//! it, with everything that it reads, and it is counted until then. It knows nothing of what is called.

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::cancel::{Flag, Wake};
use super::{sys, threads, trim};
use crate::{Error, ErrorKind};

/// What the stack of a session's thread takes of the address space; kernels need some hundred KiB.
pub(crate) const STACK_BYTES: usize = 2 << 20;
/// How long a cancelled call is waited for. Most operators take less, and leave nothing behind.
const GRACE: Duration = Duration::from_millis(30);
/// How often those who wait for abandoned calls look whether they are cancelled themselves.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long the end of the process waits for abandoned calls: those of a device that hangs never end.
const MAX_EXIT_WAIT: Duration = Duration::from_secs(10);

/// A thread with an `S`, which is made, called and dropped there.
pub(super) struct Worker<S> {
    shared: Arc<Shared<S>>,
    thread: Option<JoinHandle<()>>,
}

/// What a [`Worker`] and its thread have in common.
struct Shared<S> {
    state: Mutex<State<S>>,
    changed: Condvar,
}

type Call<S> = Box<dyn FnOnce(&mut Option<S>) + Send>;

struct State<S> {
    /// The call to begin.
    next: Option<Call<S>>,
    /// Whether a call is to begin or runs.
    is_busy: bool,
    /// Whether nobody waits for the end of the call.
    is_abandoned: bool,
    /// Whether no further call comes.
    is_closed: bool,
}

impl<S: 'static> Worker<S> {
    /// Starts a thread, on which `make` makes what it calls and what the caller is to know of that.
    ///
    /// # Errors
    /// Those of `make`; [`ErrorKind::Cancelled`] as soon as it is cancelled; [`ErrorKind::Runtime`] or [`ErrorKind::Memory`]
    /// where the system gives no thread.
    pub(super) fn start<D: Send + 'static>(
        flag: &Flag,
        make: impl FnOnce() -> Result<(D, S), Error> + Send + 'static,
    ) -> Result<(D, Self), Error> {
        let state = State { next: None, is_busy: false, is_abandoned: false, is_closed: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let own = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("calotype-session".into())
            .stack_size(STACK_BYTES)
            .spawn(move || own.run())
            .map_err(threads::refusal_of_one)?;
        let mut worker = Self { shared, thread: Some(thread) };
        let described = worker.call_on(flag, |made| {
            let (described, value) = make()?;
            *made = Some(value);
            Ok(described)
        })??;
        Ok((described, worker))
    }

    /// Makes a call on the thread, after an abandoned one has ended.
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`] where it is cancelled and has not ended soon after.
    pub(super) fn call<R: Send + 'static>(
        &mut self,
        flag: &Flag,
        call: impl FnOnce(&mut S) -> R + Send + 'static,
    ) -> Result<R, Error> {
        self.call_on(flag, |made| call(made.as_mut().expect("made by the first call")))
    }

    fn call_on<R: Send + 'static>(
        &mut self,
        flag: &Flag,
        call: impl FnOnce(&mut Option<S>) -> R + Send + 'static,
    ) -> Result<R, Error> {
        let waiting: Arc<dyn Wake> = Arc::clone(&self.shared) as _;
        let waiting = Arc::downgrade(&waiting);
        flag.wake_at_cancel(Weak::clone(&waiting));
        let result = self.wait_for(flag, call);
        flag.forget(&waiting);
        result
    }

    fn wait_for<R: Send + 'static>(
        &mut self,
        flag: &Flag,
        call: impl FnOnce(&mut Option<S>) -> R + Send + 'static,
    ) -> Result<R, Error> {
        let mut state = self.shared.state();
        while state.is_busy {
            flag.check()?;
            state = self.shared.wait(state);
        }
        let result = Arc::new(Mutex::new(None));
        let given = Arc::clone(&result);
        state.next = Some(Box::new(move |made| {
            // A panic is the caller's.
            let got = panic::catch_unwind(AssertUnwindSafe(|| call(made)));
            *given.lock().unwrap_or_else(PoisonError::into_inner) = Some(got);
        }));
        state.is_busy = true;
        self.shared.changed.notify_all();
        let mut give_up = None;
        while state.is_busy {
            if !flag.is_cancelled() {
                state = self.shared.wait(state);
                continue;
            }
            let now = Instant::now();
            let left = give_up.get_or_insert(now + GRACE).saturating_duration_since(now);
            if left.is_zero() {
                // What it gives is the thread's alone.
                drop(result);
                state.is_abandoned = true;
                ABANDONED.begin(now);
                return Err(Error::new(ErrorKind::Cancelled, "stopped"));
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        let got = result.lock().unwrap_or_else(PoisonError::into_inner).take();
        got.expect("every call gives something").or_else(|payload| panic::resume_unwind(payload))
    }
}

impl<S> Drop for Worker<S> {
    /// Waits until what it called is dropped, but not for an abandoned call.
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.is_closed = true;
        let is_abandoned = state.is_abandoned;
        drop(state);
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && !is_abandoned
        {
            // It catches what could panic.
            let _ = thread.join();
        }
    }
}

impl<S> Shared<S> {
    fn state(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<S>>) -> MutexGuard<'a, State<S>> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// What the thread does.
    fn run(&self) {
        let mut made = None;
        let mut state = self.state();
        loop {
            if let Some(call) = state.next.take() {
                drop(state);
                call(&mut made);
                state = self.state();
                // Where the session is gone, too, the end is that of its memory.
                if state.is_abandoned && !state.is_closed {
                    trim();
                    state.is_abandoned = false;
                    ABANDONED.end();
                }
                state.is_busy = false;
                self.changed.notify_all();
            } else if state.is_closed {
                break;
            } else {
                state = self.wait(state);
            }
        }
        let is_abandoned = state.is_abandoned;
        drop(state);
        drop(made);
        if is_abandoned {
            trim();
            ABANDONED.end();
        }
    }
}

impl<S> Wake for Shared<S> {
    fn wake(&self) {
        // Whoever holds it has not looked at the flag yet, or waits already.
        drop(self.state());
        self.changed.notify_all();
    }
}

/// The abandoned calls of this process.
struct Abandoned {
    calls: Mutex<Calls>,
    changed: Condvar,
}

struct Calls {
    count: usize,
    /// Since when there has been one at any time.
    since: Option<Instant>,
    is_exit_watched: bool,
}

static ABANDONED: Abandoned = Abandoned {
    calls: Mutex::new(Calls { count: 0, since: None, is_exit_watched: false }),
    changed: Condvar::new(),
};

impl Abandoned {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, now: Instant) {
        let mut calls = self.calls();
        calls.count += 1;
        calls.since.get_or_insert(now);
        if !std::mem::replace(&mut calls.is_exit_watched, true) {
            // The library's destructors must not run beside a call.
            sys::before_exit(wait_at_exit);
        }
    }

    fn end(&self) {
        let mut calls = self.calls();
        calls.count -= 1;
        if calls.count == 0 {
            calls.since = None;
        }
        drop(calls);
        self.changed.notify_all();
    }

    /// Waits this long at most; whether none is left.
    fn wait(&self, most: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.calls(), most, |calls| calls.count > 0);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

/// How long there has been a cancelled call that has not ended, or several, one after the other; nothing where there is none.
pub fn abandoned_for() -> Option<Duration> {
    ABANDONED.calls().since.map(|since| since.elapsed())
}

/// Ends the process with this code, at once: where an abandoned call has not ended ([`abandoned_for`]), without what is registered
/// for the process's end, which would wait for it.
pub fn exit(code: u8) -> ! {
    match abandoned_for() {
        Some(_) => sys::exit_at_once(code),
        None => std::process::exit(code.into()),
    }
}

/// Waits until every abandoned call of this process has ended: until then their memory counts.
///
/// # Errors
/// [`ErrorKind::Cancelled`] where it is cancelled meanwhile.
pub(super) fn wait_for_abandoned(flag: &Flag) -> Result<(), Error> {
    while !ABANDONED.wait(LOOK_EVERY) {
        flag.check()?;
    }
    Ok(())
}

extern "C" fn wait_at_exit() {
    ABANDONED.wait(MAX_EXIT_WAIT);
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{channel, sync_channel};

    use super::super::Cancel;
    use super::*;

    /// A cancelled call that does not end is abandoned, and the next waits for it; what was made outlives it even where the
    /// worker is gone.
    #[test]
    fn a_call_that_does_not_end_is_abandoned() {
        let cancel = Cancel::new();
        let made = Arc::new(());
        let own = Arc::clone(&made);
        let (count, mut worker) = Worker::start(&cancel.flag(), move || Ok((1, (own, 0)))).unwrap();
        assert_eq!(count, 1);
        assert_eq!(worker.call(&cancel.flag(), |(_, number)| std::mem::replace(number, 7)).unwrap(), 0);
        let (go_on, may_go_on) = sync_channel::<()>(0);
        let (begun, has_begun) = channel();
        let hang = move |(_, number): &mut (Arc<()>, i32)| {
            begun.send(()).unwrap();
            may_go_on.recv().unwrap();
            *number += 1;
        };
        let canceller = {
            let cancel = cancel.clone();
            thread::spawn(move || {
                has_begun.recv().unwrap();
                cancel.cancel();
                has_begun
            })
        };
        let error = worker.call(&cancel.flag(), hang).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert!(abandoned_for().is_some());
        canceller.join().unwrap();
        // Cancelled while it waits for that call: neither begins nor waits.
        assert_eq!(worker.call(&cancel.flag(), |_| ()).unwrap_err().kind(), ErrorKind::Cancelled);
        assert_eq!(wait_for_abandoned(&cancel.flag()).unwrap_err().kind(), ErrorKind::Cancelled);
        cancel.reset();
        let flag = cancel.flag();
        let next = thread::spawn(move || {
            let number = worker.call(&flag, |(_, number)| *number).unwrap();
            (worker, number)
        });
        thread::sleep(Duration::from_millis(50));
        assert!(!next.is_finished(), "it waits");
        go_on.send(()).unwrap();
        let (mut worker, number) = next.join().unwrap();
        assert_eq!(number, 8);
        wait_for_abandoned(&cancel.flag()).unwrap();

        // Abandoned and closed.
        let (go_on, may_go_on) = sync_channel::<()>(0);
        cancel.cancel();
        worker.call(&cancel.flag(), move |_| may_go_on.recv()).unwrap_err();
        drop(worker);
        assert_eq!(Arc::strong_count(&made), 2);
        assert!(abandoned_for().is_some());
        go_on.send(()).unwrap();
        cancel.reset();
        wait_for_abandoned(&cancel.flag()).unwrap();
        assert_eq!(Arc::strong_count(&made), 1);
    }

    /// A panic is the caller's, and the thread goes on.
    #[test]
    fn panics_are_the_callers() {
        let cancel = Cancel::new();
        let ((), mut worker) = Worker::start(&cancel.flag(), || Ok(((), 5))).unwrap();
        let flag = cancel.flag();
        let panicked =
            panic::catch_unwind(AssertUnwindSafe(|| worker.call(&flag, |_| panic!("in the call"))));
        assert!(panicked.is_err());
        assert_eq!(worker.call(&cancel.flag(), |number| *number).unwrap(), 5);
        let refused = Worker::<()>::start(&cancel.flag(), || -> Result<((), ()), Error> {
            Err(Error::new(ErrorKind::Model, "no"))
        });
        assert_eq!(refused.map(|_| ()).unwrap_err().kind(), ErrorKind::Model);
    }
}
