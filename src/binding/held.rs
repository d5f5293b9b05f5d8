//! A pipeline and the run that borrows it, in one value that a caller who has no lifetimes can hold.

// Rust has no safe way to say that the run borrows what lies beside it.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use crate::error::Error;
use crate::pipeline::{Output, Pipeline, Run};
use crate::request::Request;

/// A pipeline, and the run that was begun with it, if there is one.
pub(super) struct Held {
    /// Borrows `pipeline`; dropped before anything else is done with it.
    run: Option<Run<'static>>,
    /// From a `Box`, which would say that nobody else has a pointer to what is in it.
    pipeline: NonNull<Pipeline>,
}

// SAFETY: it owns both, and each may be used from any one thread at a time.
unsafe impl Send for Held
where
    Pipeline: Send,
    Run<'static>: Send,
{
}

impl Held {
    pub(super) fn new(pipeline: Pipeline) -> Self {
        let pipeline = NonNull::from(Box::leak(Box::new(pipeline)));
        Self { run: None, pipeline }
    }

    /// What the pipeline gives, if no run has it.
    pub(super) fn with_pipeline<T>(&mut self, call: impl FnOnce(&mut Pipeline) -> T) -> Option<T> {
        match self.run {
            Some(_) => None,
            // SAFETY: it was not freed, and nothing borrows it.
            None => Some(call(unsafe { self.pipeline.as_mut() })),
        }
    }

    /// Begins a run in place of the one there is, from a snapshot if there is one.
    pub(super) fn begin(&mut self, request: &Request, snapshot: Option<&[u8]>) -> Result<(), Error> {
        self.run = None;
        // SAFETY: it was not freed, and with the run dropped nothing borrows it. The run that borrows it now is dropped, or ended,
        // before it is borrowed again or freed, and is lent out for no longer than `self` is borrowed.
        let pipeline: &'static mut Pipeline = unsafe { self.pipeline.as_mut() };
        self.run = Some(match snapshot {
            Some(snapshot) => pipeline.restore(request, snapshot)?,
            None => pipeline.begin(request)?,
        });
        Ok(())
    }

    /// What the run gives, if there is one. It is lent with a lifetime that nobody can name, so that nothing of it is kept.
    pub(super) fn with_run<T>(&mut self, call: impl for<'a> FnOnce(&mut Run<'a>) -> T) -> Option<T> {
        self.run.as_mut().map(call)
    }

    /// Ends the run with its image.
    pub(super) fn finish(&mut self) -> Option<Result<Output, Error>> {
        self.run.take().map(Run::finish)
    }

    /// Ends the run without.
    pub(super) fn end(&mut self) {
        self.run = None;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.run = None;
        // SAFETY: made by `Box` in `new`, freed here alone, and nothing borrows it.
        drop(unsafe { Box::from_raw(self.pipeline.as_ptr()) });
    }
}
