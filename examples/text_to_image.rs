//! Text to image: `cargo run --release --example text_to_image -- "a red apple" apple.png [MODEL]`.

use std::env;
use std::error::Error;
use std::ops::ControlFlow;

use calotype::{Model, Options, Pipeline, Recipe};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let prompt = arguments.next().unwrap_or_else(|| "a red apple on a blue background".into());
    let output = arguments.next().unwrap_or_else(|| "text_to_image.png".into());
    let model = match arguments.next() {
        Some(path) => Model::open(path.as_ref())?,
        None => Model::built_in()?,
    };

    let mut pipeline = Pipeline::open(&model, &Options::default())?;
    // What is not set gets the model's default: size, steps, guidance scale, sampler. The seed is random if not set.
    let recipe = Recipe { prompt, seed: Some(1), ..Recipe::default() };
    let request = pipeline.request(recipe)?;
    let generated = pipeline.generate(&request, |_| ControlFlow::Continue(()))?;
    generated.image.save(&output)?;
    println!("{output}: {}, seed {}, {} steps", request.size(), request.seed(), request.steps());
    Ok(())
}
