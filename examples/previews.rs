//! Previews: what a run looks like after each step, enlarged to the image's size, at next to no cost:
//! `cargo run --release --example previews`.

use std::error::Error;

use calotype::{Model, Options, Pipeline, Recipe};
use image::imageops::{FilterType, resize};

fn main() -> Result<(), Box<dyn Error>> {
    let mut pipeline = Pipeline::open(&Model::built_in()?, &Options::default())?;
    let recipe = Recipe {
        prompt: "a red apple on a blue background".into(),
        seed: Some(7),
        steps: Some(8),
        ..Recipe::default()
    };
    let request = pipeline.request(recipe)?;
    let size = request.size();
    let mut run = pipeline.begin(&request)?;
    while !run.is_done() {
        let progress = run.step()?;
        // One pixel a cell; nothing for a model whose latents are of an unknown kind.
        if let Some(preview) = run.preview()? {
            let preview = resize(&preview, size.width_px(), size.height_px(), FilterType::CatmullRom);
            preview.save(format!("preview-{}.png", progress.done))?;
        }
    }
    run.finish()?.image.save("previews.png")?;
    Ok(())
}
