//! The command line: flags become drafts, results and errors become text, JSON and exit codes.
//! It has no defaults of its own: what is not typed stays absent.

mod doctor;
mod draft;
mod generate;
mod inspect;
mod output;
mod pack;
mod plan;
mod provider;
mod receipt;
mod samplers;
mod verify;

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use calotype::adapter::embedding::Embedding;
use calotype::adapter::lora::Lora;
use calotype::engine::Library;
use calotype::model::{Adapted, Model, Overrides};
use calotype::{Error, ErrorKind};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

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
    Plan(plan::Flags),
    /// Make a bundle of a model: one folder, every file with its hash.
    Pack(pack::Flags),
    /// Check that a bundle is whole and can be opened, or that a picture was drawn by a model.
    Verify(verify::Flags),
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
        Command::Plan(flags) => (plan::run(flags), flags.common.json),
        Command::Pack(flags) => (pack::run(flags), flags.common.json),
        Command::Verify(flags) => (verify::run(flags), flags.common.json),
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

/// What is added to a model.
#[derive(Args)]
struct Additions {
    /// A LoRA file, and how much of it, 1 when absent; may be given several times.
    #[arg(long, value_name = "FILE[@W]")]
    lora: Vec<String>,
    /// A textual inversion, whose word is then known in prompts; may be given several times.
    #[arg(long, value_name = "FILE")]
    embedding: Vec<PathBuf>,
}

/// A small file that was added to a model.
#[derive(Serialize)]
struct Addition {
    file: PathBuf,
    sha256: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    strength: Option<f32>,
}

/// The model at a path, or the built-in one, with components from files of their own, and with LoRA files and textual inversions added; and a record of these.
fn open_model(
    path: Option<&PathBuf>,
    components: &Components,
    loras: &[String],
    embeddings: &[PathBuf],
) -> Result<(Model, Vec<Addition>), Error> {
    let mut model = Model::open_with(path.map(PathBuf::as_path), &components.overrides())?;
    let (mut opened_loras, mut opened_embeddings, mut additions) = (Vec::new(), Vec::new(), Vec::new());
    for typed in loras {
        let (file, strength) = strength_of(typed)?;
        opened_loras.push((Lora::open(&file)?, strength));
        additions.push(Addition { sha256: sha256(&file)?, file, strength: Some(strength) });
    }
    for file in embeddings {
        opened_embeddings.push(Embedding::open(file)?);
        additions.push(Addition { sha256: sha256(file)?, file: file.clone(), strength: None });
    }
    if !opened_loras.is_empty() {
        for Adapted { component, tensors, .. } in model.add_loras(&opened_loras)? {
            if tensors == 0 {
                eprintln!("calotype: lora: not used: what it has for {component}, which this model lacks");
            }
        }
    }
    if !opened_embeddings.is_empty() {
        model.add_embeddings(&opened_embeddings)?;
    }
    Ok((model, additions))
}

/// `FILE@W`; a name with an `@` of its own is a name, if there is such a file.
fn strength_of(typed: &str) -> Result<(PathBuf, f32), Error> {
    let whole = PathBuf::from(typed);
    match typed.rsplit_once('@') {
        Some((file, number)) if !whole.exists() => match number.parse::<f32>() {
            Ok(strength) if strength.is_finite() => Ok((file.into(), strength)),
            _ => Err(Error::new(
                ErrorKind::Usage,
                format!("--lora: expected FILE or FILE@W with a number W, got {typed:?}"),
            )),
        },
        _ => Ok((whole, 1.0)),
    }
}

fn sha256(path: &Path) -> Result<String, Error> {
    let mut hash = Sha256::new();
    let read = File::open(path).and_then(|mut file| io::copy(&mut file, &mut hash));
    read.map_err(|error| Error::new(ErrorKind::Model, path.display().to_string()).source(error))?;
    Ok(format!("{:x}", hash.finalize()))
}
