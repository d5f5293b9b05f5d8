//! A session whose weights are not all in memory: its graph runs in segments, of which one is open at a time, while a
//! thread reads the weights of the next. It knows nothing of what the graph computes.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::sys::{self, Input, Runtime, Value};
use super::{Copies, TensorRef};
use crate::graph::{BoundGraph, Segment, SegmentBytes, pinned};
use crate::weights::{Lent, Weights};
use crate::{Error, ErrorKind};

/// The segments of a graph.
pub(super) struct Streamed {
    runtime: &'static Runtime,
    parts: Vec<Part>,
    weights: Arc<Weights>,
    how: Opening,
    ahead: Ahead,
}

/// How the sessions of segments are opened.
#[derive(Clone, Copy)]
pub(super) struct Opening {
    pub(super) threads: usize,
    /// Which copies of weights those may make that stay open.
    pub(super) copies: Copies,
    pub(super) budget_bytes: Option<u64>,
}

impl Opening {
    fn open(
        self,
        runtime: &Runtime,
        onnx: &[u8],
        weights: Lent,
        copies: Copies,
    ) -> Result<sys::Session, Error> {
        let Self { threads, budget_bytes, .. } = self;
        sys::Session::open(runtime, onnx, weights, threads, copies, budget_bytes, &[])
    }
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
        grain_bytes: usize,
        resident_bytes: usize,
    ) -> Result<Self, Error> {
        let weights = Arc::clone(&bound.weights);
        let mut types: HashMap<String, i32> = HashMap::new();
        let mut parts: Vec<Part> = Vec::new();
        let segments = bound.segments(grain_bytes);
        let extents: Vec<SegmentBytes> = segments.iter().map(Segment::extent).collect();
        for (segment, is_pinned) in segments.into_iter().zip(pinned(&extents, resident_bytes)) {
            let (onnx, segment) = segment.encode(&types);
            let copies = if is_pinned { how.copies } else { Copies::None };
            let session = how.open(runtime, &onnx, weights.lend(segment.files.iter().copied())?, copies)?;
            types.extend(session.output_types().map(|(name, code)| (name.to_owned(), code)));
            let pinned = is_pinned.then_some(session);
            if pinned.is_none() {
                release(&weights, &segment.ranges);
            }
            parts.push(Part { segment, onnx, pinned });
        }
        let ranges = parts.iter().map(|part| part.segment.ranges.clone()).collect();
        let ahead = Ahead::start(Arc::clone(&weights), ranges)?;
        Ok(Self { runtime, parts, weights, how, ahead })
    }

    /// Runs all segments; gives the outputs of these names.
    pub(super) fn run(
        &mut self,
        inputs: &[(&str, TensorRef<'_>)],
        outputs: &[&str],
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
                let input = fed.map(|(_, tensor)| Input::Fed(*tensor));
                (name.as_str(), input.unwrap_or_else(|| Input::Made(&made[name])))
            });
            let wanted: Vec<&str> = segment.outputs.iter().map(String::as_str).collect();
            let mut opened;
            let session = match &mut part.pinned {
                Some(session) => session,
                None => {
                    // It may have been minutes since the run began.
                    self.weights.check_files()?;
                    let lent = self.weights.lend(segment.files.iter().copied())?;
                    opened = self.how.open(self.runtime, &part.onnx, lent, self.how.copies)?;
                    &mut opened
                }
            };
            if let Some(next) = next {
                self.ahead.read(next);
            }
            let results = session.run(fed, &wanted)?;
            made.extend(segment.outputs.iter().cloned().zip(results));
            segment.spent.iter().for_each(|name| drop(made.remove(name)));
            if part.pinned.is_none() && next != Some(index) {
                release(&self.weights, &segment.ranges);
            }
        }
        let results = outputs.iter().map(|name| {
            made.remove(*name).ok_or_else(|| {
                Error::new(
                    ErrorKind::Internal,
                    format!("output {name}: no segment gives it, or it is asked for twice"),
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
struct Ahead {
    /// Which segment is next.
    next: Arc<AtomicUsize>,
    /// Wakes the thread; absent once it is to end.
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ahead {
    fn start(weights: Arc<Weights>, ranges: Vec<Vec<(usize, Range<usize>)>>) -> Result<Self, Error> {
        let (wake, woken) = sync_channel::<()>(1);
        let next = Arc::new(AtomicUsize::new(0));
        let wanted = Arc::clone(&next);
        let read = move || {
            for () in woken {
                // What was wanted while it was behind is not read any more: it may have been used and released.
                let segment = wanted.load(Ordering::Relaxed);
                ranges[segment].iter().for_each(|(file, range)| weights.populate(*file, range.clone()));
            }
        };
        let thread =
            std::thread::Builder::new().name("calotype-weights".into()).spawn(read).map_err(|error| {
                Error::new(ErrorKind::Runtime, "a thread that reads weights ahead").source(error)
            })?;
        Ok(Self { next, wake: Some(wake), thread: Some(thread) })
    }

    /// Begins to read the weights of a segment, as soon as those of an earlier one are read.
    fn read(&self, segment: usize) {
        self.next.store(segment, Ordering::Relaxed);
        let _ = self.wake.as_ref().expect("until it is dropped").try_send(());
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            // It does nothing that could panic.
            let _ = thread.join();
        }
    }
}
