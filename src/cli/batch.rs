//! `calotype batch`: the images of a file of recipes, one in a line. Each line gets a result, on standard output and in the
//! log of the folder, by which another run skips what is done and goes on with the image that was interrupted.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};
use std::time::Instant;

use calotype::error::shortened;
use calotype::journal::{Journal, State};
use calotype::memory;
use calotype::recipe::Recipe;
use calotype::request::Request;
use calotype::{Error, ErrorKind};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::drawing::Drawing;
use super::from::{Origin, STDIN};
use super::generate::note;
use super::images::Opened;
use super::output::Destination;
use super::{Common, Report, error_json, flag, say};

/// The longest line that is read, as the longest recipe.
const MAX_LINE_BYTES: u64 = 16 << 20;
/// The file of the results in the folder of the images, and the folder of the journal.
const LOG: &str = "results.jsonl";
const JOURNAL: &str = ".calotype-batch";
/// Fields of a line that are no part of its recipe.
const OUTPUT: &str = "output";
const VERSION: &str = "version";
/// How many digits the name of an image has that is named by its line.
const DIGITS: usize = 5;
/// The bytes before a snapshot in the journal: the hash of the recipe, and the seed.
const ID_BYTES: usize = 32;
const SEED_BYTES: usize = 8;

#[derive(clap::Args)]
pub(super) struct Flags {
    /// A file of JSON lines: in each a recipe, an object with the names of the flags, as in `{"prompt": "a red apple", "seed": 7}`;
    /// `output` names its image, which else has the line's number. `-` reads standard input. A flag that is given here
    /// overrides the field of all lines. Each line has a result, a JSON line on standard output (with `--json` only the counts).
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The folder of the images and of `results.jsonl`, which lists what is done. Another run of the command continues where
    /// one was interrupted, and generates only what is not done or has changed.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    drawing: Drawing,
    #[command(flatten)]
    pub(super) common: Common,
}

pub(super) fn run(flags: &Flags) -> Result<Report, Error> {
    flags.drawing.check_batch()?;
    fs::create_dir_all(&flags.output).map_err(|error| {
        let message = format!("--output: {}: expected a folder that can be made", flags.output.display());
        Error::new(ErrorKind::Output, message).source(error).in_file(&flags.output)
    })?;
    let mut input = open_input(&flags.file)?;
    let log = Log::open(&flags.output)?;
    let mut batch = Batch {
        flags,
        log,
        journal: None,
        interrupted: None,
        opened: None,
        taken: HashMap::new(),
        counts: BTreeMap::new(),
        first_failure: None,
    };
    batch.open_journal();
    let ended = batch.read_all(&mut *input);
    let Batch { journal, counts, first_failure, .. } = batch;
    if let Some(journal) = journal.filter(|_| ended.is_ok()) {
        journal.finish()?;
    }
    let count = |status| counts.get(status).copied().unwrap_or(0);
    let [done, skipped, failed] = [DONE, SKIPPED, FAILED].map(count);
    say(format_args!("{done} done, {skipped} skipped, {failed} failed"));
    let failure = first_failure.map(|(line, error): (usize, Error)| {
        let message = format!("{failed} of {} lines failed, line {line} first", done + skipped + failed);
        Error::new(error.kind(), message)
    });
    let json = json!({ DONE: done, SKIPPED: skipped, FAILED: failed });
    Ok(Report { text: String::new(), json, error: ended.err().or(failure) })
}

/// How a line ended.
const DONE: &str = "done";
const SKIPPED: &str = "skipped";
const FAILED: &str = "failed";

/// The lines of one command.
struct Batch<'a> {
    flags: &'a Flags,
    log: Log,
    journal: Option<Journal>,
    /// The image that was interrupted.
    interrupted: Option<Interrupted>,
    /// The model of the line before, and the settings that it is of.
    opened: Option<(String, Recipe, Opened)>,
    /// The lines of the images' names.
    taken: HashMap<PathBuf, usize>,
    counts: BTreeMap<&'static str, usize>,
    first_failure: Option<(usize, Error)>,
}

struct Interrupted {
    id: [u8; ID_BYTES],
    seed: u64,
    snapshot: Vec<u8>,
}

