//! Memory that is not to be had: what was asked for and which limit stood against it, and how a process ends where no
//! error can be returned. It knows nothing of sessions.

use std::fmt;
use std::sync::OnceLock;

use crate::{Error, ErrorKind, memory};

/// What is left of the address space when a block is made: the C library's heap, kernels' scratch and threads' stacks need
/// some, too, and not all of them look whether they got it.
pub(crate) const SPARE_BYTES: usize = 32 << 20;

/// Memory that was asked for and not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What was asked for; 0 where that is not known.
    wanted_bytes: usize,
    limit: Limit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    /// The budget of a plan, and what the process had already.
    Budget { bytes: u64, resident_bytes: u64 },
    /// What the process's own limits (`ulimit -v`, `ulimit -d`) left.
    Process { left_bytes: u64 },
    /// The system's.
    System,
}

impl Refusal {
    pub(super) fn of_budget(wanted_bytes: usize, bytes: u64, resident_bytes: u64) -> Self {
        Self { wanted_bytes, limit: Limit::Budget { bytes, resident_bytes } }
    }

    /// Of memory that the system does not give, for whatever reason it has. Allocates nothing.
    pub(super) fn of_system(wanted_bytes: usize) -> Self {
        let limit = memory::mappable_bytes();
        Self { wanted_bytes, limit: limit.map_or(Limit::System, |left_bytes| Limit::Process { left_bytes }) }
    }

    pub(super) fn error(self, place: &str) -> Error {
        Error::new(ErrorKind::Memory, format!("{place}: {self}"))
    }
}

impl fmt::Display for Refusal {
    /// `memory: expected ..., got ...`; allocates nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = |bytes: u64| bytes.div_ceil(1 << 10);
        let wanted = kib(self.wanted_bytes as u64);
        f.write_str("memory: expected ")?;
        match self.limit {
            Limit::Budget { bytes, resident_bytes } => {
                let all = kib(resident_bytes) + wanted;
                return write!(f, "at most {} KiB, the budget, got {all} KiB", kib(bytes));
            }
            _ if self.wanted_bytes == 0 => f.write_str("more"),
            _ => write!(f, "{wanted} KiB more and {} KiB to spare", kib(SPARE_BYTES as u64)),
        }?;
        match self.limit {
            Limit::Process { left_bytes } => write!(
                f,
                ", got the {} KiB that this process's limits (ulimit -v, ulimit -d) leave",
                kib(left_bytes)
            ),
            _ => f.write_str(", got none from the system"),
        }
    }
}

static REPORT: OnceLock<fn(&Refusal)> = OnceLock::new();

/// For programs: where memory cannot be had and no error can be returned (in a thread of ONNX Runtime's, or for
/// [`super::Heap`]), `report` is called, and the process ends with the exit code of [`ErrorKind::Memory`], instead of by
/// a signal. `report` must not allocate. To be called before the [`super::Library`] is loaded; the first call counts.
pub fn exit_when_exhausted(report: fn(&Refusal)) {
    let _ = REPORT.set(report);
}

/// Whether the process is to end so.
pub(super) fn is_reported() -> bool {
    REPORT.get().is_some()
}

/// Tells the program that the process ends, if it asked to be told; whether it did.
pub(super) fn report(refusal: &Refusal) -> bool {
    REPORT.get().is_some_and(|report| {
        report(refusal);
        true
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_what_stood_against_it() {
        let said = |wanted_bytes, limit| Refusal { wanted_bytes, limit }.to_string();
        let budget = Limit::Budget { bytes: 100 << 20, resident_bytes: 99 << 20 };
        assert_eq!(said(2 << 20, budget), "memory: expected at most 102400 KiB, the budget, got 103424 KiB");
        assert_eq!(
            said(1025, Limit::Process { left_bytes: 5 << 10 }),
            "memory: expected 2 KiB more and 32768 KiB to spare, got the 5 KiB that this process's limits (ulimit -v, \
             ulimit -d) leave"
        );
        assert_eq!(said(0, Limit::System), "memory: expected more, got none from the system");
    }
}
