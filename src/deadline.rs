//! Images that are finished by a deadline: a step is measured, and as many are taken as there is time for. It knows runs and their
//! times, and nothing of what they compute.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::pipeline::Pipeline;
use crate::request::Request;
use crate::run::{Output, Run};
use crate::{Error, ErrorKind};

/// How much longer than any before a step, or what comes after it, may take.
const SPARE: f64 = 1.1;
/// How much longer than the U-Net the VAE decoder may take for a multiplication, until an image has been decoded: in tiles, or beside a
/// U-Net that computes in integers.
const SLOWER_DECODER: f64 = 3.0;
/// How many steps decoding takes where it is not known how the two compare.
const DECODER_STEPS: f64 = 4.0;
/// What writing an image to a file and ending take besides.
const WRITING: Duration = Duration::from_millis(100);
/// Of its steps, what an image may lack at the end before it is begun again with fewer.
const LACKING: f64 = 0.1;

/// A time by which an image is finished, and what the images before it took.
#[derive(Clone, Debug)]
pub struct Deadline {
    limit: Duration,
    known: Option<Known>,
}

/// What the last image took.
#[derive(Clone, Copy, Debug)]
struct Known {
    before_steps: Duration,
    step: Duration,
    decoding: Duration,
}

/// Why steps ended before all were taken.
enum Broken {
    /// By whoever watches them.
    ByCaller,
    /// To begin again with so many.
    Fewer(usize),
    /// There is no time for an image; with so much there would be.
    Least(Duration),
}

impl Deadline {
    /// So long after an image is begun.
    pub fn new(limit: Duration) -> Self {
        Self { limit, known: None }
    }

    /// Generates an image within the limit, counted from `started`, with as many of the request's steps as there is time for: with
    /// fewer if the first shows that all take too long, and without the last of them if later ones take longer than that. The request
    /// that is given is the one that makes the same image again. `on_step` is called after every step and may end the run.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where there is no time for a single step, naming the least, and for an image that is made in several
    /// passes; otherwise as [`Pipeline::generate`].
    pub fn generate(
        &mut self,
        pipeline: &mut Pipeline,
        request: &Request,
        started: Instant,
        mut on_step: impl FnMut(&mut Run) -> ControlFlow<()>,
    ) -> Result<(Request, Output), Error> {
        if request.earlier().is_some() {
            let problem = "deadline: expected an image that is made in one pass, got one with several";
            return Err(Error::new(ErrorKind::Usage, problem));
        }
        let decoder_steps = pipeline.plan().and_then(|plan| {
            let [decoder, denoising] =
                [&["vae_decoder"][..], &["unet", "control"]].map(|of| plan.multiplications(of));
            Some(decoder? as f64 * request.steps() as f64 / denoising? as f64)
        });
        let mut request = request.clone();
        let mut may_restart = true;
        if let Some(Known { before_steps, step, decoding }) = self.known {
            let rest = after_steps(Some(decoding), step, None, SLOWER_DECODER);
            let left = self.limit.saturating_sub(started.elapsed()).saturating_sub(before_steps + rest);
            let fitting = fitting(left, step).max(1);
            if fitting < request.steps_taken() {
                may_restart = false;
                request = fewer(&request, fitting, pipeline).unwrap_or(request);
            }
        }
        loop {
            let begun = Instant::now();
            let mut run = pipeline.begin(&request)?;
            let before_steps = begun.elapsed();
            let (mut last, mut step) = (Instant::now(), Duration::ZERO);
            let mut broken = Broken::ByCaller;
            let walked = run.steps(|run| {
                let (done, steps) = (run.progress().done, run.progress().steps);
                if on_step(run).is_break() {
                    return ControlFlow::Break(());
                }
                // The first one may take longer than others, because memory is taken for it.
                step = if done == 2 { last.elapsed() } else { step.max(last.elapsed()) };
                last = Instant::now();
                if done == steps {
                    return ControlFlow::Continue(());
                }
                let decoding = self.known.map(|known| known.decoding);
                let spent = started.elapsed();
                // It is refused only where even a decoder as fast as the U-Net would be late.
                let least = spent + after_steps(decoding, step, decoder_steps, 1.0);
                if done == 1 && least > self.limit {
                    broken = Broken::Least(least);
                    return ControlFlow::Break(());
                }
                let rest = after_steps(decoding, step, decoder_steps, SLOWER_DECODER);
                let left = self.limit.saturating_sub(spent).saturating_sub(rest);
                let more = fitting(left, step);
                let again = fitting(left.saturating_sub(before_steps), step);
                let lacks = (done + more) as f64 <= steps as f64 * (1.0 - LACKING);
                if done == 1 && may_restart && lacks && (2..steps).contains(&again) {
                    broken = Broken::Fewer(again);
                    return ControlFlow::Break(());
                }
                match more {
                    0 => run.stop().map_or(ControlFlow::Break(()), ControlFlow::Continue),
                    _ => ControlFlow::Continue(()),
                }
            });
            match (walked, broken) {
                (Ok(()), _) => {
                    let request = run.request().clone();
                    let output = run.finish()?;
                    let decoding = output.times.vae_decoder;
                    self.known = Some(Known { before_steps, step, decoding });
                    return Ok((request, output));
                }
                (Err(_), Broken::Fewer(steps)) => {
                    drop(run);
                    may_restart = false;
                    request = fewer(&request, steps, pipeline).unwrap_or(request);
                }
                (Err(_), Broken::Least(least)) => {
                    let (least, limit) = (least.as_secs_f64(), self.limit.as_secs_f64());
                    let problem = format!(
                        "deadline: expected at least {least:.1} s for a step of this image, got {limit} s"
                    );
                    return Err(Error::new(ErrorKind::Usage, problem).help("a smaller image takes less time"));
                }
                (Err(error), Broken::ByCaller) => return Err(error),
            }
        }
    }
}

