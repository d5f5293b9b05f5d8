//! `calotype generate`: a prompt becomes images in files.

use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use calotype::deadline::Deadline;
use calotype::error::shortened;
use calotype::journal::{Journal, State};
use calotype::memory;
use calotype::pipeline::{Output, Run};
use calotype::plan::Budget;
use calotype::recipe::Receipt;
use calotype::request::Request;
use calotype::{Error, ErrorKind};
use serde_json::{Value, json};

use super::drawing::Drawing;
use super::from::{Origin, STDIN};
use super::grid::Grid;
use super::images::Opened;
use super::job::Job;
use super::output::{Destination, STDOUT};
use super::preview::{Preview, PreviewFlags};
use super::{Common, Report, flag, path_json, provider, samplers, say, without_bom};

/// What is asked for in place of a name.
const HELP: &str = "help";
/// The longest prompt that is read from standard input.
const MAX_PROMPT_BYTES: u64 = 1 << 20;

#[derive(clap::Args)]
pub(super) struct Flags {
    /// The prompt; `-` reads it from standard input. `(words:1.2)` have more weight, `[words]` less. With `--from` the
    /// recipe's prompt when absent.
    #[arg(required_unless_present_any = ["sampler", "schedule", "from"])]
    prompt: Option<String>,
    /// Where to write the image, in the format of the extension: .png, .jpg or .jpeg (quality 95), .webp (lossless); PNG
    /// without one. `-` writes a PNG to standard output, and reports to standard error.
    #[arg(short, long, value_name = "OUT", default_value = "calotype.png")]
    output: PathBuf,
    /// Keep a journal of the run in a new folder: after a crash or a power failure `calotype resume DIR` continues it, to the
    /// same images. The folder is deleted when all images are written.
    #[arg(long, value_name = "DIR")]
    journal: Option<PathBuf>,
    /// Finish each image in this time, as in 8s, 1.5s or 2m, counted from the start of the program or the image before: a step is
    /// measured, and only as many are taken as there is time for.
    #[arg(long, value_name = "TIME", value_parser = deadline, conflicts_with_all = ["journal", "grid"])]
    deadline: Option<Deadline>,
    #[command(flatten)]
    drawing: Drawing,
    /// Fix the shapes of all graphs to this image's size, one image and one prompt of usual length at a time: QNN and CoreML
    /// need it, other providers open faster.
    #[arg(long)]
    fixed_shapes: bool,
    /// Generate one image for each combination of some settings, all with one seed, as in `--grid steps=10,20 --grid sampler=euler,ddim`
    /// (a setting of recipes; `|` separates values that have commas). Each is written under OUT with a number, and a sheet of all
    /// with labels as OUT: the first grid's values from left to right, others from top to bottom.
    #[arg(long, value_name = "SETTING=A,B")]
    grid: Vec<String>,
    #[command(flatten)]
    preview: PreviewFlags,
    #[command(flatten)]
    pub(super) common: Common,
}

impl Flags {
    /// The prompt, unless it is the recipe's.
    fn prompt(&self) -> Result<Option<String>, Error> {
        match self.prompt.as_deref() {
            Some(STDIN) if self.drawing.reads_stdin() => {
                let problem = "PROMPT: expected standard input for one of prompt and --from, got both";
                Err(Error::new(ErrorKind::Usage, problem))
            }
            Some(STDIN) => prompt_reads_stdin().map(Some),
            Some(prompt) => Ok(Some(without_bom(prompt).to_owned())),
            None if self.drawing.has_origin() => Ok(None),
            None => {
                let expected = "PROMPT: expected a prompt, got none";
                Err(Error::new(ErrorKind::Usage, expected).help("for an empty prompt write \"\""))
            }
        }
    }

    fn is_to_stdout(&self) -> bool {
        self.output == Path::new(STDOUT)
    }

    /// Standard output takes one image, and nothing else.
    fn check_output(&self) -> Result<(), Error> {
        if !self.is_to_stdout() || self.drawing.count == 1 && !self.common.json {
            return Ok(());
        }
        let other = if self.common.json { "--json" } else { "several images" };
        let message = format!("--output: expected a file with {other}, got standard output");
        Err(Error::new(ErrorKind::Usage, message))
    }

