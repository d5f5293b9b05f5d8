//! Embedding with a fixed memory budget: `cargo run --release --example fixed_budget -- 96MiB`.
//! The plan is made once for the largest request; every other request runs within it.

use std::env;
use std::error::Error;
use std::io::{self, Write};
use std::ops::ControlFlow;

use calotype::engine::{Heap, Refusal, disable_telemetry, exit_when_exhausted};
use calotype::memory::peak_bytes;
use calotype::weights::exit_when_truncated;
use calotype::{Budget, Model, Options, Pipeline, Plan, Recipe, Request};

/// A failed allocation of Rust code ends the process with exit code 5 instead of a signal.
#[global_allocator]
static HEAP: Heap = Heap;

/// Must not allocate.
fn report(refusal: &Refusal) {
    let _ = writeln!(io::stderr(), "{refusal}");
}

fn main() -> Result<(), Box<dyn Error>> {
    // Before any other thread: it writes the environment.
    disable_telemetry();
    // The same for threads of ONNX Runtime, and exit code 4 for a model file that is truncated while in use.
    exit_when_exhausted(report);
    exit_when_truncated("fixed_budget: ", None);

    let budget: Budget = env::args().nth(1).unwrap_or_else(|| "96MiB".into()).parse()?;
    let model = Model::built_in()?;
    let prompts = ["a red apple", "a green cat on a pink background", "a rocket, 3d style"];
    let recipe = |prompt: &str| Recipe { prompt: prompt.into(), seed: Some(1), ..Recipe::default() };
    let requests = prompts.map(|prompt| Request::new(recipe(prompt), &model));
    let requests = requests.into_iter().collect::<Result<Vec<_>, _>>()?;

    // A request with more tokens, pixels or predictions per step than the planned one would be refused.
    let largest = &requests[1];
    let mut options = Options::default();
    let plan = Plan::new(&model, largest, &options.session, budget)?;
    println!("planned peak: {} KiB of {} KiB", plan.peak_bytes() >> 10, budget.bytes() >> 10);
    options.plan = Some(plan);

    let mut pipeline = Pipeline::open(&model, &options)?;
    for (index, request) in requests.iter().enumerate() {
        let generated = pipeline.generate(request, |_| ControlFlow::Continue(()))?;
        generated.image.save(format!("fixed_budget-{index}.png"))?;
    }
    // Known on Linux only.
    if let Some(peak_bytes) = peak_bytes() {
        println!("measured peak: {} KiB", peak_bytes >> 10);
    }
    Ok(())
}
