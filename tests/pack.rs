//! Packing and verifying end to end: the built-in model into bundles, in every form, onto good and bad places, whole, cut
//! short, killed and damaged.

#![cfg(all(feature = "cli", feature = "builtin"))]

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use calotype::adapter::lora::Lora;
use calotype::engine::SessionOptions;
use calotype::model::Model;
use calotype::pack::{self, Options, Precision, Report};
use calotype::pipeline::{self, Pipeline};
use calotype::recipe::Recipe;
use calotype::{Error, ErrorKind};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

fn options(weights: Option<Precision>) -> Options {
    Options { weights, compute: None, name: None, licence: None, threads: NonZeroUsize::MIN, memory: None }
}

fn pack_with(destination: &Path, options: &Options) -> Result<Report, Error> {
    pack::pack(&Model::built_in().unwrap(), destination, options, |_| ())
}

fn pack_into(destination: &Path, weights: Option<Precision>) -> Report {
    pack_with(destination, &options(weights)).unwrap()
}

#[track_caller]
fn refusal(result: Result<Report, Error>, kind: ErrorKind, message: &str) {
    let error = result.expect_err(message);
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(message), "expected {message:?} in {error}");
}

/// The pixels of a small image.
fn image(model: &Model) -> Vec<u8> {
    let mut pipeline = Pipeline::open(
        model,
        &pipeline::Options { session: SessionOptions::new(NonZeroUsize::MIN), plan: None },
    )
    .unwrap();
    let draft = Recipe { prompt: "a red apple".into(), steps: Some(3), seed: Some(5), ..Recipe::default() };
    let request = pipeline.request(draft).unwrap();
    pipeline.generate(&request, |_| ControlFlow::Continue(())).unwrap().image.into_raw()
}

/// The root of the mean square difference of two images, in steps of 1/255.
fn distance(a: &[u8], b: &[u8]) -> f64 {
    let squares = a.iter().zip(b).map(|(a, b)| f64::from(i32::from(*a) - i32::from(*b)).powi(2));
    (squares.sum::<f64>() / a.len() as f64).sqrt()
}

/// Every file of a folder, by its name in it.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fn collect(folder: &Path, prefix: &str, into: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let name = format!("{prefix}{}", entry.file_name().into_string().unwrap());
            match entry.file_type().unwrap().is_dir() {
                true => collect(&entry.path(), &format!("{name}/"), into),
                false => drop(into.insert(name, fs::read(entry.path()).unwrap())),
            }
        }
    }
    let mut files = BTreeMap::new();
    collect(folder, "", &mut files);
    files
}

/// The files of the built-in model's bundle.
fn whole() -> &'static BTreeMap<String, Vec<u8>> {
    static WHOLE: OnceLock<BTreeMap<String, Vec<u8>>> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let scratch = TempDir::new().unwrap();
        pack_into(&scratch.path().join("bundle"), None);
        files(&scratch.path().join("bundle"))
    })
}

