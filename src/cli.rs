//! The command line: flags become drafts, results and errors become text, JSON and exit codes.
//! It has no defaults of its own: what is not typed stays absent.

mod doctor;
mod generate;
mod inspect;
mod output;
mod receipt;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use calotype::engine::Library;
use calotype::model::Model;
use calotype::{Error, ErrorKind};
use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};

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
    Generate(generate::Flags),
    /// Explain a model: its files, graphs and numbers.
    Inspect(inspect::Flags),
    /// Say what this device and this build can do.
    Doctor(doctor::Flags),
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
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let (result, json) = match &cli.command {
        Command::Generate(flags) => (generate::run(flags), flags.common.json),
        Command::Inspect(flags) => (inspect::run(flags), flags.common.json),
        Command::Doctor(flags) => (doctor::run(flags), flags.common.json),
    };
    let (code, said) = match result {
        Ok(report) => (ExitCode::SUCCESS, if json { format!("{:#}\n", report.json) } else { report.text }),
        Err(error) => {
            eprintln!("calotype: {error}");
            let object = json!({"error": {
                "kind": format!("{:?}", error.kind()).to_lowercase(),
                "message": error.to_string(),
                "exit_code": error.kind().exit_code(),
            }});
            (
                ExitCode::from(error.kind().exit_code()),
                if json { format!("{object:#}\n") } else { String::new() },
            )
        }
    };
    // A reader that has gone away (`| head`) has all that it wants.
    match io::stdout().write_all(said.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("calotype: standard output: {error}");
            ExitCode::from(ErrorKind::Output.exit_code())
        }
        _ => code,
    }
}

/// The model that was asked for, or the built-in one.
fn open_model(path: Option<&PathBuf>) -> Result<Model, Error> {
    path.map_or_else(Model::built_in, |path| Model::open(path))
}
