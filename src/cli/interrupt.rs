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
/// Whether the one JSON object of a run is still to come.
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

/// Whether the one JSON object of a run is still to come.
pub(super) fn owes_json() -> bool {
    OWES_JSON.load(Ordering::Relaxed)
}

/// From here on the run itself reports how it ended.
pub(super) fn say_no_more() {
    OWES_JSON.store(false, Ordering::Relaxed);
}

/// What the first signal leads to; [`STOP`] is set by then.
fn stop() {
    if IS_HEEDED.load(Ordering::Relaxed) {
        CANCEL.cancel();
        return;
    }
    let error = Error::new(ErrorKind::Cancelled, "stopped");
    say(&error);
    if OWES_JSON.load(Ordering::Relaxed) {
        let _ = writeln!(io::stdout(), "{:#}", json!({ "error": error_json(&error) }));
    }
    platform::exit(error.kind().exit_code());
}

#[cfg(unix)]
mod platform {
    use std::sync::Arc;
    use std::thread;

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
        for &signal in &minded {
            // In this order, so that the second signal finds what the first one left. Both run in the handler itself:
            // a process that hangs in a write ends, too.
            let stop = Arc::clone(&super::STOP);
            let _ = flag::register_conditional_shutdown(signal, ENDED_BY_SIGNAL + signal, Arc::clone(&stop));
            let _ = flag::register(signal, stop);
        }
        // A file that may grow no further is a write that fails, not the end of the process.
        if ignored.is_none() || is_minded(&SIGXFSZ) {
            let _ = flag::register(SIGXFSZ, Arc::default());
        }
        let Ok(mut signals) = Signals::new(&minded) else { return };
        // Without a thread the first signal ends only what looks at it.
        let _ = thread::Builder::new().name("calotype-signals".into()).spawn(move || {
            for _ in signals.forever() {
                super::stop();
            }
        });
    }

    /// Ends the process without waiting for anybody's threads.
    pub(super) fn exit(code: u8) -> ! {
        low_level::exit(code.into())
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
            true => exit(calotype::ErrorKind::Cancelled.exit_code()),
        };
        // Without a handler Ctrl-C ends the process, as it always did.
        let _ = ctrlc::set_handler(on_interrupt);
    }

    pub(super) fn exit(code: u8) -> ! {
        std::process::exit(code.into())
    }
}
