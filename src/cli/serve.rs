//! `calotype serve`: the flags of the HTTP server.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use calotype::engine::{Cancel, SessionOptions};
use calotype::recipe::{NamedFile, Recipe};
use calotype::server::{Config, Served, serve};
use calotype::{Error, ErrorKind};
use clap::value_parser;
use serde_json::json;

use super::control::ControlModels;
use super::interrupt::Heeded;
use super::mention::Mentioned;
use super::open::{Additions, Components, open};
use super::preview::PreviewDecoder;
use super::receipt::Hashes;
use super::session::Session;
use super::{Common, Report, say, without_bom};

/// The longest file of prompts, a style sheet or a token.
const MAX_TEXT_BYTES: u64 = 1 << 20;
/// Prompts that the page offers of the built-in model.
const PRESETS: &str = include_str!("../server/kiosk/presets.txt");

#[derive(clap::Args)]
pub(super) struct Flags {
    /// Where to listen; `127.0.0.1` accepts local connections only, other addresses need a token. Ignored when systemd passes a
    /// socket.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:7860")]
    address: SocketAddr,
    /// A file whose first line is the token that clients send, as Bearer token or as password of Basic authentication.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// An origin whose web pages may use the server, such as `https://example.org`; repeatable.
    #[arg(long, value_name = "ORIGIN")]
    allow_origin: Vec<String>,
    /// A model to serve, optionally with its name in requests; repeatable. The built-in model when absent. The first is the
    /// default.
    #[arg(short, long, value_name = "[NAME=]PATH")]
    model: Vec<String>,
    /// Refuse requests for unknown models, which otherwise get the default model.
    #[arg(long)]
    strict_models: bool,
    /// Number of jobs that may wait.
    #[arg(long, value_name = "N", default_value = "16", value_parser = value_parser!(u16).range(1..=1024))]
    queue: u16,
    /// Time limit of a job in seconds, from its request; none when absent.
    #[arg(long, value_name = "SECONDS", value_parser = value_parser!(u32).range(1..))]
    deadline: Option<u32>,
    /// Seconds that the running job has to finish when the server shuts down.
    #[arg(long, value_name = "SECONDS", default_value = "30")]
    grace: u32,
    /// A file with the only prompts that are accepted, one per line.
    #[arg(long, value_name = "FILE")]
    fixed_prompts: Option<PathBuf>,
    /// A file with example prompts for the page, one per line.
    #[arg(long, value_name = "FILE")]
    presets: Option<PathBuf>,
    /// Reset the page after this many seconds without input.
    #[arg(long, value_name = "SECONDS", value_parser = value_parser!(u32).range(1..))]
    idle_reset: Option<u32>,
    /// A style sheet that replaces the page's theme.
    #[arg(long, value_name = "FILE")]
    theme: Option<PathBuf>,
    #[command(flatten)]
    session: Session,
    #[command(flatten)]
    preview_decoder: PreviewDecoder,
    #[command(flatten)]
    components: Components,
    #[command(flatten)]
    additions: Additions,
    #[command(flatten)]
    control_models: ControlModels,
    #[command(flatten)]
    pub(super) common: Common,
}

pub(super) fn run(flags: &Flags) -> Result<Report, Error> {
    let library = flags.common.library()?;
    let session = SessionOptions { cancel: Cancel::new(), ..flags.session.options()? };
    let models = flags.models()?;
    let config = flags.config()?;
    let heeded = Heeded::new();
    let names: Vec<String> = models.iter().map(|served| served.name.clone()).collect();
    let is_json = flags.common.json;
    let ready = |address| {
        // A supervisor reads this line; the report comes at the end.
        let line = match is_json {
            true => json!({ "address": format!("http://{address}"), "models": names }).to_string(),
            false => format!("serving {} at http://{address}", names.join(", ")),
        };
        say(line);
    };
    serve(config, models, session, flags.session.memory, library, || heeded.is_stopped(), ready)?;
    Ok(Report::new(String::new(), json!({ "served": names })))
}

impl Flags {
    fn config(&self) -> Result<Config, Error> {
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        Ok(Config {
            address: self.address,
            socket: socket()?,
            token: self.token_file.as_deref().map(token).transpose()?,
            origins: self.allow_origin.clone(),
            queue: self.queue.into(),
            deadline: self.deadline.map(seconds),
            grace: seconds(self.grace),
            is_strict: self.strict_models,
            fixed_prompts: self.fixed_prompts.as_deref().map(lines).transpose()?,
            presets: match &self.presets {
                Some(file) => lines(file)?,
                None if self.model.is_empty() => PRESETS.lines().map(str::to_owned).collect(),
                None => Vec::new(),
            },
            idle: self.idle_reset.map(seconds),
            theme: self.theme.as_deref().map(text).transpose()?,
        })
    }