/// A bundle of the built-in model, without packing it again.
fn write_whole(folder: &Path) {
    for (name, bytes) in whole() {
        fs::create_dir_all(folder.join(name).parent().unwrap()).unwrap();
        fs::write(folder.join(name), bytes).unwrap();
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Changes a file of a bundle, and what the manifest says of it.
fn edit(bundle: &Path, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let (path, manifest) = (bundle.join(name), bundle.join("calotype.json"));
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(path, &bytes).unwrap();
    let mut json: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    json["files"][name]["sha256"] = hash.into();
    json["files"][name]["len_bytes"] = bytes.len().into();
    fs::write(manifest, serde_json::to_vec(&json).unwrap()).unwrap();
}

fn calotype(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_calotype"));
    command.args(args).stdin(Stdio::null());
    command
}

#[track_caller]
fn json(output: Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

mod form {
    use super::*;

    #[test]
    fn kept_draws_the_same_image_bit_for_bit() {
        let scratch = TempDir::new().unwrap();
        let bundle = scratch.path().join("bundle");
        let report = pack_into(&bundle, None);
        for component in &report.components {
            assert!(!component.errors.is_empty());
            assert!(component.errors.iter().all(|error| error.relative == 0.0), "{component:?}");
        }
        let (source, packed) = (Model::built_in().unwrap(), Model::open(&bundle).unwrap());
        assert_eq!(image(&packed), image(&source));
        assert_eq!(names(scratch.path()), ["bundle"]);
        // And so does a bundle of the bundle, whose files are the same again.
        let again = scratch.path().join("again");
        pack::pack(&packed, &again, &options(None), |_| ()).unwrap();
        assert_eq!(files(&again), files(&bundle));
    }

    const COMPONENTS: [&str; 4] = ["text_encoder", "unet", "vae_encoder", "vae_decoder"];

    /// Bounds of the relative errors, about twice what was measured: 7.3e-3, 4.1e-3, 9.3e-3 and 1.7e-2.
    #[test]
    fn int8_is_near() {
        is_near(Precision::Int8, [0.015, 0.008, 0.019, 0.034], 0.6, 8.0);
    }

    /// Measured: 4.2e-2 and 1.7e-2. The VAE has convolutions only, which are 8-bit here, too.
    #[test]
    fn int4_is_near() {
        is_near(Precision::Int4, [0.085, 0.034, 0.019, 0.034], 0.5, 16.0);
    }

    /// The built-in model's weights are halves, which floats hold exactly.
    #[test]
    fn f32_is_the_same() {
        is_near(Precision::F32, [0.0; 4], 2.1, 0.0);
    }

    #[test]
    fn f16_is_the_same() {
        is_near(Precision::F16, [0.0; 4], 1.1, 0.0);
    }

    #[track_caller]
    fn is_near(precision: Precision, most: [f64; 4], most_bytes: f64, most_distance: f64) {
        let scratch = TempDir::new().unwrap();
        let bundle = scratch.path().join("bundle");
        let report = pack_into(&bundle, Some(precision));
        let packed: Vec<&str> = report.components.iter().map(|component| component.name).collect();
        assert_eq!(packed, COMPONENTS);
        for (component, most) in report.components.iter().zip(most) {
            let [error] = &component.errors[..] else { panic!("{component:?}") };
            // An error far below its bound would be that of another form.
            assert!((most / 20.0..=most).contains(&error.relative), "{}: {error:?}", component.name);
        }
        let bytes = |of: fn(&pack::PackedComponent) -> f64| report.components.iter().map(of).sum::<f64>();
        let ratio = bytes(|c| c.packed_bytes as f64) / bytes(|c| c.source_bytes as f64);
        assert!((most_bytes * 0.8..=most_bytes).contains(&ratio), "{ratio} times as large");

        let verified = pack::verify(&bundle).unwrap();
        assert_eq!(verified.components, COMPONENTS);
        let distance = distance(&image(&Model::open(&bundle).unwrap()), &image(&Model::built_in().unwrap()));
        assert!((most_distance / 20.0..=most_distance).contains(&distance), "images are {distance} apart");

        // Integers cannot be made of integers; but they can be packed again as they are.
        if [Precision::Int8, Precision::Int4].contains(&precision) {
            let packed = Model::open(&bundle).unwrap();
            let again = scratch.path().join("again");
            let quantised = "weights: expected a model in floats to make int8 of, got one whose";
            let twice = pack::pack(&packed, &again, &options(Some(Precision::Int8)), |_| ());
            refusal(twice, ErrorKind::Usage, quantised);
            assert_eq!(names(scratch.path()), ["bundle"]);
            pack::pack(&packed, &again, &options(None), |_| ()).unwrap();
            assert_eq!(files(&again), files(&bundle));
        }
    }

    /// A LoRA file of the U-Net's attention, of rank 1, is in the weights of the bundle.
    #[test]
    fn lora_files_are_merged() {
        let scratch = TempDir::new().unwrap();
        let model = Model::built_in().unwrap();
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, weight) in model.unet().weights().iter() {
            let (Some(layer), [out, inputs]) = (name.strip_suffix("to_v.weight"), weight.shape()) else {
                continue;
            };
            for (part, shape) in [("down", [1, *inputs]), ("up", [*out, 1])] {
                let begin = data.len();
                let numbers = (0..shape[0] * shape[1]).map(|at| ((at * 7 % 11) as f32 - 5.0) * 0.02);
                data.extend(numbers.flat_map(f32::to_le_bytes));
                let name = format!("lora_unet_{}to_v.lora_{part}.weight", layer.replace('.', "_"));
                let tensor = json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()] });
                header.insert(name, tensor);
            }
        }
        let header = serde_json::to_vec(&header).unwrap();
        let path = scratch.path().join("lora.safetensors");
        fs::write(&path, [&(header.len() as u64).to_le_bytes(), &header[..], &data].concat()).unwrap();
        let mut adapted = Model::built_in().unwrap();
        adapted.add_loras(vec![(Lora::open(&path).unwrap(), 1.0)]).unwrap();
        let bundle = scratch.path().join("bundle");
        let report = pack::pack(&adapted, &bundle, &options(None), |_| ()).unwrap();
        for component in &report.components {
            assert!(component.errors.iter().all(|error| error.relative == 0.0), "{component:?}");
        }
        let packed = image(&Model::open(&bundle).unwrap());
        assert_eq!(packed, image(&adapted));
        assert_ne!(packed, image(&model));
    }

    #[test]
    fn the_same_model_gives_the_same_bytes() {
        let scratch = TempDir::new().unwrap();
        let bundle = scratch.path().join("bundle");
        pack_into(&bundle, None);
        assert_eq!(&files(&bundle), whole());
    }

    #[test]
    fn numbers_that_it_cannot_hold_leave_nothing() {
        let scratch = TempDir::new().unwrap();
        let [source, bundle] = ["source", "bundle"].map(|name| scratch.path().join(name));
        pack_into(&source, Some(Precision::F32));
        // The last four bytes of a file are a float.
        let set = |x: f32| {
            edit(&source, "weights/vae_decoder.safetensors", |file| {
                file.splice(file.len() - 4.., x.to_le_bytes());
            });
            Model::open(&source).unwrap()
        };
        let refuses = |x: f32, weights, message: &str| {
            let result = pack::pack(&set(x), &bundle, &options(weights), |_| ());
            let kind = result.as_ref().map_or_else(Error::kind, |_| panic!("{x} was packed"));
            assert!([ErrorKind::Model, ErrorKind::Numeric].contains(&kind));
            refusal(result, kind, message);
            assert_eq!(names(scratch.path()), ["source"]);
        };
        refuses(1e6, Some(Precision::F16), ": expected numbers up to 65504, the largest of F16, got 1000000");
        refuses(f32::NAN, Some(Precision::F16), ": expected finite numbers, got NaN");
        refuses(
            f32::NAN,
            None,
            "vae_decoder: output sample: expected finite numbers from the source, got NaN",
        );
    }

    #[test]
    fn name_and_licence_are_those_given() {
        let scratch = TempDir::new().unwrap();
        let bundle = scratch.path().join("bundle");
        let own = Options {
            name: Some("mine, é".into()),
            licence: Some("CC-BY-4.0 OR (MIT AND LicenseRef-x)".into()),
            ..options(None)
        };
        pack_with(&bundle, &own).unwrap();
        let packed = Model::open(&bundle).unwrap();
        assert_eq!(packed.manifest().name, "mine, é");
        assert_eq!(packed.manifest().licence, "CC-BY-4.0 OR (MIT AND LicenseRef-x)");
        let other = scratch.path().join("other");
        for name in ["", " ", "a\nb"] {
            let bad = Options { name: Some(name.into()), ..options(None) };
            refusal(pack_with(&other, &bad), ErrorKind::Usage, "name: expected a name, got ");
        }
        for licence in ["", "MIT\n", "free for all!"] {
            let bad = Options { licence: Some(licence.into()), ..options(None) };
            refusal(pack_with(&other, &bad), ErrorKind::Usage, "licence: expected an SPDX expression");
        }
        assert_eq!(names(scratch.path()), ["bundle"]);
    }
}

