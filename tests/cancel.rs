//! Cancelling calls of the VAE and the opening of a session. A test program of its own, for it goes by time and memory.

#![cfg(feature = "builtin")]

use std::num::NonZeroUsize;
use std::thread;
use std::time::Instant;

use calotype::engine::{Cancel, Session, SessionOptions};
use calotype::model::Model;
use calotype::pipeline::{Options, Pipeline};
use calotype::plan::{Budget, Plan};
use calotype::recipe::Recipe;
use calotype::request::Request;
use calotype::tensor::PixelSize;
use calotype::{Error, ErrorKind};
use image::{Rgb, RgbImage};

/// Cancels from another thread in the middle of `call`, which is made again, and cancelled earlier, where it ended before.
/// Gives its error.
fn cancelled_within<T>(cancel: &Cancel, mut call: impl FnMut() -> Result<T, Error>) -> Error {
    let started = Instant::now();
    call().unwrap();
    let took = started.elapsed();
    for part in [2, 3, 4, 6, 8] {
        let result = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(took / part);
                cancel.cancel();
            });
            call()
        });
        cancel.reset();
        if let Err(error) = result {
            return error;
        }
    }
    panic!("a call of {took:?} was not cancelled");
}

/// Inside an encode, inside a decode in tiles and inside the opening of a session; what was cancelled gives the same as before
/// when it is called again.
#[test]
fn the_vae_and_opening_end_when_they_are_cancelled() {
    let model = Model::built_in().unwrap();
    let size = PixelSize::new(512, 512).unwrap();
    let image = RgbImage::from_fn(512, 512, |x, y| Rgb([x as u8, y as u8, (x * y) as u8]));
    let mut session = Options::default().session;
    let mut whole = Pipeline::open(&model, &Options::default()).unwrap();
    let cancel = whole.cancel();
    let latents = whole.encode_image(&image).unwrap();
    let error = cancelled_within(&cancel, || whole.encode_image(&image));
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert_eq!(whole.encode_image(&image).unwrap(), latents);
    drop(whole);

    let request = Request::new(Recipe { size: Some(size), ..Recipe::default() }, &model).unwrap();
    let plan = |bytes| Plan::new(&model, &request, &session, Budget::of_bytes(bytes)).unwrap();
    let has_tiles = |plan: &Plan| {
        plan.stages().iter().any(|stage| stage.stage == "vae_decoder" && stage.tile_cells.is_some())
    };
    let least = plan(1 << 40).least_bytes();
    let plan = (10..40).rev().step_by(4).map(|tenths| plan(least / 10 * tenths + 9)).find(has_tiles).unwrap();
    session.cancel = Cancel::new();
    let cancel = session.cancel.clone();
    let mut tiled = Pipeline::open(&model, &Options { session, plan: Some(plan) }).unwrap();
    let decoded = tiled.decode_latents(&latents, size).unwrap();
    let error = cancelled_within(&cancel, || tiled.decode_latents(&latents, size));
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert_eq!(tiled.decode_latents(&latents, size).unwrap(), decoded);

    // Weights that are repacked: the longest way to open one.
    let mut options = SessionOptions::new(NonZeroUsize::MIN);
    options.cancel = cancel.clone();
    let open = || Session::open(model.unet().bind()?, &options);
    let error = cancelled_within(&cancel, open);
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert!(open().is_ok());
}
