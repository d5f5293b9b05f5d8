//! Signals: the first Ctrl-C (SIGINT, SIGTERM, SIGHUP) ends a run in order, and a second one at once. Signals that the
//! process was started to ignore (`nohup`, background jobs) stay ignored. It knows nothing of what is interrupted.

use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use calotype::engine::Cancel;
use calotype::{Error, ErrorKind};
use serde_json::json;

use super::{error_json, say};

/// Whether a signal has come.
static STOP: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
/// What a signal cancels.
static CANCEL: LazyLock<Cancel> = LazyLock::new(Cancel::new);
/// Whether somebody looks at [`STOP`]; where nobody does, the first signal ends the process.
static IS_HEEDED: AtomicBool = AtomicBool::new(false);
/// Whether the one JSON object of a run is still to come. Whoever writes it takes it back.
static OWES_JSON: AtomicBool = AtomicBool::new(false);

/// Begins to mind signals; `json`, if the run has to say even of its end in JSON.
pub(super) fn watch(json: bool) {
    OWES_JSON.store(json, Ordering::Relaxed);
    platform::watch();
}

/// While it lives, the first signal is heeded by whoever holds it, who asks [`Heeded::is_stopped`].
pub(super) struct Heeded(());

impl Heeded {
    pub(super) fn new() -> Self {
        IS_HEEDED.store(true, Ordering::Relaxed);
        Self(())
    }

    /// What ends a call in the middle when the first signal comes.
    pub(super) fn cancel() -> Cancel {
        CANCEL.clone()
    }

    pub(super) fn is_stopped(&self) -> bool {
        STOP.load(Ordering::Relaxed)
    }
}

impl Drop for Heeded {
    fn drop(&mut self) {
        IS_HEEDED.store(false, Ordering::Relaxed);
    }
}

/// Whether the one JSON object of a run is still to come; if so, it is the caller who writes it.
pub(super) fn take_json() -> bool {
    OWES_JSON.swap(false, Ordering::Relaxed)
}

/// The same for the handler of a signal.
pub(super) fn owed_json() -> &'static AtomicBool {
    &OWES_JSON
}

/// What the first signal leads to; [`STOP`] is set by then.
fn stop() {
    if IS_HEEDED.load(Ordering::Relaxed) {
        CANCEL.cancel();
        return;
    }
    let error = Error::new(ErrorKind::Cancelled, "stopped");
    say(&error);
    if take_json() {
        let _ = writeln!(io::stdout(), "{:#}", json!({ "error": error_json(&error) }));
    }
    platform::exit(error.kind().exit_code().into());
}

/// What the second signal leads to.
fn end_at_once(code: i32) -> ! {
    if take_json() {
        let error =
            json!({ "kind": "cancelled", "message": "stopped by a second signal", "exit_code": code });
        platform::write_if_ready(&format!("{:#}\n", json!({ "error": error })));
    }
    platform::exit(code);
}

#[cfg(unix)]
mod platform {
    use std::io;
    use std::os::fd::AsFd;
    use std::sync::Arc;
    use std::sync::mpsc::sync_channel;
    use std::thread;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
    use signal_hook::iterator::Signals;
    use signal_hook::{flag, low_level};

    /// What a shell adds to the number of the signal that ended a process.
    const ENDED_BY_SIGNAL: i32 = 128;

    pub(super) fn watch() {
        let ignored = ignored();
        let is_minded = |signal: &i32| ignored.is_some_and(|mask| mask >> (signal - 1) & 1 == 0);
        // Where the system does not say what is ignored, a terminal that is gone ends the process as it always did.
        let asked = if ignored.is_some() { &[SIGINT, SIGTERM, SIGHUP][..] } else { &[SIGINT, SIGTERM] };
        let minded: Vec<i32> =
            asked.iter().copied().filter(|signal| ignored.is_none() || is_minded(signal)).collect();
        // A file that may grow no further is a write that fails, not the end of the process.
        if ignored.is_none() || is_minded(&SIGXFSZ) {
            let _ = flag::register(SIGXFSZ, Arc::default());
        }
        for &signal in &minded {
            let _ = flag::register(signal, Arc::clone(&super::STOP));
        }
        if listen(&minded).is_none() {
            // Without threads the first signal ends only what looks at it, and the handler itself ends the process at the next.
            for &signal in &minded {
                let stop = Arc::clone(&super::STOP);
                let _ = flag::register_conditional_shutdown(signal, ENDED_BY_SIGNAL + signal, stop);
            }
        }
    }

    /// Two threads: one that does what the first signal asks for, which may hang in a write, and one that never waits for
    /// anything but signals, and ends the process at the second.
    fn listen(minded: &[i32]) -> Option<()> {
        let mut signals = Signals::new(minded).ok()?;
        let (first, begins) = sync_channel(1);
        let named = |name: &str| thread::Builder::new().name(name.into());
        let stops = move || begins.iter().for_each(|()| super::stop());
        named("calotype-stop").spawn(stops).ok()?;
        let listens = move || {
            for (count, signal) in signals.forever().enumerate() {
                if count > 0 {
                    super::end_at_once(ENDED_BY_SIGNAL + signal);
                }
                let _ = first.try_send(());
            }
        };
        named("calotype-signals").spawn(listens).ok()?;
        Some(())
    }

    /// Writes a few words to standard output, unless that would wait for a reader.
    pub(super) fn write_if_ready(text: &str) {
        let stdout = io::stdout();
        let mut ready = [PollFd::new(&stdout, PollFlags::OUT)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if poll(&mut ready, Some(&now)).is_ok() && ready[0].revents().contains(PollFlags::OUT) {
            // Not through the buffer, which another thread may hold.
            let _ = rustix::io::write(stdout.as_fd(), text.as_bytes());
        }
    }

    /// Ends the process without waiting for anybody's threads.
    pub(super) fn exit(code: i32) -> ! {
        low_level::exit(code)
    }

    /// The signals that the process was started to ignore, signal 1 in the lowest bit; nothing where the system does
    /// not say.
    fn ignored() -> Option<u64> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    }
}

#[cfg(not(unix))]
mod platform {
    use std::sync::atomic::Ordering;

    pub(super) fn watch() {
        let on_interrupt = || match super::STOP.swap(true, Ordering::Relaxed) {
            false => super::stop(),
            true => super::end_at_once(calotype::ErrorKind::Cancelled.exit_code().into()),
        };
        // Without a handler Ctrl-C ends the process, as it always did.
        let _ = ctrlc::set_handler(on_interrupt);
    }

    /// Writes a few words to standard output.
    pub(super) fn write_if_ready(text: &str) {
        let _ = std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes());
    }

    pub(super) fn exit(code: i32) -> ! {
        std::process::exit(code)
    }
}