/// What a line asks for.
struct Job {
    recipe: Recipe,
    /// The hash of the recipe, its images included.
    id: [u8; ID_BYTES],
    /// The image, in the folder.
    file: PathBuf,
    /// The providers of the image whose receipt the line is.
    provider: Option<String>,
}

impl Batch<'_> {
    /// Opens the journal of the folder, or begins one; what is wrong with it is told, and the lines go on without.
    fn open_journal(&mut self) {
        let folder = self.flags.output.join(JOURNAL);
        let opened = match folder.exists() {
            true => Journal::open(&folder).map(|(journal, _)| journal),
            false => Journal::create(&folder, b"batch"),
        };
        let opened = opened.or_else(|error| {
            // One that was killed while it began, or that is damaged; no other process works here.
            if folder.join("job").exists() {
                say(format_args!("{error}: an interrupted image starts over"));
            }
            let _ = fs::remove_dir_all(&folder);
            Journal::create(&folder, b"batch")
        });
        let state = opened.and_then(|journal| {
            let state = journal.state();
            self.journal = Some(journal);
            state
        });
        match state {
            Ok(state) => {
                self.interrupted = state.and_then(|State { snapshot, .. }| Interrupted::of(&snapshot))
            }
            Err(error) => say(format_args!("{error}: an interrupted image starts over")),
        }
    }

    /// Takes lines until there are no more, or the images cannot go on.
    fn read_all(&mut self, input: &mut dyn BufRead) -> Result<(), Error> {
        let mut number = 0;
        while let Some(line) = next_line(input, number + 1)? {
            number += 1;
            if line.trim_ascii().is_empty() {
                continue;
            }
            let is_first = self.counts.is_empty();
            let started = Instant::now();
            let (status, mut result) = match self.take(number, &line) {
                Ok(ended) => ended,
                Err(error) => {
                    let kind = error.kind();
                    // A file whose first line is no object is none of recipes.
                    if kind == ErrorKind::Output || is_first && object(&line).is_err() {
                        return Err(Error::new(kind, format!("line {number}")).source(error));
                    }
                    if kind == ErrorKind::Cancelled {
                        return Err(error);
                    }
                    say(format_args!("line {number}: {}", shortened(&error.message_with(flag))));
                    let result = json!({ "error": error_json(&error) });
                    self.first_failure.get_or_insert((number, error));
                    (FAILED, result)
                }
            };
            *self.counts.entry(status).or_default() += 1;
            result["line"] = number.into();
            result["status"] = status.into();
            if status != SKIPPED {
                result["seconds"] = started.elapsed().as_secs_f64().into();
                self.log.append(&result)?;
            }
            if !self.flags.common.json {
                print_line(&result);
            }
        }
        Ok(())
    }

    /// Makes the image of a line, unless it is there.
    fn take(&mut self, number: usize, line: &[u8]) -> Result<(&'static str, Value), Error> {
        let job = self.read(number, line)?;
        let path = self.flags.output.join(&job.file);
        let id = hex(&job.id);
        if let Some(seed) = self.log.seed_of(&job.file, &id, &path) {
            return Ok((SKIPPED, json!({ "file": job.file, "seed": seed, "recipe_sha256": id })));
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|error| {
                let message = format!("{}: expected a folder that can be made", folder.display());
                Error::new(ErrorKind::Output, message).source(error).in_file(folder)
            })?;
        }
        let destination = Destination::open(path.clone())?;
        let interrupted = self.interrupted.take_if(|interrupted| interrupted.id == job.id);
        let seed = interrupted.as_ref().map(|image| image.seed);
        let request = self.open(job.recipe, seed, job.provider)?;
        let opened = self.opened.as_mut().map(|(_, _, opened)| opened);
        let opened =
            opened.ok_or_else(|| Error::new(ErrorKind::Internal, "expected an open model, got none"))?;
        let warnings = request.warnings(&opened.model)?.lines(flag);
        warnings.iter().for_each(|line| say(shortened(line)));
        let snapshot = interrupted.map(|image| image.snapshot);
        let seed = request.seed();
        let output = opened.draw(&request, snapshot, |run| {
            let state = || Ok([&job.id[..], &seed.to_le_bytes(), &run.snapshot()?].concat());
            note(&mut self.journal, |journal| journal.keep(number as u64, state));
        })?;
        opened.write(&request, &output, &destination)?;
        let image_sha256 = file_hash(&path).ok_or_else(|| {
            let message = format!("{}: expected the image that was written", path.display());
            Error::new(ErrorKind::Output, message).in_file(&path)
        })?;
        if let Some(budget) = self.flags.drawing.session.memory {
            memory::check_budget("output", budget.bytes())?;
        }
        let warnings = [warnings, output.warnings()].concat();
        let result = json!({
            "file": job.file,
            "seed": seed,
            "recipe_sha256": id,
            "file_sha256": image_sha256,
            "warnings": warnings,
        });
        Ok((DONE, result))
    }

    /// What a line asks for, with the flags over it.
    fn read(&mut self, number: usize, line: &[u8]) -> Result<Job, Error> {
        let refuse = |problem: String| Error::new(ErrorKind::Input, problem);
        let mut object = object(line)?;
        let file = match object.remove(OUTPUT) {
            None => PathBuf::from(format!("{number:0DIGITS$}.png")),
            Some(Value::String(name)) => PathBuf::from(name),
            Some(other) => return Err(refuse(format!("output: expected a file name, got {other}"))),
        };
        // No system has names with these.
        let is_name = !file.as_os_str().as_encoded_bytes().contains(&0);
        let is_inside = is_name && file.components().all(|part| matches!(part, Component::Normal(_)));
        if !is_inside || file.file_name().is_none() || file.starts_with(JOURNAL) {
            let got = file.display();
            return Err(refuse(format!(
                "output: expected the name of a file in the folder of --output, got {got:?}"
            )));
        }
        if let Some(other) = self.taken.insert(file.clone(), number) {
            let got = file.display();
            return Err(refuse(format!(
                "output: expected a name that no other line has, got {got}, which line {other} has"
            )));
        }
        // A receipt has the version of calotype instead.
        if !object.contains_key("calotype") {
            object.entry(VERSION).or_insert_with(|| calotype::recipe::VERSION.into());
        }
        let origin = Origin::of_receipt("recipe", Value::Object(object).to_string().as_bytes())?;
        let recipe = self.flags.drawing.recipe_over(&origin, None, None)?;
        let id = Sha256::digest(recipe.clone().with_images_named()?.to_json()).into();
        let provider = origin.provider().map(str::to_owned);
        Ok(Job { recipe, id, file, provider })
    }

    /// Opens the model of a recipe, or keeps the one that is open; the request.
    fn open(
        &mut self,
        recipe: Recipe,
        seed: Option<u64>,
        provider: Option<String>,
    ) -> Result<Request, Error> {
        let drawing = &self.flags.drawing;
        let mentioned = drawing.mentioned(&recipe)?;
        // A receipt's providers are of use where none are named.
        let provider = provider.filter(|_| drawing.session.is_automatic());
        let (loras, embeddings) = (&mentioned.loras, &mentioned.embeddings);
        let settings = format!("{} {loras:?} {embeddings:?} {provider:?}", recipe.of_model().to_json());
        let seed = seed.or(recipe.seed);
        let before = self.opened.take();
        let (files, request, opened) = match before {
            Some((same, files, opened)) if same == settings => {
                let Recipe { lora, embedding, .. } = files.clone();
                let recipe = Recipe { lora, embedding, seed, ..recipe };
                let request = Request::new(recipe, &opened.model)?;
                (files, request.clone(), opened.open_for(&request, drawing)?)
            }
            other => {
                drop(other);
                let (model, recipe, additions) = super::open::open(recipe, &mentioned, &drawing.session)?;
                let files = recipe.clone();
                let request = Request::new(Recipe { seed, ..recipe }, &model)?;
                let library = self.flags.common.library()?;
                (
                    files,
                    request.clone(),
                    Opened::open(model, additions, &request, drawing, provider.as_deref(), library)?,
                )
            }
        };
        self.opened = Some((settings, files, opened));
        Ok(request)
    }
}

