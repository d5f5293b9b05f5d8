//! Cancelling calls of the VAE and the opening of a session. A test program of its own, for it goes by time and memory.

#![cfg(feature = "builtin")]

use std::io::{BufRead, BufReader};
use std::num::NonZeroUsize;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use calotype::engine::{Cancel, Session, SessionOptions, TensorRef, abandoned_for, exit};
use calotype::graph::Graph;
use calotype::graph::proto::{
    Dimension, DimensionValue, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto,
    TensorType, TypeProto, TypeValue, ValueInfoProto,
};
use calotype::model::Model;
use calotype::pipeline::{Options, Pipeline};
use calotype::plan::{Budget, Plan};
use calotype::recipe::Recipe;
use calotype::request::Request;
use calotype::tensor::PixelSize;
use calotype::weights::Weights;
use calotype::{Error, ErrorKind};
use image::{Rgb, RgbImage};
use prost::Message as _;

/// What one test has in memory is in the plans of the other.
static ALONE: Mutex<()> = Mutex::new(());

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
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
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

/// Rows and columns of matrices whose product takes about a second.
const SIDE: usize = 3072;
/// How often it is cancelled, where it has always ended before.
const TRIES: usize = 5;

/// A session of a single operator, `y = x w`.
struct Product {
    session: Session,
    cancel: Cancel,
    x: Vec<f32>,
}

impl Product {
    fn open() -> Self {
        const F32: i32 = 1;
        let value = |name: &str| {
            let dim =
                |_| Dimension { value: Some(DimensionValue::DimValue(SIDE as i64)), ..Default::default() };
            let shape = Some(TensorShapeProto { dim: (0..2).map(dim).collect() });
            let tensor = TypeValue::TensorType(TensorType { elem_type: Some(F32), shape });
            let kind = TypeProto { value: Some(tensor), ..Default::default() };
            ValueInfoProto { name: Some(name.into()), r#type: Some(kind), ..Default::default() }
        };
        let graph = GraphProto {
            name: Some("product".into()),
            node: vec![NodeProto {
                op_type: Some("MatMul".into()),
                input: vec!["x".into(), "w".into()],
                output: vec!["y".into()],
                ..Default::default()
            }],
            input: vec![value("x"), value("w")],
            output: vec![value("y")],
            ..Default::default()
        };
        let opset = OperatorSetIdProto { domain: None, version: Some(18) };
        let model = ModelProto {
            ir_version: Some(9),
            graph: Some(graph),
            opset_import: vec![opset],
            ..Default::default()
        };
        let graph = Graph::decode("product", &model.encode_to_vec()).unwrap();
        let options = SessionOptions::new(NonZeroUsize::MIN);
        let session = Session::open(graph.bind(Arc::new(Weights::default())).unwrap(), &options).unwrap();
        let x = (0..SIDE * SIDE).map(|at| (at % 251) as f32 / 251.0).collect();
        Self { session, cancel: options.cancel, x }
    }

    fn run(&mut self) -> Result<Vec<f32>, Error> {
        let tensor = || TensorRef::new(&[SIDE, SIDE], &self.x[..]);
        Ok(self.session.compute(&[("x", tensor()), ("w", tensor())], &["y"])?.remove(0).data)
    }

    /// Cancels it in the middle of the operator, and gets the error while that still computes: after an eighth of the time that it
    /// took, which is measured again where other programs made it longer or shorter.
    fn cancel_within(&mut self, mut took: Duration) {
        for _ in 0..TRIES {
            let cancel = self.cancel.clone();
            let canceller = thread::spawn(move || {
                thread::sleep(took / 8);
                cancel.cancel();
            });
            let result = self.run();
            let is_abandoned = abandoned_for().is_some();
            canceller.join().unwrap();
            self.cancel.reset();
            if let Err(error) = &result {
                assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
            }
            if result.is_err() && is_abandoned {
                return;
            }
            let started = Instant::now();
            self.run().unwrap();
            took = started.elapsed();
        }
        panic!("expected an error while the operator computes, got it {TRIES} times when it had ended");
    }
}

/// ONNX Runtime does not look up before an operator is done, but its caller gets the error at once. The session goes on once
/// the operator has ended; what is within a budget waits for that, and the end of the process need not.
#[test]
fn an_operator_that_takes_long_is_abandoned() {
    const CHILD: &str = "CALOTYPE_TEST_ENDS";
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut product = Product::open();
    let started = Instant::now();
    let expected = product.run().unwrap();
    let took = started.elapsed();
    if let Some(way) = std::env::var_os(CHILD) {
        product.cancel_within(took);
        println!("took {} ms", took.as_millis());
        if way == "at once" { exit(7) } else { std::process::exit(8) }
    }
    product.cancel_within(took);
    assert_eq!(product.run().unwrap(), expected);
    assert_eq!(abandoned_for(), None);

    product.cancel_within(took);
    drop(product);
    assert!(abandoned_for().is_some(), "whoever drops it does not wait");
    let model = Model::built_in().unwrap();
    let session = Options::default().session;
    let small = Recipe { size: Some(PixelSize::new(64, 64).unwrap()), ..Recipe::default() };
    let request = Request::new(small, &model).unwrap();
    let plan = Plan::new(&model, &request, &session, Budget::of_bytes(1 << 40)).unwrap();
    drop(Pipeline::open(&model, &Options { session, plan: Some(plan) }).unwrap());
    assert_eq!(abandoned_for(), None, "a plan does not count it");

    for (way, code) in [("at once", 7), ("in order", 8)] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "an_operator_that_takes_long_is_abandoned", "--nocapture"])
            .env(CHILD, way)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = lines.map(Result::unwrap).find(|line| line.contains("took ")).unwrap();
        let ends = Instant::now();
        assert_eq!(child.wait().unwrap().code(), Some(code));
        let took = said.split("took ").nth(1).unwrap().strip_suffix(" ms").unwrap().parse().unwrap();
        let (ended, took) = (ends.elapsed(), Duration::from_millis(took));
        assert!(way != "at once" || ended < took / 2, "{ended:?} of {took:?}");
    }
}
