//! What systemd is told of the server (`sd_notify(3)`): ready, alive, stopping. Without systemd nobody is told.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::queue::Queue;
use crate::engine::abandoned_for;

/// Tells systemd how the server is.
pub(super) struct Supervisor {
    /// The time within which systemd expects the next sign of life; none where it expects no sign.
    watchdog: Option<Duration>,
    last: Instant,
}

impl Supervisor {
    pub(super) fn new() -> Self {
        #[cfg(unix)]
        let watchdog = sd_notify::watchdog_enabled();
        #[cfg(not(unix))]
        let watchdog = None;
        Self { watchdog, last: Instant::now() }
    }

    /// The server takes requests.
    pub(super) fn ready(&self, address: SocketAddr) {
        notify(&[State::Ready, State::Status(&format!("serving at http://{address}"))]);
    }

    /// A sign of life, twice in the time that systemd waits for one. There is none while a cancelled job goes on for longer
    /// than that: a call that hangs (in a driver, say) ends only with the process.
    pub(super) fn alive(&mut self, queue: &Queue) {
        let Some(watchdog) = self.watchdog else { return };
        if is_due(watchdog, self.last.elapsed(), queue.overdue().max(abandoned_for())) {
            notify(&[State::Alive]);
            self.last = Instant::now();
        }
    }

    /// The server takes no more requests.
    pub(super) fn stopping(&self) {
        notify(&[State::Stopping]);
    }
}

fn is_due(watchdog: Duration, since_last: Duration, overdue: Option<Duration>) -> bool {
    since_last >= watchdog / 2 && overdue.is_none_or(|overdue| overdue <= watchdog)
}

enum State<'a> {
    Ready,
    Alive,
    Stopping,
    Status(&'a str),
}

#[cfg(unix)]
fn notify(states: &[State<'_>]) {
    let states: Vec<sd_notify::NotifyState<'_>> = states
        .iter()
        .map(|state| match state {
            State::Ready => sd_notify::NotifyState::Ready,
            State::Alive => sd_notify::NotifyState::Watchdog,
            State::Stopping => sd_notify::NotifyState::Stopping,
            State::Status(text) => sd_notify::NotifyState::Status(text),
        })
        .collect();
    // A supervisor that does not listen is no reason to stop serving.
    if let Err(error) = sd_notify::notify(&states) {
        tracing::warn!("NOTIFY_SOCKET: {error}");
    }
}

#[cfg(not(unix))]
fn notify(_states: &[State<'_>]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_does_not_end_when_cancelled_ends_the_signs_of_life() {
        let [short, half, whole, long] = [400, 500, 1000, 1001].map(Duration::from_millis);
        assert!(!is_due(whole, short, None));
        assert!(is_due(whole, half, None));
        assert!(is_due(whole, half, Some(whole)));
        assert!(!is_due(whole, long, Some(long)));
    }
}