impl Interrupted {
    /// That of a journal's snapshot.
    fn of(bytes: &[u8]) -> Option<Self> {
        let (id, rest) = bytes.split_first_chunk::<ID_BYTES>()?;
        let (seed, snapshot) = rest.split_first_chunk::<SEED_BYTES>()?;
        Some(Self { id: *id, seed: u64::from_le_bytes(*seed), snapshot: snapshot.to_vec() })
    }
}

/// What is done in a folder.
struct Log {
    file: File,
    /// Per image the hash of its recipe, its seed and the hash of its file.
    done: HashMap<PathBuf, (String, u64, String)>,
}

impl Log {
    /// Opens the log of a folder, and removes a last line that is not whole.
    fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(LOG);
        let refuse =
            |kind, problem: &str| Error::new(kind, format!("{}: {problem}", path.display())).in_file(&path);
        let failed = |error: io::Error| {
            refuse(ErrorKind::Output, "expected a file that can be written to").source(error)
        };
        let mut options = OpenOptions::new();
        let mut file = options.read(true).append(true).create(true).open(&path).map_err(failed)?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(refuse(
                ErrorKind::Usage,
                "expected a folder that no other process works in, got one in use",
            ));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let mut done = HashMap::new();
        for (index, line) in bytes[..whole].split(|&byte| byte == b'\n').enumerate() {
            if line.is_empty() {
                continue;
            }
            let result: Value = serde_json::from_slice(line).map_err(|error| {
                let problem = format!("line {}: expected a result, a JSON object", index + 1);
                refuse(ErrorKind::Input, &problem).source(error).help("delete the file to start over")
            })?;
            let text = |name: &str| result[name].as_str().map(str::to_owned);
            if let (Some(file), Some(id), Some(seed), Some(hash)) =
                (text("file"), text("recipe_sha256"), result["seed"].as_u64(), text("file_sha256"))
            {
                done.insert(PathBuf::from(file), (id, seed, hash));
            }
        }
        if whole < bytes.len() {
            file.set_len(whole as u64).and_then(|()| file.seek(SeekFrom::End(0))).map_err(failed)?;
        }
        Ok(Self { file, done })
    }

    /// The seed of an image that is there, made of this recipe.
    fn seed_of(&self, file: &Path, id: &str, path: &Path) -> Option<u64> {
        let (made_of, seed, hash) = self.done.get(file)?;
        (made_of == id && file_hash(path).as_deref() == Some(hash)).then_some(*seed)
    }

    /// Adds a result; it is on the disk when this returns.
    fn append(&mut self, result: &Value) -> Result<(), Error> {
        let written =
            self.file.write_all(format!("{result}\n").as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(|error| {
            Error::new(ErrorKind::Output, format!("{LOG}: cannot be written to")).source(error)
        })
    }
}