    /// The files of the images, and that of the sheet of a grid.
    fn destinations(&self, grid: Option<&Grid>) -> Result<(Vec<Destination>, Option<Destination>), Error> {
        let Some(grid) = grid else { return Ok((destinations(&self.output, self.drawing.count)?, None)) };
        let refuse = |expected: &str, got: &str| {
            Error::new(ErrorKind::Usage, format!("--grid: expected {expected}, got {got}"))
        };
        if self.drawing.count > 1 {
            return Err(refuse("one image for each combination", "--count"));
        }
        let sheet = Destination::open(self.output.clone())?;
        if sheet.is_special() || self.is_to_stdout() {
            return Err(refuse("a file for --output", "standard output, a device or a pipe"));
        }
        Ok((destinations(&self.output, grid.cells_count())?, Some(sheet)))
    }

    /// A resumed run opens all that it was given again.
    fn check_journal(&self) -> Result<(), Error> {
        let reads_stdin = self.prompt.as_deref() == Some(STDIN) || self.drawing.reads_stdin();
        if self.journal.is_none() || !(reads_stdin || self.is_to_stdout()) {
            return Ok(());
        }
        let problem =
            "--journal: expected files, which a resumed run can open again, got standard input or output";
        Err(Error::new(ErrorKind::Usage, problem))
    }

    /// Makes these the flags of a run that goes on: with its first seed, and with what was typed now of what does not change
    /// the images.
    pub(super) fn resume(&mut self, seed: u64, common: &Common) {
        self.drawing.fix_seed(seed);
        self.common.json = common.json;
        if let Some(library) = &common.ort {
            self.common.ort = Some(library.clone());
        }
    }
}

pub(super) fn run(flags: &Flags) -> Result<Report, Error> {
    match (flags.drawing.sampler.as_deref(), flags.drawing.schedule.as_deref()) {
        (Some(HELP), _) => return Ok(samplers::report()),
        (_, Some(HELP)) => return Ok(samplers::report_schedules()),
        _ => {}
    }
    work(flags, None)
}

/// Draws the images, or those that are left of a journal.
pub(super) fn work(flags: &Flags, resumed: Option<Journal>) -> Result<Report, Error> {
    let started = Instant::now();
    let drawing = &flags.drawing;
    flags.check_journal()?;
    let (recipe, origin) = drawing.recipe(flags.prompt()?, None)?;
    flags.check_output()?;
    let grid = Grid::parse(&flags.grid)?;
    let (destinations, sheet) = flags.destinations(grid.as_ref())?;
    let preview = flags.preview.open(&destinations)?;
    let (mut model, recipe, additions) = drawing.open_model(recipe)?;
    if flags.fixed_shapes {
        let size = Request::new(recipe.clone(), &model)?.size();
        model.fix_shapes(size)?;
    }
    if let Some(preview) = &preview {
        preview.check(&model)?;
    }
    let first = Request::new(recipe.clone(), &model)?;
    let requests = match &grid {
        Some(grid) => grid.requests(&recipe, first.seed(), &model)?,
        None => {
            first.check_seeds(drawing.count.into())?;
            (0..u64::from(drawing.count)).map(|index| first.with_seed(first.seed() + index)).collect()
        }
    };
    let first = &requests[0];
    let library = flags.common.library()?;
    let opened = Opened::open(model, additions, first, drawing, origin.provider(), library)?;
    let open_time = started.elapsed();
    let choice = opened.choice.clone();

    let warnings = first.warnings(&opened.model)?;
    let (journal, state) = begin_journal(flags, resumed, first.seed())?;
    let mut batch = Batch {
        opened: Some(opened),
        drawing,
        is_grid: grid.is_some(),
        origin: &origin,
        journal,
        deadline: flags.deadline.clone(),
        started,
        preview,
        text: String::new(),
        images: Vec::new(),
    };
    warnings.lines(flag).iter().for_each(|line| say(shortened(line)));
    let error = match batch.draw_all(&requests, &destinations, state) {
        Err(error) if batch.images.is_empty() => return Err(error),
        result => result.err(),
    };
    let Batch { opened, journal, mut text, images, .. } = batch;
    let pipeline = opened.map(|opened| opened.pipeline);
    let placements: Vec<Value> =
        pipeline.iter().flat_map(|pipeline| pipeline.placements()).map(provider::json).collect();
    let planned_bytes = pipeline.as_ref().and_then(|pipeline| Some(pipeline.plan()?.peak_bytes()));
    // Its memory is for the sheet now.
    drop(pipeline);
    let drawn = match (&grid, &sheet) {
        (Some(grid), Some(sheet)) if error.is_none() => {
            grid.write(&destinations, sheet, drawing.session.memory).inspect(|()| {
                text += &format!("{}\n", sheet.path().display());
            })
        }
        _ => Ok(()),
    };
    let error = error.or(drawn.err());
    if let Some(journal) = journal.filter(|_| error.is_none()) {
        journal.finish()?;
    }
    let json = json!({
        "images": images,
        "rounded_timesteps": warnings.rounded_timesteps,
        "unknown_words": words_json(&warnings.unknown_words),
        "untrained_words": words_json(&warnings.untrained_words),
        "grid": grid.as_ref().zip(sheet.as_ref()).map(|(grid, sheet)| grid.json(sheet.path())),
        "placements": placements,
        "provider_choice": choice,
        "seconds": { "open": seconds(open_time), "all": seconds(started.elapsed()) },
        "memory": {
            "budget_bytes": drawing.session.memory.map(Budget::bytes),
            "planned_bytes": planned_bytes,
            "peak_bytes": memory::peak_bytes(),
        },
    });
    // Images that are written take memory, too.
    let exceeded =
        drawing.session.memory.and_then(|budget| memory::check_budget("output", budget.bytes()).err());
    let error = error.or(exceeded);
    if flags.is_to_stdout() {
        let _ = write!(io::stderr(), "{text}");
        text.clear();
    }
    Ok(Report { text, json, error })
}

