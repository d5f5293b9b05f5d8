//! A session whose weights are not all in memory: its graph runs in segments, of which one is open at a time, while a
//! thread reads the weights of the next. It knows nothing of what the graph computes.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::Copies;
use super::cancel::Flag;
use super::sys::{self, Input, Loads, Opening, Runtime, Value};
use crate::graph::{BoundGraph, Segment, SegmentBytes, pinned};
use crate::weights::Weights;
use crate::{Error, ErrorKind};

/// The segments of a graph.
pub(super) struct Streamed {
    runtime: &'static Runtime,
    parts: Vec<Part>,
    weights: Arc<Weights>,
    how: Opening,
    prefetcher: Prefetcher,
}

struct Part {
    segment: Segment,
    onnx: Vec<u8>,
    /// Open for good, its weights in memory.
    pinned: Option<sys::Session>,
}

impl Streamed {
    /// Cuts a graph so that at most `resident_bytes` of its weights are in memory, and opens as many segments for good
    /// as leave room for the others.
    pub(super) fn open(
        runtime: &'static Runtime,
        bound: &BoundGraph,
        how: Opening,
        segment_bytes: usize,
        resident_bytes: usize,
        loads: &Loads,
    ) -> Result<Self, Error> {
        let weights = Arc::clone(&bound.weights);
        let mut types: HashMap<String, i32> = HashMap::new();
        let mut parts: Vec<Part> = Vec::new();
        let segments = bound.segments(segment_bytes);
        let extents: Vec<SegmentBytes> = segments.iter().map(Segment::extent).collect();
        for (segment, is_pinned) in segments.into_iter().zip(pinned(&extents, resident_bytes)) {
            let (onnx, segment) = segment.encode(&types);
            let copies = if is_pinned { how.copies } else { Copies::None };
            let lent = weights.lend(segment.files.iter().copied())?;
            let session =
                sys::Session::open(runtime, &onnx, lent, Opening { copies, ..how }, &[], loads, None)?;
            types.extend(session.output_types().map(|(name, code)| (name.to_owned(), code)));
            let pinned = is_pinned.then_some(session);
            if pinned.is_none() {
                release(&weights, &segment.ranges);
            }
            parts.push(Part { segment, onnx, pinned });
        }
        let ranges = parts.iter().map(|part| part.segment.ranges.clone()).collect();
        let prefetcher = Prefetcher::start(Arc::clone(&weights), ranges)?;
        Ok(Self { runtime, parts, weights, how, prefetcher })
    }

