//! Whether as many threads can be started as a session asks for: where one cannot be, ONNX Runtime would wait for ever for
//! those that it has started. It knows nothing of what threads do.

use std::io;
use std::sync::{Arc, RwLock};
use std::thread::Builder;

use memmap2::MmapMut;

use super::exhaustion::SPARE_BYTES;
use crate::{Error, ErrorKind, memory};

/// More than any one device has cores.
const MAX_THREADS: usize = 4096;

/// Starts as many threads as a session on `threads` will, which is one less, all at once, and ends them.
///
/// # Errors
/// [`ErrorKind::Memory`] where there is no memory for them, [`ErrorKind::Runtime`] where the system gives no more of them,
/// [`ErrorKind::Usage`] for a number that no device has.
pub(super) fn expect(threads: usize) -> Result<(), Error> {
    if threads > MAX_THREADS {
        let message = format!("threads: expected at most {MAX_THREADS}, got {threads}");
        return Err(Error::new(ErrorKind::Usage, message));
    }
    // They wait for this lock while all are being started.
    let gate = Arc::new(RwLock::new(()));
    let closed = gate.write().expect("nobody panics with it");
    let mut started = Vec::with_capacity(threads);
    let mut problem = None;
    for _ in 1..threads {
        let gate = Arc::clone(&gate);
        let wait = move || drop(gate.read());
        match Builder::new().stack_size(memory::stack_bytes()).spawn(wait) {
            Ok(thread) => started.push(thread),
            Err(error) => {
                problem = Some(error);
                break;
            }
        }
    }
    // A session takes more than its threads' stacks.
    let spare = MmapMut::map_anon(SPARE_BYTES).map(drop);
    drop(closed);
    let count = started.len() + 1;
    for thread in started {
        let _ = thread.join();
    }
    problem.map_or(spare, Err).map_err(|error| refusal(threads, count, error))
}

/// Of a single thread that a session needs beside those.
pub(super) fn refusal_of_one(error: io::Error) -> Error {
    refusal(1, 0, error)
}

fn refusal(threads: usize, count: usize, error: io::Error) -> Error {
    // The C library says "try again" of both, and only a limit on the address space keeps stacks, which nobody has touched
    // yet, from being mapped.
    let is_memory = error.kind() == io::ErrorKind::OutOfMemory || memory::mappable_bytes().is_some();
    let kind = if is_memory { ErrorKind::Memory } else { ErrorKind::Runtime };
    let what = if is_memory { "memory for their stacks" } else { "them" };
    let place = format!("threads: expected {what}, {threads} in all, got {count} of them");
    let error = Error::new(kind, place).source(error);
    if threads > 1 { error.help("use fewer with {threads}") } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_threads_are_had_and_a_lot_are_refused() {
        expect(1).unwrap();
        expect(4).unwrap();
        let error = refusal(8, 3, io::Error::from(io::ErrorKind::OutOfMemory));
        assert_eq!(error.kind(), ErrorKind::Memory);
        assert!(
            error
                .to_string()
                .starts_with("threads: expected memory for their stacks, 8 in all, got 3 of them")
        );
        if memory::mappable_bytes().is_none() {
            let error = refusal(8, 3, io::Error::from(io::ErrorKind::WouldBlock));
            assert_eq!(error.kind(), ErrorKind::Runtime);
        }
    }
}