mod destination {
    use super::*;

    fn refuses_as_taken(path: &Path) {
        let message = format!("{}: expected a new path, got one that exists", path.display());
        refusal(pack_with(path, &options(None)), ErrorKind::Output, &message);
    }

    #[test]
    fn taken() {
        let scratch = TempDir::new().unwrap();
        let (folder, file) = (scratch.path().join("folder"), scratch.path().join("file"));
        fs::create_dir(&folder).unwrap();
        fs::write(&file, "precious").unwrap();
        refuses_as_taken(&folder);
        refuses_as_taken(&file);
        assert_eq!(names(scratch.path()), ["file", "folder"]);
        assert_eq!((names(&folder), fs::read(&file).unwrap()), (vec![], b"precious".to_vec()));
    }

    #[cfg(unix)]
    #[test]
    fn taken_by_a_link_to_nowhere() {
        let scratch = TempDir::new().unwrap();
        let link = scratch.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        refuses_as_taken(&link);
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("nowhere"));
        assert_eq!(names(scratch.path()), ["link"]);
    }

    #[test]
    fn without_a_name() {
        for path in ["", "/", "..", "/tmp/.."] {
            let message = "expected the name of a new folder";
            refusal(pack_with(Path::new(path), &options(None)), ErrorKind::Output, message);
        }
    }

    #[test]
    fn in_a_folder_that_is_none_or_not_there() {
        let scratch = TempDir::new().unwrap();
        let missing = scratch.path().join("none/bundle");
        refusal(pack_with(&missing, &options(None)), ErrorKind::Output, "none/bundle.partial: No such file");
        let file = scratch.path().join("file");
        fs::write(&file, "").unwrap();
        let message = "file/bundle.partial: Not a directory";
        refusal(pack_with(&file.join("bundle"), &options(None)), ErrorKind::Output, message);
        assert_eq!(names(scratch.path()), ["file"]);
    }

    /// Not even root can make a folder in `/proc`.
    #[cfg(target_os = "linux")]
    #[test]
    fn in_a_folder_that_cannot_be_written_to() {
        let message = "/proc/bundle.partial: ";
        refusal(pack_with(Path::new("/proc/bundle"), &options(None)), ErrorKind::Output, message);
    }

    #[test]
    fn partial_that_is_somebodys() {
        let scratch = TempDir::new().unwrap();
        let (bundle, partial) = (scratch.path().join("bundle"), scratch.path().join("bundle.partial"));
        fs::create_dir(&partial).unwrap();
        fs::write(partial.join("letter"), "precious").unwrap();
        refusal(pack_with(&bundle, &options(None)), ErrorKind::Output, "bundle.partial: File exists");
        assert_eq!(fs::read(partial.join("letter")).unwrap(), b"precious");
        fs::remove_dir_all(&partial).unwrap();
        fs::write(&partial, "precious").unwrap();
        refusal(pack_with(&bundle, &options(None)), ErrorKind::Output, "bundle.partial: File exists");
        assert_eq!(fs::read(&partial).unwrap(), b"precious");
    }

    #[test]
    fn another_pack_is_at_work_on() {
        let scratch = TempDir::new().unwrap();
        let (bundle, partial) = (scratch.path().join("bundle"), scratch.path().join("bundle.partial"));
        fs::create_dir(&partial).unwrap();
        let journal = fs::File::create(partial.join("pack.journal")).unwrap();
        journal.lock().unwrap();
        let message = "bundle: destination is in use by another `calotype pack`";
        refusal(pack_with(&bundle, &options(None)), ErrorKind::Output, message);
        assert_eq!(names(&partial), ["pack.journal"]);
        drop(journal);
        pack_into(&bundle, None);
    }

    #[test]
    fn two_packs_at_once() {
        let scratch = TempDir::new().unwrap();
        let bundle = scratch.path().join("bundle");
        let results = std::thread::scope(|scope| {
            let packs = [(); 3].map(|()| scope.spawn(|| pack_with(&bundle, &options(None))));
            packs.map(|pack| pack.join().unwrap())
        });
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
        for error in results.into_iter().filter_map(Result::err) {
            assert_eq!(error.kind(), ErrorKind::Output, "{error}");
        }
        pack::verify(&bundle).unwrap();
    }
}

