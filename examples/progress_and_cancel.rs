//! Progress and cancel: prints each step, and cancels after a number of milliseconds if one is given:
//! `cargo run --release --example progress_and_cancel -- 200`.

use std::env;
use std::error::Error;
use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use calotype::{ErrorKind, Model, Options, Pipeline, Recipe};

fn main() -> Result<(), Box<dyn Error>> {
    let wait_ms = env::args().nth(1).map(|text| text.parse()).transpose()?;
    let mut pipeline = Pipeline::open(&Model::built_in()?, &Options::default())?;
    let recipe = Recipe { prompt: "a blue bird".into(), seed: Some(1), ..Recipe::default() };
    let request = pipeline.request(recipe)?;

    // Any thread can cancel, also in the middle of a U-Net call. `ControlFlow::Break` ends the run after a step.
    if let Some(wait_ms) = wait_ms {
        let cancel = pipeline.cancel();
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(wait_ms));
            cancel.cancel();
        });
    }

    let started = Instant::now();
    let result = pipeline.generate(&request, |progress| {
        println!("step {} of {}, {:.2} s", progress.done, progress.steps, started.elapsed().as_secs_f64());
        ControlFlow::Continue(())
    });
    match result {
        Ok(output) => output.image.save("progress.png")?,
        // The pipeline can be used again after `Cancel::reset`.
        Err(error) if error.kind() == ErrorKind::Cancelled => println!("cancelled: {error}"),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