    /// Runs all segments; gives the outputs of these names.
    pub(super) fn run(
        &mut self,
        inputs: &[(&str, Input<'_>)],
        outputs: &[&str],
        flag: &Flag,
    ) -> Result<Vec<Value>, Error> {
        let mut made: HashMap<String, Value> = HashMap::new();
        let streamed: Vec<usize> =
            (0..self.parts.len()).filter(|&index| self.parts[index].pinned.is_none()).collect();
        for index in 0..self.parts.len() {
            let next = streamed.iter().copied().find(|&next| next > index).or(streamed.first().copied());
            let part = &mut self.parts[index];
            let segment = &part.segment;
            let fed = segment.inputs.iter().map(|name| {
                let fed = inputs.iter().find(|(input, _)| input == name);
                (name.as_str(), fed.map_or_else(|| Input::Made(&made[name]), |(_, input)| *input))
            });
            let wanted: Vec<&str> = segment.outputs.iter().map(String::as_str).collect();
            let mut opened;
            let session = match &mut part.pinned {
                Some(session) => session,
                None => {
                    // It may have been minutes since the run began.
                    self.weights.check_files()?;
                    let lent = self.weights.lend(segment.files.iter().copied())?;
                    opened = flag.watch_loads(|loads| {
                        sys::Session::open(self.runtime, &part.onnx, lent, self.how, &[], loads, None)
                    })?;
                    &mut opened
                }
            };
            if let Some(next) = next {
                self.prefetcher.read(next);
            }
            let results = flag.watch(|options| session.run(fed, &wanted, options))?;
            made.extend(segment.outputs.iter().cloned().zip(results));
            segment.spent.iter().for_each(|name| drop(made.remove(name)));
            if part.pinned.is_none() && next != Some(index) {
                self.prefetcher.leave(index);
                release(&self.weights, &segment.ranges);
            }
        }
        let results = outputs.iter().map(|name| {
            made.remove(*name).ok_or_else(|| {
                Error::new(
                    ErrorKind::Internal,
                    format!("output {name}: no segment computes it, or it was requested twice"),
                )
            })
        });
        results.collect()
    }
}

fn release(weights: &Weights, ranges: &[(usize, Range<usize>)]) {
    ranges.iter().for_each(|(file, range)| weights.release(*file, range.clone()));
}

/// The thread that reads weights before they are needed.
struct Prefetcher {
    work: Arc<Work>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread of an [`Prefetcher`] is to do, and does.
#[derive(Default)]
struct Work {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The segment that is to be read. What was wanted before and is not begun is not read any more.
    wanted: Option<usize>,
    /// The segment that is being read.
    reading: Option<usize>,
    has_ended: bool,
}

impl Work {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what is wanted with `read`, one range of a segment after another, until it is to end.
    fn run(&self, ranges: &[Vec<(usize, Range<usize>)>], read: impl Fn(usize, Range<usize>)) {
        let mut state = self.state();
        while !state.has_ended {
            let Some(segment) = state.wanted.take() else {
                state = self.changed(state);
                continue;
            };
            state.reading = Some(segment);
            for (file, range) in &ranges[segment] {
                // Another is wanted: this one runs already, and its weights come as it uses them.
                if state.wanted.is_some() || state.has_ended {
                    break;
                }
                drop(state);
                read(*file, range.clone());
                state = self.state();
            }
            state.reading = None;
            self.changed.notify_all();
        }
    }
}

impl Prefetcher {
    fn start(weights: Arc<Weights>, ranges: Vec<Vec<(usize, Range<usize>)>>) -> Result<Self, Error> {
        Self::with(ranges, move |file, range| weights.populate(file, range))
    }

    fn with(
        ranges: Vec<Vec<(usize, Range<usize>)>>,
        read: impl Fn(usize, Range<usize>) + Send + 'static,
    ) -> Result<Self, Error> {
        let work = Arc::new(Work::default());
        let own = Arc::clone(&work);
        let thread = std::thread::Builder::new()
            .name("calotype-weights".into())
            .spawn(move || own.run(&ranges, read))
            .map_err(|error| {
                Error::new(ErrorKind::Runtime, "a thread that reads weights ahead").source(error)
            })?;
        Ok(Self { work, thread: Some(thread) })
    }

    /// Begins to read the weights of a segment, instead of those of an earlier one.
    fn read(&self, segment: usize) {
        self.work.state().wanted = Some(segment);
        self.work.changed.notify_all();
    }

    /// Waits until the weights of a segment are not being read, so that they can be released for good. When the thread was
    /// late, they would come back after that, and be in memory beside the two segments that are planned.
    fn leave(&self, segment: usize) {
        let mut state = self.work.state();
        while state.reading == Some(segment) {
            state = self.work.changed(state);
        }
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        self.work.state().has_ended = true;
        self.work.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It does nothing that could panic.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{channel, sync_channel};
    use std::time::Duration;

    use super::*;

    /// A segment that the thread is late with is not read behind the back of whoever released it.
    #[test]
    fn what_is_left_is_not_read_any_more() {
        let (begun, has_begun) = channel();
        let (go_on, may_go_on) = sync_channel::<()>(0);
        let may_go_on = Mutex::new(may_go_on);
        let ranges = vec![vec![(0, 0..1), (0, 2..3)], vec![(1, 0..1)]];
        let prefetcher = Arc::new(
            Prefetcher::with(ranges, move |file, range| {
                begun.send((file, range.start)).unwrap();
                may_go_on.lock().unwrap().recv().unwrap();
            })
            .unwrap(),
        );
        prefetcher.read(0);
        assert_eq!(has_begun.recv(), Ok((0, 0)));
        prefetcher.read(1);
        let (left, has_left) = channel();
        let other = Arc::clone(&prefetcher);
        let waiting = std::thread::spawn(move || {
            other.leave(0);
            left.send(()).unwrap();
        });
        assert!(has_left.recv_timeout(Duration::from_millis(50)).is_err(), "it is still being read");
        go_on.send(()).unwrap();
        has_left.recv().unwrap();
        waiting.join().unwrap();
        // The rest of the first is not read: the second is wanted.
        assert_eq!(has_begun.recv(), Ok((1, 0)));
        prefetcher.leave(0);
        go_on.send(()).unwrap();
        drop(prefetcher);
        assert!(has_begun.recv().is_err());
    }
}