mod stopped {
    use super::*;

    /// A pack that was cut off by a full disk when the text encoder was written, and the U-Net was half so.
    struct Half {
        scratch: TempDir,
        bundle: PathBuf,
        partial: PathBuf,
    }

    impl Half {
        fn new() -> Self {
            let scratch = TempDir::new().unwrap();
            let (bundle, partial) = (scratch.path().join("bundle"), scratch.path().join("bundle.partial"));
            // A limit on the size of files ends the writing in the middle, as a disk that fills up does.
            let limited = "trap '' XFSZ; ulimit -f 10000; exec \"$@\"";
            let pack = calotype(&["pack", bundle.to_str().unwrap()]);
            let mut shell = Command::new("sh");
            shell.args(["-c", limited, "sh"]).arg(pack.get_program()).args(pack.get_args());
            let said = shell.output().unwrap();
            let stderr = String::from_utf8(said.stderr).unwrap();
            assert_eq!(said.status.code(), Some(9), "{stderr}");
            let message = "bundle.partial/weights/unet.safetensors: File too large";
            assert!(stderr.contains(message) && stderr.contains("; run the same command again"), "{stderr}");
            assert_eq!(names(scratch.path()), ["bundle.partial"]);
            let half = files(&partial);
            assert!(half["weights/text_encoder.safetensors"].len() > 3_000_000);
            assert!(half["weights/unet.safetensors"].len() < 6_000_000);
            Self { scratch, bundle, partial }
        }

        /// Packs again, checks what is left, and says whether the text encoder's weights were kept.
        fn packs_again(&self, model: &Model, weights: Option<Precision>) -> bool {
            let report = pack::pack(model, &self.bundle, &options(weights), |_| ()).unwrap();
            let kept: Vec<bool> = report.components.iter().map(|component| component.is_kept).collect();
            assert!(!kept[1..].contains(&true), "{kept:?}");
            assert_eq!(names(self.scratch.path()), ["bundle"]);
            kept[0]
        }

        /// The same with the built-in model as it is, which must come out whole.
        fn goes_on(&self) -> bool {
            let is_kept = self.packs_again(&Model::built_in().unwrap(), None);
            assert_eq!(&files(&self.bundle), whole());
            is_kept
        }
    }

    #[test]
    fn pack_goes_on_where_it_was() {
        let half = Half::new();
        // What a pack of another model may have left.
        fs::create_dir(half.partial.join("text_encoder_2")).unwrap();
        fs::write(half.partial.join("text_encoder_2/vocab.json"), "{}").unwrap();
        fs::write(half.partial.join("weights/vae_encoder.safetensors"), "").unwrap();
        assert!(half.goes_on());
    }

    #[test]
    fn damaged_files_are_made_again() {
        let half = Half::new();
        flip(&half.partial.join("weights/text_encoder.safetensors"), 2_000_000);
        assert!(!half.goes_on());
    }

    #[test]
    fn missing_files_are_made_again() {
        let half = Half::new();
        fs::remove_file(half.partial.join("weights/text_encoder.safetensors")).unwrap();
        assert!(!half.goes_on());
    }

    #[test]
    fn torn_journal_is_no_journal() {
        let half = Half::new();
        let journal = half.partial.join("pack.journal");
        let line = fs::read(&journal).unwrap();
        fs::write(&journal, &line[..line.len() - 9]).unwrap();
        assert!(!half.goes_on());
    }

    #[test]
    fn journal_that_is_none() {
        let half = Half::new();
        fs::write(half.partial.join("pack.journal"), b"\xff\xfe{\0").unwrap();
        assert!(!half.goes_on());
    }

    #[test]
    fn files_of_another_form_are_made_again() {
        let half = Half::new();
        assert!(!half.packs_again(&Model::built_in().unwrap(), Some(Precision::F32)));
        let len_bytes = |files: &BTreeMap<String, Vec<u8>>| files["weights/text_encoder.safetensors"].len();
        assert!(len_bytes(&files(&half.bundle)) > len_bytes(whole()) * 3 / 2);
    }

    /// Same names, same shapes, one other weight.
    #[test]
    fn files_of_another_model_are_made_again() {
        let (half, scratch) = (Half::new(), TempDir::new().unwrap());
        let other = scratch.path().join("other");
        write_whole(&other);
        let name = "weights/text_encoder.safetensors";
        edit(&other, name, |weights| weights[3_000_000] ^= 1);
        let weights = fs::read(other.join(name)).unwrap();
        assert!(!half.packs_again(&Model::open(&other).unwrap(), None));
        assert_eq!(files(&half.bundle)[name], weights);
    }

