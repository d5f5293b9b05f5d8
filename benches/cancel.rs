//! How long after a cancel a call returns, in a denoising step, a decode, an encode and the opening of the model:
//! `cargo bench --bench cancel -- [MODEL] [SIZE] [COUNT]`; the built-in model, 128 and 20 when absent.

use std::env;
use std::error::Error;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use calotype::ErrorKind;
use calotype::engine::Cancel;
use calotype::model::Model;
use calotype::pipeline::{Options, Pipeline};
use calotype::recipe::Recipe;
use calotype::tensor::PixelSize;
use image::RgbImage;

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo bench` adds a flag of its own.
    let mut arguments = env::args().skip(1).filter(|argument| argument != "--bench");
    let model = arguments.next();
    let side: u32 = arguments.next().map_or(Ok(128), |text| text.parse())?;
    let count: u32 = arguments.next().map_or(Ok(20), |text| text.parse())?;
    let model = match model.as_deref() {
        None | Some("builtin") => Model::built_in()?,
        Some(path) => Model::open(Path::new(path))?,
    };
    let options = Options::default();
    let cancel = options.session.cancel.clone();
    measure("open", count, &cancel, || Pipeline::open(&model, &options).map(drop))?;
    let mut pipeline = Pipeline::open(&model, &options)?;
    let size = PixelSize::new(side, side)?;
    let recipe = Recipe { size: Some(size), seed: Some(1), steps: Some(20), ..Recipe::default() };
    let request = pipeline.request(recipe)?;
    // A run ends with the step that was cancelled, so that each has its own.
    measure("step", count, &cancel, || {
        let mut run = pipeline.begin(&request)?;
        run.step().map(drop)
    })?;
    let latents = vec![0.1; pipeline.manifest().latents.shape(size)?.len()];
    measure("decode", count, &cancel, || pipeline.decode_latents(&latents, size).map(drop))?;
    let image = RgbImage::new(side, side);
    measure("encode", count, &cancel, || pipeline.encode_image(&image).map(drop))?;
    Ok(())
}

/// Cancels a call at `count` moments evenly spread over its time.
fn measure(
    name: &str,
    count: u32,
    cancel: &Cancel,
    mut call: impl FnMut() -> Result<(), calotype::Error>,
) -> Result<(), calotype::Error> {
    call()?;
    let started = Instant::now();
    call()?;
    let took = started.elapsed();
    let mut waits: Vec<Duration> = Vec::new();
    for at in 0..count {
        let (result, wait) = thread::scope(|scope| {
            let canceller = scope.spawn(|| {
                thread::sleep(took * (2 * at + 1) / (2 * count));
                let at = Instant::now();
                cancel.cancel();
                at
            });
            let result = call();
            let end = Instant::now();
            let cancelled = canceller.join().expect("it does not panic");
            (result, end.saturating_duration_since(cancelled))
        });
        cancel.reset();
        match result {
            Err(error) if error.kind() == ErrorKind::Cancelled => waits.push(wait),
            Err(error) => return Err(error),
            // It was faster this time.
            Ok(()) => {}
        }
    }
    waits.sort_unstable();
    let ms = |wait: Option<&Duration>| wait.map_or(f64::NAN, |wait| wait.as_secs_f64() * 1e3);
    let part = |tenths: usize| ms(waits.get((waits.len() * tenths / 10).min(waits.len().saturating_sub(1))));
    println!(
        "{name}: {:.2} s, cancelled {} of {count} times; returned after {:.0} ms (median), {:.0} ms (9 of 10), {:.0} ms (all)",
        took.as_secs_f64(),
        waits.len(),
        part(5),
        part(9),
        ms(waits.last()),
    );
    Ok(())
}
