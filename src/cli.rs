//! The command line: flags become drafts, results and errors become text, JSON and exit codes.
//! It has no defaults of its own: what is not typed stays absent.

mod doctor;
mod draft;
mod generate;
mod infotext;
mod inspect;
mod interrupt;
mod mention;
mod output;
mod pack;
mod plan;
mod provider;
mod receipt;
mod samplers;
mod verify;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use calotype::adapter::embedding::Embedding;
use calotype::adapter::lora::Lora;
use calotype::engine::{Library, Refusal};
use calotype::error::shortened;
use calotype::model::{Adapted, Model, Overrides};
use calotype::prediction::Prediction;
use calotype::{Error, ErrorKind};
use clap::error::ErrorKind as ClapErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use self::mention::Mentioned;

/// Turns prompts into pictures, on this device.
#[derive(Parser)]
#[command(version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Draw a picture.
    Generate(Box<generate::Flags>),
    /// Explain a model: its files, graphs and numbers.
    Inspect(inspect::Flags),
    /// Say what memory a picture takes, and how it is drawn within a budget.
    Plan(Box<plan::Flags>),
    /// Make a bundle of a model: one folder, every file with its hash.
    Pack(pack::Flags),
    /// Check that a bundle is whole and can be opened, or that a picture was drawn by a model.
    Verify(verify::Flags),
    /// Say what this device and this build can do.
    Doctor(doctor::Flags),
}

impl Command {
    fn common(&self) -> &Common {
        match self {
            Self::Generate(flags) => &flags.common,
            Self::Inspect(flags) => &flags.common,
            Self::Plan(flags) => &flags.common,
            Self::Pack(flags) => &flags.common,
            Self::Verify(flags) => &flags.common,
            Self::Doctor(flags) => &flags.common,
        }
    }
}

/// What every command takes.
#[derive(Args)]
struct Common {
    /// The ONNX Runtime library to use.
    #[arg(long, value_name = "FILE")]
    ort: Option<PathBuf>,
    /// Print one JSON object on standard output.
    #[arg(long)]
    json: bool,
}

impl Common {
    fn library(&self) -> Result<&'static Library, Error> {
        Library::load(self.ort.as_deref())
    }
}

/// What a command has to say, for people and for programs.
struct Report {
    text: String,
    json: Value,
    /// Why it ended before all was done; what was done is reported nevertheless.
    error: Option<Error>,
}

impl Report {
    fn new(text: String, json: Value) -> Self {
        Self { text, json, error: None }
    }
}

/// The stack of the thread that works: that of the first one is whatever the shell allows (`ulimit -s`).
const STACK_BYTES: usize = 2 << 20;

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    match thread::Builder::new().name("calotype".into()).stack_size(STACK_BYTES).spawn(run_here) {
        // A panic has been reported by then.
        Ok(work) => work.join().unwrap_or(ExitCode::from(ErrorKind::Internal.exit_code())),
        Err(error) => {
            say(Error::new(ErrorKind::Runtime, "expected a thread to work on").source(error));
            ExitCode::from(ErrorKind::Runtime.exit_code())
        }
    }
}

fn run_here() -> ExitCode {
    let cli = match command().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return refuse_arguments(&error),
    };
    let json = cli.command.common().json;
    interrupt::watch(json);
    let result = match &cli.command {
        Command::Generate(flags) => generate::run(flags),
        Command::Inspect(flags) => inspect::run(flags),
        Command::Plan(flags) => plan::run(flags),
        Command::Pack(flags) => pack::run(flags),
        Command::Verify(flags) => verify::run(flags),
        Command::Doctor(flags) => doctor::run(flags),
    };
    interrupt::say_no_more();
    let (said, error) = match result {
        Ok(Report { text, mut json, error }) => {
            if let Some(error) = &error {
                json["error"] = error_json(error);
            }
            (Some((text, json)), error)
        }
        Err(error) => (None, Some(error)),
    };
    if let Some(error) = &error {
        say(error);
    }
    let said = match (said, &error) {
        (Some((_, object)), _) if json => format!("{object:#}\n"),
        (Some((text, _)), _) => text,
        (None, Some(error)) if json => format!("{:#}\n", json!({ "error": error_json(error) })),
        (None, _) => String::new(),
    };
    let code = error.map_or(ExitCode::SUCCESS, |error| ExitCode::from(error.kind().exit_code()));
    print(&said, code)
}

/// The arguments that are understood. A value may begin with `-`: after a flag that takes one, the next word is one.
fn command() -> clap::Command {
    let takes_words = |arg: clap::Arg| {
        let is_flag_with_value = !arg.is_positional() && arg.get_action().takes_values();
        if is_flag_with_value { arg.allow_hyphen_values(true) } else { arg }
    };
    Cli::command().mut_subcommands(move |command| command.mut_args(takes_words))
}