/// The journal that was asked for, and how far its run has come.
fn begin_journal(
    flags: &Flags,
    resumed: Option<Journal>,
    seed: u64,
) -> Result<(Option<Journal>, Option<State>), Error> {
    if let Some(journal) = resumed {
        let state = journal.state().unwrap_or_else(|error| {
            say(format_args!("{error}: the run starts over"));
            None
        });
        return Ok((Some(journal), state));
    }
    let create = |folder| Journal::create(folder, &Job::of_this_process(seed)?);
    Ok((flags.journal.as_deref().map(create).transpose()?, None))
}

/// Writes to the journal; where that fails the run goes on without it.
pub(super) fn note(journal: &mut Option<Journal>, write: impl FnOnce(&mut Journal) -> Result<(), Error>) {
    if let Some(open) = journal
        && let Err(error) = write(open)
    {
        say(format_args!("{error}: the run continues without its journal"));
        *journal = None;
    }
}

/// The images of one command, one after another, and what is said of them.
struct Batch<'a> {
    /// None only after an error.
    opened: Option<Opened>,
    drawing: &'a Drawing,
    is_grid: bool,
    origin: &'a Origin,
    journal: Option<Journal>,
    deadline: Option<Deadline>,
    /// When the first image was begun.
    started: Instant,
    preview: Option<Preview>,
    text: String,
    images: Vec<Value>,
}