    /// Wherever the kill finds it, there is a whole bundle or none, and the next pack makes it whole.
    #[test]
    fn by_a_kill() {
        const HANG: Duration = Duration::from_secs(60);
        let scratch = TempDir::new().unwrap();
        let (bundle, partial) = (scratch.path().join("bundle"), scratch.path().join("bundle.partial"));
        let args = ["pack", bundle.to_str().unwrap(), "--weights", "int8", "--json"];
        let mut child = calotype(&args).stdout(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        let journal = partial.join("pack.journal");
        // When the text encoder is noted, the U-Net is next: seconds of work in a debug build.
        while fs::metadata(&journal).map_or(0, |found| found.len()) == 0 && !bundle.exists() {
            assert!(started.elapsed() < HANG, "no component in {HANG:?}");
            sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if !bundle.exists() {
            let noted = fs::read_to_string(&journal).unwrap().lines().count();
            let report = json(calotype(&args).output().unwrap());
            let components = report["components"].as_object().unwrap();
            let kept = components.values().filter(|component| component["kept"] == true).count();
            assert_eq!(kept, noted);
        }
        assert_eq!(names(scratch.path()), ["bundle"]);
        let whole = scratch.path().join("whole");
        pack_into(&whole, Some(Precision::Int8));
        assert_eq!(files(&bundle), files(&whole));
    }
}

mod compute {
    use std::io::Read as _;

    use calotype::graph::int8::WeightBits;
    use calotype::graph::proto::{GraphProto, ModelProto};
    use calotype::manifest::Compute;
    use calotype::pack::ComputeOptions;
    use calotype::weights::Weights;
    use flate2::Compression;
    use flate2::read::GzDecoder;
    use flate2::write::GzEncoder;
    use prost::Message as _;
    use std::io::Write as _;

    use super::*;

    /// Latents and pixels.
    type Drawn = (Vec<f32>, Vec<u8>);

    const PROMPTS: [&str; 2] = ["a red apple on a blue background", "a yellow star"];
    const UNET_GRAPH: &str = "graphs/unet.onnx.gz";
    const UNET_WEIGHTS: &str = "weights/unet.safetensors";

    fn options(form: Compute, max_error: Option<f64>) -> Options {
        let compute = ComputeOptions { form, weight_bits: None, max_error };
        Options { compute: Some(compute), ..super::options(None) }
    }

    /// The latents after 20 steps, and the pixels, of each prompt.
    fn drawn(model: &Model) -> Vec<Drawn> {
        let session = SessionOptions::new(NonZeroUsize::MIN);
        let mut pipeline = Pipeline::open(model, &pipeline::Options { session, plan: None }).unwrap();
        let each = PROMPTS.iter().zip(1..).map(|(prompt, seed)| {
            let recipe =
                Recipe { prompt: (*prompt).into(), steps: Some(20), seed: Some(seed), ..Recipe::default() };
            let request = pipeline.request(recipe).unwrap();
            let mut run = pipeline.begin(&request).unwrap();
            while !run.is_done() {
                run.step().unwrap();
            }
            let latents = run.latents().to_vec();
            (latents, run.finish().unwrap().image.into_raw())
        });
        each.collect()
    }

    /// Of each prompt, the error of the latents, relative to the exact ones, and how far the pixels are, in dB.
    fn losses(got: &[Drawn], exact: &[Drawn]) -> Vec<(f64, f64)> {
        let square = |x: f64| x * x;
        let of = |(got, exact): (&Drawn, &Drawn)| {
            let pairs = got.0.iter().zip(&exact.0);
            let error = pairs.map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum::<f64>();
            let length = exact.0.iter().map(|x| square((*x).into())).sum::<f64>();
            ((error / length).sqrt(), 20.0 * (255.0 / distance(&got.1, &exact.1)).log10())
        };
        got.iter().zip(exact).map(of).collect()
    }

    fn edit_unet(bundle: &Path, change: impl FnOnce(&mut GraphProto)) {
        edit(bundle, UNET_GRAPH, |file| {
            let mut bytes = Vec::new();
            GzDecoder::new(&file[..]).read_to_end(&mut bytes).unwrap();
            let mut model = ModelProto::decode(&bytes[..]).unwrap();
            change(model.graph.as_mut().unwrap());
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(&model.encode_to_vec()).unwrap();
            *file = encoder.finish().unwrap();
        });
    }

    /// 20 steps with the U-Net in integers, and that such a bundle is one like others. With zero points or scales of something
    /// else the same limits are exceeded.
    #[test]
    fn int8_keeps_the_image() {
        let scratch = TempDir::new().unwrap();
        let bundle = scratch.path().join("bundle");
        let report = pack_with(&bundle, &options(Compute::Int8, None)).unwrap();
        let unet = report.components.iter().find(|component| component.name == "unet").unwrap();
        let record = unet.compute.clone().unwrap();
        assert_eq!((record.form, record.weight_bits), (Compute::Int8, WeightBits::of_this_cpu()));
        // Measured: 0.9 %. Errors of single blocks are smaller than that of all.
        assert!((0.002..0.02).contains(&record.error), "{record:?}");
        assert!(record.losses.len() > 8 && record.floats.is_empty(), "{record:?}");
        assert!(record.losses.values().all(|loss| *loss > 0.0 && *loss < record.error), "{record:?}");
        assert_eq!(pack::verify(&bundle).unwrap().contents.components.unet.compute, Some(record));
        assert!(!bundle.join("weights/unet.integers.safetensors").exists());

        let model = Model::open(&bundle).unwrap();
        let exact = drawn(&Model::built_in().unwrap());
        let is_near =
            |losses: &[(f64, f64)]| losses.iter().all(|(error, decibels)| *error < 0.02 && *decibels > 44.0);
        let losses_of = |bundle: &Path| losses(&drawn(&Model::open(bundle).unwrap()), &exact);
        let found = losses_of(&bundle);
        println!("int8: {found:?}");
        assert!(is_near(&found), "{found:?}");
        assert!(found.iter().all(|(error, _)| *error > 0.001), "it does compute in integers: {found:?}");

        let again = scratch.path().join("again");
        pack::pack(&model, &again, &super::options(None), |_| ()).unwrap();
        assert_eq!(files(&again), files(&bundle));
        let message = "compute: expected a model in floats to make int8 of, got one whose unet is quantised";
        let twice = pack::pack(&model, &scratch.path().join("twice"), &options(Compute::Int8, None), |_| ());
        refusal(twice, ErrorKind::Usage, message);

        // Borders and products with zero points that are not the tensor's.
        edit_unet(&again, |graph| {
            for node in graph.node.iter_mut().filter(|node| node.op_type() == "MatMulIntegerToFloat") {
                if node.input[0].ends_with("/columns") {
                    node.input[4].clear();
                }
            }
        });
        assert!(!is_near(&losses_of(&again)), "wrong zero points");
        // The scales of one layer's channels, each that of the one before it.
        let shifted = scratch.path().join("shifted");
        pack::pack(&model, &shifted, &super::options(None), |_| ()).unwrap();
        let weights = Weights::open(&[shifted.join(UNET_WEIGHTS)]).unwrap();
        let layers = weights.iter().filter(|(name, _)| name.contains("resnets") && name.ends_with(".scales"));
        let scales: Vec<Vec<u8>> = layers.map(|(_, scales)| scales.to_bytes()).collect();
        drop(weights);
        edit(&shifted, UNET_WEIGHTS, |file| {
            for scales in &scales {
                let at = file.windows(scales.len()).position(|bytes| bytes == scales).unwrap();
                file[at..at + scales.len()].rotate_left(4);
            }
        });
        assert!(!is_near(&losses_of(&shifted)), "scales of other channels");
    }

    /// With ranges that were measured: the same limits but for one, and they are exceeded where ranges are of another place.
    #[test]
    fn static_ranges_keep_the_image() {
        let scratch = TempDir::new().unwrap();
        let bundle = scratch.path().join("bundle");
        let report = pack_with(&bundle, &options(Compute::Qdq, Some(0.012))).unwrap();
        let record = report.components.iter().find_map(|component| component.compute.clone()).unwrap();
        assert_eq!((record.form, record.weight_bits), (Compute::Qdq, WeightBits::of_this_cpu()));
        // Measured: 0.9 %, with the worst block in floats.
        assert!((0.002..0.012).contains(&record.error), "{record:?}");
        let floats: Vec<&str> = record.floats.iter().map(String::as_str).collect();
        assert!(floats[..2] == ["ff.net.2", "time"] && (3..6).contains(&floats.len()), "{record:?}");
        assert!(record.losses.len() > 10 && record.losses.values().all(|loss| *loss > 0.0), "{record:?}");
        assert_eq!(pack::verify(&bundle).unwrap().contents.components.unet.compute, Some(record));

        let exact = drawn(&Model::built_in().unwrap());
        let losses_of = |bundle: &Path| losses(&drawn(&Model::open(bundle).unwrap()), &exact);
        let is_near =
            |losses: &[(f64, f64)]| losses.iter().all(|(error, decibels)| *error < 0.04 && *decibels > 40.0);
        let found = losses_of(&bundle);
        println!("qdq: {found:?}");
        assert!(is_near(&found), "{found:?}");
        assert!(found.iter().all(|(error, _)| *error > 0.001), "it does compute in integers: {found:?}");
        // All values of one layer below zero are out of range.
        edit_unet(&bundle, |graph| {
            let zero = graph.initializer.iter_mut().filter(|tensor| tensor.name().ends_with("/zero"));
            zero.take(1).for_each(|zero| zero.int32_data = vec![0]);
        });
        assert!(!is_near(&losses_of(&bundle)), "a wrong zero point");
    }

    /// Linear layers in blocks are nearer, and the worst blocks stay in floats where the error asks for it.
    #[test]
    fn errors_are_kept_to_by_leaving_blocks_in_floats() {
        let scratch = TempDir::new().unwrap();
        let record = |form, max_error, name: &str| {
            let report = pack_with(&scratch.path().join(name), &options(form, max_error)).unwrap();
            report.components.into_iter().find_map(|component| component.compute).unwrap()
        };
        let plain = record(Compute::Int8Fine, None, "fine");
        let limit = plain.error * 0.6;
        let kept = record(Compute::Int8Fine, Some(limit), "kept");
        assert!(kept.error <= limit * 1.05, "{kept:?}");
        assert_eq!(kept.losses, plain.losses);
        assert!(!kept.floats.is_empty() && kept.floats.len() < kept.losses.len() / 2, "{kept:?}");
        let least_left = kept.floats.iter().map(|block| kept.losses[block]).fold(f64::INFINITY, f64::min);
        let others = kept.losses.iter().filter(|(block, _)| !kept.floats.contains(block));
        assert!(others.map(|(_, loss)| *loss).fold(0.0, f64::max) <= least_left, "{kept:?}");
        let graph = Model::open(&scratch.path().join("kept")).unwrap();
        let names = graph.unet().graph().parameters().iter().map(|parameter| parameter.name.clone());
        let (left, integers): (Vec<String>, Vec<String>) =
            names.partition(|name| kept.floats.iter().any(|block| name.starts_with(&format!("{block}."))));
        assert!(!left.iter().any(|name| name.ends_with(".scales")), "{left:?}");
        assert!(integers.iter().any(|name| name.ends_with(".scales")));

        let nothing = pack_with(&scratch.path().join("none"), &options(Compute::Int8, Some(1e-9)));
        refusal(
            nothing,
            ErrorKind::Usage,
            "max error: expected one that some blocks of the U-Net keep to in integers",
        );
        for odd in [0.0, -1.0, f64::NAN] {
            let odd = pack_with(&scratch.path().join("odd"), &options(Compute::Int8, Some(odd)));
            refusal(odd, ErrorKind::Usage, "max error: expected a number above 0");
        }
    }
}

mod verify {
    use super::*;

    #[test]
    fn finds_a_flipped_bit_in_every_file() {
        let scratch = TempDir::new().unwrap();
        let bundle = scratch.path().join("bundle");
        write_whole(&bundle);
        let whole = whole();
        assert!(whole.len() >= 7, "{:?}", whole.keys());
        for (name, bytes) in whole.iter().filter(|(name, _)| *name != "calotype.json") {
            for at in [0, bytes.len() / 2, bytes.len() - 1] {
                flip(&bundle.join(name), at);
                let error = pack::verify(&bundle).expect_err(name);
                assert_eq!(error.kind(), ErrorKind::Model);
                assert!(error.to_string().contains(&format!("bundle/{name}: expected SHA-256 ")), "{error}");
                fs::write(bundle.join(name), bytes).unwrap();
            }
        }
        pack::verify(&bundle).unwrap();

        // The manifest vouches for all others. What is JSON no more is found; for the rest, its own hash is told.
        let manifest = bundle.join("calotype.json");
        let hash = pack::verify(&bundle).unwrap().manifest_sha256;
        flip(&manifest, 0);
        let error = pack::verify(&bundle).unwrap_err();
        assert!(error.to_string().contains("bundle/calotype.json: expected a manifest"), "{error}");
        let text = String::from_utf8(whole["calotype.json"].clone()).unwrap();
        fs::write(&manifest, text.replace("3.5", "3.6")).unwrap();
        assert_ne!(pack::verify(&bundle).unwrap().manifest_sha256, hash);
    }

    #[test]
    fn names_every_damaged_file() {
        let scratch = TempDir::new().unwrap();
        let bundle = scratch.path().join("bundle");
        write_whole(&bundle);
        flip(&bundle.join("weights/unet.safetensors"), 12_345_678);
        fs::write(bundle.join("graphs/unet.onnx.gz"), "").unwrap();
        fs::remove_file(bundle.join("text_encoder/tokenizer.json")).unwrap();
        let error = pack::verify(&bundle).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Model);
        for message in [
            "3 of 9 files have changed",
            "weights/unet.safetensors: expected SHA-256",
            "graphs/unet.onnx.gz: expected ",
            "text_encoder/tokenizer.json: No such file",
        ] {
            assert!(error.to_string().contains(message), "expected {message:?} in {error}");
        }
    }

    #[test]
    fn nothing_that_is_no_bundle() {
        let scratch = TempDir::new().unwrap();
        assert_eq!(pack::verify(scratch.path()).unwrap_err().kind(), ErrorKind::Model);
        assert_eq!(pack::verify(&scratch.path().join("none")).unwrap_err().kind(), ErrorKind::Model);
    }
}

mod command {
    use super::*;

