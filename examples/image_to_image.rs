//! Image to image: `cargo run --release --example image_to_image -- "a green cat" init.png out.png 0.6`.
//! Without arguments the init image is generated first.

use std::env;
use std::error::Error;
use std::ops::ControlFlow;
use std::path::Path;

use calotype::{Budget, ImageFile, Model, Options, Pipeline, Recipe};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let prompt = arguments.next().unwrap_or_else(|| "a green cat".into());
    let init = arguments.next();
    let output = arguments.next().unwrap_or_else(|| "image_to_image.png".into());
    let strength = arguments.next().map(|text| text.parse()).transpose()?;

    let mut pipeline = Pipeline::open(&Model::built_in()?, &Options::default())?;
    let init = match init {
        // Reads the header only; the pixels are decoded by `Request::load`.
        Some(path) => ImageFile::open(Path::new(&path))?.into(),
        None => {
            let apple = Recipe { prompt: "a red apple".into(), seed: Some(1), ..Recipe::default() };
            let request = pipeline.request(apple)?;
            pipeline.generate(&request, |_| ControlFlow::Continue(()))?.image.into()
        }
    };
    // The strength is the share of the steps that run: 0 keeps the init image, 1 replaces it.
    let recipe = Recipe { prompt, init: Some(init), strength, seed: Some(2), ..Recipe::default() };
    let request = pipeline.request(recipe)?;
    for note in request.load(Budget::of_this_machine().bytes())? {
        eprintln!("{note}");
    }
    let generated = pipeline.generate(&request, |_| ControlFlow::Continue(()))?;
    generated.image.save(&output)?;
    println!("{output}: strength {}, {} steps", request.strength().unwrap_or(1.0), request.steps());
    Ok(())
}