impl Batch<'_> {
    /// Generates and writes one image per destination; those that are left of a journal.
    fn draw_all(
        &mut self,
        requests: &[Request],
        destinations: &[Destination],
        state: Option<State>,
    ) -> Result<(), Error> {
        let State { images, snapshot } = state.unwrap_or_default();
        let mut snapshot = Some(snapshot).filter(|snapshot| !snapshot.is_empty());
        let places = requests.iter().zip(destinations).enumerate().skip(images as usize);
        for (index, (request, destination)) in places {
            // The first is open. Those of a grid have their own images, and perhaps another size.
            let opened =
                self.opened.take().ok_or_else(|| Error::new(ErrorKind::Internal, "expected a pipeline"))?;
            let opened = match self.is_grid && index > 0 {
                true => opened.open_for(request, self.drawing)?,
                false => opened,
            };
            let opened = self.opened.insert(opened);
            let (journal, preview) = (&mut self.journal, &mut self.preview);
            let mut after_step = |run: &mut Run| {
                note(journal, |journal| journal.keep(index as u64, || run.snapshot()));
                if let Some(preview) = preview {
                    preview.show(run);
                }
            };
            let (request, output) = match &mut self.deadline {
                Some(deadline) => {
                    let started = if index == 0 { self.started } else { Instant::now() };
                    opened.draw_within(deadline, started, request, after_step)?
                }
                None => (request.clone(), opened.draw(request, snapshot.take(), &mut after_step)?),
            };
            let receipt = opened.write(&request, &output, destination)?;
            if let Some(made) = receipt.provenance.as_ref().filter(|_| self.images.is_empty()) {
                self.origin.compare(made, &opened.additions);
            }
            self.report(&receipt, &request, &output, destination);
            note(&mut self.journal, |journal| journal.finish_image(index as u64 + 1));
        }
        Ok(())
    }

    /// Notes what is said of an image that is written.
    fn report(&mut self, receipt: &Receipt, request: &Request, output: &Output, destination: &Destination) {
        self.text += &format!("{} (seed {})\n", destination.path().display(), request.seed());
        self.images.push(json!({
            "file": path_json(destination.path()),
            "cut_prompt": output.cut_prompt.as_ref().map(|cut| &cut.text),
            "cut_negative": output.cut_negative.as_ref().map(|cut| &cut.text),
            "seconds": {
                "text_encoder": seconds(output.times.text_encoder),
                "vae_encoder": seconds(output.times.vae_encoder),
                "unet": seconds(output.times.unet),
                "denoising": seconds(output.times.denoising),
                "vae_decoder": seconds(output.times.vae_decoder),
            },
            "receipt": receipt,
        }));
    }
}

/// One file per image: the name as given, or with a number before its extension. A device or pipe takes all images.
fn destinations(output: &Path, count: u16) -> Result<Vec<Destination>, Error> {
    // Also where numbers follow: a folder is refused by the name that was typed.
    let typed = Destination::open(output.to_owned())?;
    if count == 1 || typed.is_special() {
        return Ok(vec![typed; count.into()]);
    }
    let digits = count.to_string().len();
    (1..=count)
        .map(|number| {
            let mut name = output.file_stem().unwrap_or_default().to_owned();
            name.push(format!("-{number:0digits$}"));
            if let Some(extension) = output.extension() {
                name.push(".");
                name.push(extension);
            }
            Destination::open(output.with_file_name(name))
        })
        .collect()
}

/// A deadline as it is typed: a number of seconds, or with a unit.
fn deadline(typed: &str) -> Result<Deadline, String> {
    const UNITS: [(&str, f64); 4] = [("ms", 0.001), ("min", 60.0), ("m", 60.0), ("s", 1.0)];
    const MOST_S: f64 = 86_400.0;
    let unit = UNITS.iter().find_map(|(unit, seconds)| Some((typed.strip_suffix(unit)?, *seconds)));
    let (number, unit_s) = unit.unwrap_or((typed, 1.0));
    let seconds = number.trim_end().parse::<f64>().map(|number| number * unit_s);
    match seconds {
        Ok(seconds) if seconds > 0.0 && seconds <= MOST_S => {
            Ok(Deadline::new(Duration::from_secs_f64(seconds)))
        }
        _ => Err("expected a time of at most a day, as in 8s, 500ms or 2m".into()),
    }
}

fn prompt_reads_stdin() -> Result<String, Error> {
    let mut bytes = Vec::new();
    let read = io::stdin().take(MAX_PROMPT_BYTES + 1).read_to_end(&mut bytes);
    let read = read.map_err(|error| Error::new(ErrorKind::Input, "standard input").source(error))?;
    if read as u64 > MAX_PROMPT_BYTES {
        return Err(Error::new(
            ErrorKind::Input,
            format!("standard input: expected a prompt of at most {MAX_PROMPT_BYTES} bytes, got more"),
        ));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let is_utf16 = [b"\xff\xfe", b"\xfe\xff"].iter().any(|mark| error.as_bytes().starts_with(*mark));
        let problem = "standard input: expected a prompt in UTF-8";
        let refusal = Error::new(ErrorKind::Input, problem).source(error.utf8_error());
        if is_utf16 { refusal.help("it is UTF-16: save it as UTF-8") } else { refusal }
    })?;
    Ok(without_bom(&text).trim_end_matches(['\r', '\n']).to_owned())
}

/// Words of the prompt and of the negative prompt.
fn words_json([prompt, negative]: &[Vec<String>; 2]) -> Value {
    json!({ "prompt": prompt, "negative": negative })
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}