    fn refuses(args: &[&str], code: i32, message: &str) {
        let said = calotype(args).output().unwrap();
        let stderr = String::from_utf8(said.stderr).unwrap();
        assert_eq!(said.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(message), "expected {message:?} in {stderr}");
    }

    #[test]
    fn packs_and_verifies() {
        let scratch = TempDir::new().unwrap();
        let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
        let (one, two, out) = (path("one"), path("two"), path("out.png"));
        let packed =
            json(calotype(&["pack", &one, "--weights", "f32", "--name", "x", "--json"]).output().unwrap());
        assert_eq!((&packed["bundle"], &packed["weights"]), (&Value::from(&one[..]), &Value::from("f32")));
        let unet = &packed["components"]["unet"];
        assert_eq!((&unet["relative_errors"]["out_sample"], &unet["kept"]), (&0.0.into(), &false.into()));
        let verified = json(calotype(&["verify", &one, "--json"]).output().unwrap());
        assert_eq!((&verified["name"], &verified["files"]), (&"x".into(), &packed["files"]));
        let said = calotype(&["pack", &one, &two]).output().unwrap();
        let text = String::from_utf8(said.stdout).unwrap();
        assert!(text.contains("component ") && text.contains("0.0e0 out_sample"), "{text}");

        let draw = ["generate", "an apple", "--steps", "1", "-m", &one, "-o", &out];
        assert!(calotype(&draw).status().unwrap().success());
        let verified = json(calotype(&["verify", &out, "--model", &one, "--json"]).output().unwrap());
        assert_eq!(verified["model"], "x");
        assert_eq!(verified["model_files"].as_object().unwrap().len(), whole().len() - 1);
        // The receipt says where the model is.
        assert_eq!(json(calotype(&["verify", &out, "--json"]).output().unwrap())["equal"], true);
        flip(Path::new(&one).join("weights/unet.safetensors").as_path(), 9999);
        refuses(&["verify", &one], 4, "one/weights/unet.safetensors: expected SHA-256 ");
    }