    /// The models, each with its name.
    fn models(&self) -> Result<Vec<Served>, Error> {
        let typed: Vec<Option<&str>> = match self.model.is_empty() {
            true => vec![None],
            false => self.model.iter().map(|model| Some(model.as_str())).collect(),
        };
        let mut models: Vec<Served> = Vec::new();
        for typed in typed {
            let (name, path) = typed.map(name_and_path).unzip();
            let mut recipe = Recipe { model: path.map(NamedFile::from), ..Recipe::default() };
            self.components.apply(&mut recipe);
            self.additions.apply(&mut recipe)?;
            self.control_models.apply(&mut recipe)?;
            let (mut model, mut recipe, additions) = open(recipe, &Mentioned::default(), &self.session)?;
            self.preview_decoder.give_to(&mut model)?;
            let name = name.flatten().unwrap_or_else(|| model.manifest().name.clone());
            if models.iter().any(|other| other.name == name) {
                let message = format!("model: expected models of different names, got two of {name:?}");
                return Err(Error::new(ErrorKind::Usage, message).help("name them, as in NAME=PATH"));
            }
            let sha256 = Arc::new(OnceLock::new());
            let mut hashes = Hashes::begin(&model, &recipe);
            let (found, mut named) = (sha256.clone(), recipe.clone());
            let note = move || {
                if let Some(hash) = hashes.note(&mut named) {
                    let _ = found.set(hash);
                }
            };
            // Reading gigabytes takes longer than a client waits for the server.
            thread::Builder::new().name("calotype-hash".into()).spawn(note).map_err(|error| {
                Error::new(ErrorKind::Runtime, "expected to start a thread").source(error)
            })?;
            // What requests say comes on top of this.
            recipe.prompt.clear();
            models.push(Served { name, model, recipe, additions, sha256 });
        }
        Ok(models)
    }
}

/// `NAME=PATH`, or a path alone, also one with a `=` in it if there is such a file.
fn name_and_path(typed: &str) -> (Option<String>, PathBuf) {
    match typed.split_once('=') {
        Some((name, path)) if !name.is_empty() && !name.contains('/') && !Path::new(typed).exists() => {
            (Some(name.to_owned()), path.into())
        }
        _ => (None, typed.into()),
    }
}

/// The socket that systemd opened for this process (`LISTEN_FDS`), if there is one.
#[cfg(unix)]
fn socket() -> Result<Option<TcpListener>, Error> {
    let refuse = |got: String| Error::new(ErrorKind::Usage, format!("LISTEN_FDS: expected {got}"));
    let mut sockets = listenfd::ListenFd::from_env();
    match sockets.len() {
        0 => Ok(None),
        1 => sockets
            .take_tcp_listener(0)
            .map_err(|error| refuse("a listening TCP socket".into()).source(error)),
        count => Err(refuse(format!("one socket, got {count}"))),
    }
}

#[cfg(not(unix))]
fn socket() -> Result<Option<TcpListener>, Error> {
    Ok(None)
}

/// A small text file.
fn text(path: &Path) -> Result<String, Error> {
    let refuse = |error| Error::new(ErrorKind::Input, path.display().to_string()).source(error).in_file(path);
    let length = fs::metadata(path).map_err(refuse)?.len();
    if length > MAX_TEXT_BYTES {
        let got = format!("{}: expected at most {MAX_TEXT_BYTES} bytes, got {length}", path.display());
        return Err(Error::new(ErrorKind::Input, got).in_file(path));
    }
    fs::read_to_string(path).map(|text| without_bom(&text).to_owned()).map_err(refuse)
}

/// The lines of a file that are not empty.
fn lines(path: &Path) -> Result<Vec<String>, Error> {
    let lines: Vec<String> =
        text(path)?.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if lines.is_empty() {
        let message = format!("{}: expected prompts, got none", path.display());
        return Err(Error::new(ErrorKind::Input, message).in_file(path));
    }
    Ok(lines)
}

fn token(path: &Path) -> Result<String, Error> {
    let token = text(path)?.lines().next().unwrap_or_default().trim().to_owned();
    if token.len() < 8 {
        let message =
            format!("{}: expected a token of at least 8 characters, got {}", path.display(), token.len());
        return Err(Error::new(ErrorKind::Input, message).in_file(path));
    }
    Ok(token)
}