/// What comes after the steps: decoding, by a decoder that takes `slower` times as long for a multiplication where it was not measured,
/// and writing.
fn after_steps(
    decoding: Option<Duration>,
    step: Duration,
    decoder_steps: Option<f64>,
    slower: f64,
) -> Duration {
    let estimated = decoder_steps.map_or(DECODER_STEPS, |steps| steps * slower);
    WRITING + decoding.map_or(step.mul_f64(estimated), |decoding| decoding.mul_f64(SPARE))
}

/// How many steps there is time for.
fn fitting(left: Duration, step: Duration) -> usize {
    (left.as_secs_f64() / (step.as_secs_f64() * SPARE).max(1e-9)) as usize
}

/// The same request with so many steps to take; none where its steps cannot be changed.
fn fewer(request: &Request, steps: usize, pipeline: &Pipeline) -> Option<Request> {
    // The first of them may be left out for an init image.
    let asked = steps * request.steps_asked() / request.steps();
    request.with_steps(asked.max(1), pipeline.manifest()).ok().filter(|fewer| fewer.steps() <= steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn as_many_steps_fit_as_there_is_time_for() {
        assert_eq!(fitting(MS(1000), MS(100)), 9);
        assert_eq!(fitting(MS(109), MS(100)), 0);
        assert_eq!(fitting(MS(0), MS(100)), 0);
        // What takes no time always fits.
        assert!(fitting(MS(1), MS(0)) > 1000);
    }

    #[test]
    fn decoding_is_estimated_until_it_was_measured() {
        assert_eq!(after_steps(None, MS(100), Some(2.0), 3.0), MS(600) + WRITING);
        assert_eq!(after_steps(None, MS(100), None, 3.0), MS(400) + WRITING);
        assert_eq!(after_steps(Some(MS(100)), MS(7), Some(2.0), 3.0), MS(110) + WRITING);
    }
}