/// Help and version are printed, all else is an error of usage.
fn refuse_arguments(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ClapErrorKind::DisplayHelp | ClapErrorKind::DisplayVersion) {
        let text = error.render();
        let is_terminal = io::stdout().is_terminal();
        return print(
            &if is_terminal { text.ansi().to_string() } else { text.to_string() },
            ExitCode::SUCCESS,
        );
    }
    let text = error.render();
    let text = if io::stderr().is_terminal() { text.ansi().to_string() } else { text.to_string() };
    let _ = io::stderr().write_all(shortened(&text).as_bytes());
    let code = ExitCode::from(ErrorKind::Usage.exit_code());
    if !std::env::args_os().any(|arg| arg == "--json") {
        return code;
    }
    let message = error.render().to_string();
    let line = message.lines().next().unwrap_or_default();
    let error = Error::new(ErrorKind::Usage, line.strip_prefix("error: ").unwrap_or(line));
    print(&format!("{:#}\n", json!({ "error": error_json(&error) })), code)
}

fn error_json(error: &Error) -> Value {
    json!({
        "kind": format!("{:?}", error.kind()).to_lowercase(),
        "message": error.to_string(),
        "exit_code": error.kind().exit_code(),
    })
}

/// Writes the last words to standard output, and gives the exit code.
fn print(said: &str, code: ExitCode) -> ExitCode {
    let mut stdout = io::stdout();
    match stdout.write_all(said.as_bytes()).and_then(|()| stdout.flush()) {
        // A reader that has gone away (`| head`) has all that it wants.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            say(format_args!("standard output: {error}"));
            ExitCode::from(ErrorKind::Output.exit_code())
        }
        _ => code,
    }
}

/// A line on standard error, if it takes one: a terminal that is gone must not end the work.
fn say(line: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "calotype: {line}");
}

/// A path in JSON; what of it is not Unicode is replaced, because JSON is.
fn path_json(path: &Path) -> Value {
    path.to_string_lossy().into()
}

fn serialize_path<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// Components from files of their own, in the place of those of the model.
#[derive(Args, Default)]
struct Components {
    /// A file with a U-Net that replaces the model's (safetensors or GGUF).
    #[arg(long, value_name = "FILE")]
    unet: Option<PathBuf>,
    /// A file with a VAE, or a diffusers folder of one, that replaces the model's.
    #[arg(long, value_name = "FILE")]
    vae: Option<PathBuf>,
    /// A file with a text encoder that replaces the model's encoder of the same kind; repeatable. Stable Diffusion XL has
    /// two, CLIP ViT-L and OpenCLIP ViT-bigG: give one file of each, or one file with both.
    #[arg(long, value_name = "FILE")]
    text_encoder: Vec<PathBuf>,
    /// Which variant of a folder's files is read, as in fp16 for diffusion_pytorch_model.fp16.safetensors or
    /// model_fp16.onnx.
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// What the U-Net predicts, where the model's files are wrong or silent: epsilon, v or sample.
    #[arg(long, value_name = "KIND")]
    prediction: Option<Prediction>,
}

impl Components {
    fn overrides(&self) -> Overrides {
        Overrides {
            unet: self.unet.clone(),
            vae: self.vae.clone(),
            text_encoders: self.text_encoder.clone(),
            variant: self.variant.clone(),
        }
    }
}

/// Says that there is no memory left, when the process is about to end for it: nothing is allocated.
pub fn report_exhaustion(refusal: &Refusal) {
    let _ = writeln!(io::stderr(), "calotype: {refusal}");
}

/// What is added to a model.
#[derive(Args)]
struct Additions {
    /// A LoRA file, and how much of it, 1 when absent; may be given several times.
    #[arg(long, value_name = "FILE[@W]")]
    lora: Vec<OsString>,
    /// A textual inversion, whose word is then known in prompts; may be given several times.
    #[arg(long, value_name = "FILE")]
    embedding: Vec<PathBuf>,
}

/// A small file that was added to a model.
#[derive(Serialize)]
struct Addition {
    #[serde(serialize_with = "serialize_path")]
    file: PathBuf,
    sha256: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    strength: Option<f32>,
    /// The hash by which A1111 names it.
    #[serde(skip)]
    a1111_hash: String,
}

impl Addition {
    /// A file that was read, and with a strength, as a LoRA has one.
    fn new(file: PathBuf, strength: Option<f32>) -> Result<Self, Error> {
        let a1111_hash = receipt::addition_hash(&file, strength.is_some())
            .map_err(|error| Error::new(ErrorKind::Model, file.display().to_string()).source(error))?;
        Ok(Self { sha256: sha256(&file)?, a1111_hash, file, strength })
    }