    /// Only a bundle whose manifest the key has signed is opened, and only with the files of that manifest.
    #[test]
    fn signed_bundles_alone_are_opened() {
        let scratch = TempDir::new().unwrap();
        let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
        let (bundle, key) = (path("bundle"), path("key.pub"));
        pack_into(Path::new(&bundle), None);
        let [pair, other] = [(); 2].map(|()| minisign::KeyPair::generate_unencrypted_keypair().unwrap());
        fs::write(&key, pair.pk.to_box().unwrap().to_string()).unwrap();
        let manifest = Path::new(&bundle).join("calotype.json");
        let signature = Path::new(&bundle).join("calotype.json.minisig");
        let sign = |pair: &minisign::KeyPair| {
            let json = fs::read(&manifest).unwrap();
            let signed = minisign::sign(None, &pair.sk, &json[..], None, None).unwrap();
            fs::write(&signature, signed.to_string()).unwrap();
        };
        let plan = ["plan", "-m", &bundle, "--require-signed"];
        let plans = |key: &str| calotype(&[&plan[..], &[key]].concat()).output().unwrap();
        let refused = |message: &str| refuses(&[&plan[..], &[&key]].concat(), 4, message);

        refused("calotype.json: expected a signature: ");
        sign(&other);
        refused("calotype.json: expected one that the key has signed, got another");
        sign(&pair);
        for key in [&key, &pair.pk.to_base64()] {
            let said = plans(key);
            assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        }
        let verify = ["verify", &bundle, "--require-signed", &key];
        assert!(calotype(&verify).status().unwrap().success());
        // Files beside it are not signed.
        let weights = format!("{bundle}/weights/unet.safetensors");
        let beside = [&plan[..], &[&key, "--unet", &weights]].concat();
        refuses(&beside, 2, "expected a signed bundle alone, got 1 files beside it");
        // A manifest that was changed with its file, and a file that was changed alone.
        edit(Path::new(&bundle), "weights/unet.safetensors", |bytes| *bytes.last_mut().unwrap() ^= 1);
        refused("calotype.json: expected one that the key has signed, got another");
        sign(&pair);
        flip(Path::new(&weights), 9999);
        refused("weights/unet.safetensors: expected SHA-256 ");
        fs::write(&signature, "no signature").unwrap();
        refused("calotype.json: expected a signature in minisign's format");
        fs::write(&signature, [b' '; (64 << 10) + 1]).unwrap();
        refused("calotype.json.minisig: expected at most 65536 bytes, got more");

        let unsigned = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");
        refuses(
            &["plan", "-m", unsigned, "--require-signed", &key],
            4,
            "expected a signed bundle, got another model",
        );
        refuses(
            &["plan", "--require-signed", "x"],
            2,
            "expected a public key of minisign or a file with one, got \"x\"",
        );
        // What is not for a bundle is not used.
        refuses(
            &[&verify[..], &["-m", "other"]].concat(),
            2,
            "verify: expected a bundle alone, got flags for an image",
        );
        refuses(&[&verify[..], &["--provider", "cpu"]].concat(), 2, "verify: expected a bundle alone");
        refuses(&[&verify[..], &["--lora", "x.safetensors"]].concat(), 2, "verify: expected a bundle alone");
        // No bundle, and so not signed.
        let upscaler = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/upscaler/x2_unknown.onnx");
        refuses(
            &["upscale", "x.png", "-o", "y.png", "-m", upscaler, "--require-signed", &key],
            4,
            "expected a signed bundle, got another model",
        );
        // The built-in model is a part of the program.
        assert!(calotype(&["plan", "--require-signed", &key]).status().unwrap().success());
    }