/// The object of a line.
fn object(line: &[u8]) -> Result<Map<String, Value>, Error> {
    let refuse = || Error::new(ErrorKind::Input, "recipe: expected a JSON object");
    serde_json::from_slice(line).map_err(|error| refuse().source(error))
}

fn open_input(path: &Path) -> Result<Box<dyn BufRead>, Error> {
    if path == Path::new(STDIN) {
        return Ok(Box::new(BufReader::new(io::stdin())));
    }
    let file = File::open(path).map_err(|error| {
        Error::new(ErrorKind::Input, path.display().to_string()).source(error).in_file(path)
    })?;
    Ok(Box::new(BufReader::new(file)))
}

/// The next line, without its end; none where there are no more.
fn next_line(input: &mut dyn BufRead, number: usize) -> Result<Option<Vec<u8>>, Error> {
    let mut line = Vec::new();
    let refuse = |problem: &str| Error::new(ErrorKind::Input, format!("line {number}: {problem}"));
    let read = input.take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut line);
    let read = read.map_err(|error| refuse("expected a line that can be read").source(error))?;
    if read as u64 > MAX_LINE_BYTES {
        return Err(refuse(&format!("expected at most {MAX_LINE_BYTES} bytes, got more")));
    }
    if number == 1 && line.starts_with(b"\xef\xbb\xbf") {
        line.drain(..3);
    }
    Ok((read > 0).then_some(line))
}

/// A result for whoever reads along; the log has it, too.
fn print_line(result: &Value) {
    let mut stdout = io::stdout();
    let _ = writeln!(stdout, "{result}").and_then(|()| stdout.flush());
}

fn file_hash(path: &Path) -> Option<String> {
    let mut hash = Sha256::new();
    io::copy(&mut File::open(path).ok()?, &mut hash).ok()?;
    Some(hex(&hash.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