    /// The name by which prompts and other programs know it.
    fn name(&self) -> String {
        self.file.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// The model at a path, or the built-in one, with components from files of their own, LoRA files and textual inversions
/// added; and a record of these.
fn open_model(
    path: Option<&PathBuf>,
    components: &Components,
    loras: &[OsString],
    embeddings: &[PathBuf],
) -> Result<(Model, Vec<Addition>), Error> {
    open_mentioned(path, components, loras, embeddings, &Mentioned::default())
}

/// The same with what prompts name.
fn open_mentioned(
    path: Option<&PathBuf>,
    components: &Components,
    loras: &[OsString],
    embeddings: &[PathBuf],
    mentioned: &Mentioned,
) -> Result<(Model, Vec<Addition>), Error> {
    let mut model = Model::open_with(path.map(PathBuf::as_path), &components.overrides())?;
    if let Some(prediction) = components.prediction {
        model.predict(prediction)?;
    }
    model.notes().iter().for_each(|note| say(format_args!("{note}")));
    let (mut opened_loras, mut opened_embeddings, mut additions) = (Vec::new(), Vec::new(), Vec::new());
    let given =
        loras.iter().map(|typed| strength_of(typed).map(|(file, strength)| (file, strength, strength)));
    let given = given.collect::<Result<Vec<_>, _>>()?;
    for (file, text_encoder, unet) in given.into_iter().chain(mentioned.loras.iter().cloned()) {
        if (text_encoder, unet) == (0.0, 0.0) && file.is_file() {
            // It changes nothing, and is no part of the picture.
            continue;
        }
        let lora = Lora::open(&file)?;
        let (lora, strength) = match text_encoder == unet {
            true => (lora, unet),
            false => (lora.with_shares(text_encoder, unet), 1.0),
        };
        lora.unused().iter().for_each(|line| say(format_args!("lora {}: not used: {line}", file.display())));
        opened_embeddings.extend_from_slice(lora.embeddings());
        opened_loras.push((lora, strength));
        additions.push(Addition::new(file, Some(unet))?);
    }
    for file in embeddings.iter().chain(&mentioned.embeddings) {
        let words = Embedding::open(file)?;
        words.iter().for_each(|word| mentioned.tell_unused(word.trigger()));
        opened_embeddings.extend(words);
        additions.push(Addition::new(file.clone(), None)?);
    }
    if !opened_loras.is_empty() {
        for Adapted { component, tensors, unused, .. } in model.add_loras(opened_loras)? {
            if tensors == 0 {
                say(format_args!("lora: not used: what it has for {component}, which this model lacks"));
            }
            for line in unused {
                say(format_args!("lora: not used: {line}, which this model's {component} lacks"));
            }
        }
    }
    if !opened_embeddings.is_empty() {
        model.add_embeddings(&opened_embeddings)?;
    }
    Ok((model, additions))
}

/// `FILE@W`; a name with an `@` of its own is a name, if there is such a file.
fn strength_of(typed: &OsStr) -> Result<(PathBuf, f32), Error> {
    let whole = PathBuf::from(typed);
    match split_at_sign(typed) {
        Some((file, number)) if !whole.exists() => match number.and_then(|number| number.parse::<f32>().ok())
        {
            Some(strength) if strength.is_finite() => Ok((file, strength)),
            _ => Err(Error::new(
                ErrorKind::Usage,
                format!("--lora: expected FILE or FILE@W with a number W, got {typed:?}"),
            )),
        },
        _ => Ok((whole, 1.0)),
    }
}

/// What is before the last `@`, and what is behind it, if that is text.
#[cfg(unix)]
fn split_at_sign(typed: &OsStr) -> Option<(PathBuf, Option<&str>)> {
    use std::os::unix::ffi::OsStrExt;
    let at = typed.as_bytes().iter().rposition(|&byte| byte == b'@')?;
    let (file, number) = typed.as_bytes().split_at(at);
    Some((OsStr::from_bytes(file).into(), str::from_utf8(&number[1..]).ok()))
}

#[cfg(not(unix))]
fn split_at_sign(typed: &OsStr) -> Option<(PathBuf, Option<&str>)> {
    typed.to_str()?.rsplit_once('@').map(|(file, number)| (file.into(), Some(number)))
}

fn sha256(path: &Path) -> Result<String, Error> {
    let mut hash = Sha256::new();
    let read = File::open(path).and_then(|mut file| io::copy(&mut file, &mut hash));
    read.map_err(|error| Error::new(ErrorKind::Model, path.display().to_string()).source(error))?;
    Ok(format!("{:x}", hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_takes_values_that_begin_with_a_hyphen() {
        let command = command();
        for command in command.get_subcommands() {
            let flags =
                command.get_arguments().filter(|arg| !arg.is_positional() && arg.get_action().takes_values());
            for flag in flags {
                assert!(flag.is_allow_hyphen_values_set(), "{} {flag}", command.get_name());
            }
        }
    }
}