    #[test]
    fn refuses_what_it_cannot_do() {
        let scratch = TempDir::new().unwrap();
        let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
        refuses(&["pack"], 2, "DEST");
        let message = "weights: expected one of f32, f16, int8, int4, got \"int2\"";
        refuses(&["pack", &path("x"), "--weights", "int2"], 2, message);
        let message = "compute: expected one of int8, int8-fine, qdq, got \"int4\"";
        refuses(&["pack", &path("x"), "--compute", "int4"], 2, message);
        let x = path("x");
        refuses(
            &["pack", &x, "--compute", "int8", "--weight-bits", "6"],
            2,
            "weight bits: expected 7 or 8, got \"6\"",
        );
        refuses(&["pack", &path("x"), "--max-error", "0.01"], 2, "--compute <FORM>");
        refuses(&["pack", &path("none"), &path("x")], 4, "none: No such file");
        refuses(&["verify", &path("none")], 3, "none: expected a bundle or an image: No such file");
        fs::write(path("text"), "no image").unwrap();
        refuses(
            &["verify", &path("text")],
            3,
            "text: expected a bundle or an image in PNG, JPEG or WebP, got another file",
        );
        let card = concat!(env!("CARGO_MANIFEST_DIR"), "/models/builtin/contact_sheet.png");
        refuses(&["verify", card], 3, "contact_sheet.png: expected an image with a receipt, got one without");
        assert_eq!(names(scratch.path()), ["text"]);
    }
}
