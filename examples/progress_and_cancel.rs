//! Progress and cancel: prints each step, and cancels after a number of milliseconds if one is given:
//! `cargo run --release --example progress_and_cancel -- 200`.

use std::env;
use std::error::Error;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use calotype::ErrorKind;
use calotype::model::Model;
use calotype::pipeline::{Options, Pipeline};
use calotype::request::{Draft, Request};

fn main() -> Result<(), Box<dyn Error>> {
    let wait_ms = env::args().nth(1).map(|text| text.parse()).transpose()?;
    let mut pipeline = Pipeline::open(&Model::built_in()?, &Options::default())?;
    let draft = Draft { prompt: "a blue bird".into(), seed: Some(1), ..Draft::default() };
    let request = Request::new(draft, pipeline.manifest())?;

    // Any thread may ask for the end of the run; the callback sees it after the step that is running.
    let is_cancelled = Arc::new(AtomicBool::new(false));
    if let Some(wait_ms) = wait_ms {
        let is_cancelled = Arc::clone(&is_cancelled);
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(wait_ms));
            is_cancelled.store(true, Ordering::Relaxed);
        });
    }

    let started = Instant::now();
    let result = pipeline.generate(&request, |progress| {
        println!("step {} of {}, {:.2} s", progress.done, progress.steps, started.elapsed().as_secs_f64());
        match is_cancelled.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    match result {
        Ok(picture) => picture.image.save("progress.png")?,
        // The pipeline can be used again.
        Err(error) if error.kind() == ErrorKind::Cancelled => println!("cancelled: {error}"),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
