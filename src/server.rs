//! HTTP: requests become recipes, and images replies. One thread generates; axum does the protocol.
//! It has no defaults of its own for images: what a client does not say is the model's.
//!
//! OpenAI's image API and A1111's (`/sdapi/v1`) are for existing clients, jobs with events for your own pages and programs,
//! and `/latest` for photo frames.

mod a1111;
mod access;
mod fields;
mod jobs;
mod kiosk;
pub mod limit;
mod listen;
mod openai;
mod openapi;
mod panel;
mod queue;
mod reply;
mod room;
mod supervisor;
mod units;
mod watch;
mod worker;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware;
use tokio::sync::Semaphore;
use tower_http::timeout::RequestBodyTimeoutLayer;

use self::queue::{Job, Queue, Work};
use self::reply::Problem;
use self::supervisor::Supervisor;
pub use self::worker::Served;
use self::worker::Worker;
use crate::engine::{Library, SessionOptions};
use crate::plan::Budget;
use crate::prompt::{Mention, mentions};
use crate::recipe::Recipe;
use crate::request::Request;
use crate::tensor::PixelSize;
use crate::{Error, ErrorKind};

/// The worker's stack; as large as a program's first thread has.
const STACK_BYTES: usize = 8 << 20;
/// How often it is asked whether the server ends.
const STOP_INTERVAL: Duration = Duration::from_millis(50);

/// How a server serves.
#[derive(Debug)]
pub struct Config {
    /// Where it listens. Another address than this machine's own needs a token.
    pub address: SocketAddr,
    /// A socket that listens already, which systemd opened, in place of the address.
    pub socket: Option<TcpListener>,
    /// What clients have to send, as Bearer or as Basic password.
    pub token: Option<String>,
    /// Web pages that may use it beside its own, as `https://example.org`.
    pub origins: Vec<String>,
    /// How many jobs may wait.
    pub queue: usize,
    /// How long a job may take from its request on; without a limit when absent.
    pub deadline: Option<Duration>,
    /// How long the running job may go on when the server ends.
    pub grace: Duration,
    /// Whether requests that name no model of this server are refused; otherwise they get the default.
    pub is_strict: bool,
    /// The only prompts that are accepted; any when absent.
    pub fixed_prompts: Option<Vec<String>>,
    /// Prompts that the page offers.
    pub presets: Vec<String>,
    /// After how long without input the page starts over.
    pub idle: Option<Duration>,
    /// A style sheet in place of the page's theme.
    pub theme: Option<String>,
}

/// What a client asks for.
struct Submission {
    /// The index of the model.
    model: usize,
    /// Of the first image; the others have consecutive seeds.
    recipe: Recipe,
    /// How many images.
    count: u64,
    /// The channel whose newest image they become.
    channel: Option<String>,
    /// What the client asked for and is not used, a line each.
    warnings: Vec<String>,
}

/// What the handlers share.
struct App {
    config: Config,
    queue: Arc<Queue>,
    models: Arc<Vec<Served>>,
    /// The model of requests that name none.
    model: AtomicUsize,
    /// What A1111's options were set to.
    options: RwLock<serde_json::Map<String, serde_json::Value>>,
    started: Instant,
    /// For the bodies of requests.
    room: Arc<Semaphore>,
}

/// Serves until `stop` says so, and then until the running job is done or the time for it is over. `ready` is told the
/// address.
///
/// # Errors
/// [`ErrorKind::Usage`] for an address of other machines without a token, and without a model;
/// [`ErrorKind::Output`] when it cannot listen there.
pub fn serve(
    mut config: Config,
    models: Vec<Served>,
    session: SessionOptions,
    budget: Option<Budget>,
    library: &'static Library,
    stop: impl Fn() -> bool,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), Error> {
    if models.is_empty() {
        return Err(Error::new(ErrorKind::Usage, "models: expected at least one, got none"));
    }
    let listener = match config.socket.take() {
        Some(socket) => socket,
        None => {
            check_token(config.address, config.token.as_deref())?;
            TcpListener::bind(config.address).map_err(|error| refuse_address(config.address, error))?
        }
    };
    let address = listener.local_addr().map_err(|error| refuse_address(config.address, error))?;
    check_token(address, config.token.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime
        .map_err(|error| Error::new(ErrorKind::Runtime, "expected a server's runtime").source(error))?;
    let listener = {
        let _inside = runtime.enter();
        let listening =
            listener.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(listener));
        listening.map_err(|error| refuse_address(address, error))?
    };
    let queue = Arc::new(Queue::new(config.queue, session.cancel.clone()));
    let models = Arc::new(models);
    let worker = Worker {
        queue: queue.clone(),
        models: models.clone(),
        session: session.clone(),
        budget,
        library,
        opened: None,
    };
    let worker =
        thread::Builder::new().name("calotype-worker".into()).stack_size(STACK_BYTES).spawn(|| worker.run());
    let worker =
        worker.map_err(|error| Error::new(ErrorKind::Runtime, "expected to start a thread").source(error))?;
    let grace = config.grace;
    let app = Arc::new(App {
        config: Config { address, ..config },
        queue: queue.clone(),
        models,
        model: AtomicUsize::new(0),
        options: RwLock::default(),
        started: Instant::now(),
        room: room::room(),
    });
    let mut supervisor = Supervisor::new();
    ready(address);
    supervisor.ready(address);
    runtime.block_on(listen::serve(listener, router(app), async || {
        while !stop() {
            supervisor.alive(&queue);
            tokio::time::sleep(STOP_INTERVAL).await;
        }
        supervisor.stopping();
        queue.close();
        let last = Instant::now() + grace;
        while !queue.is_idle() && Instant::now() < last {
            supervisor.alive(&queue);
            tokio::time::sleep(STOP_INTERVAL).await;
        }
        if let Some(job) = queue.running() {
            queue.cancel(&job);
        }
    }));
    // A blocking task may still encode an image that nobody waits for.
    runtime.shutdown_background();
    if worker.join().is_err() {
        return Err(Error::new(ErrorKind::Internal, "internal error (a bug in calotype)"));
    }
    Ok(())
}

/// Other machines get nothing without a token.
fn check_token(address: SocketAddr, token: Option<&str>) -> Result<(), Error> {
    if address.ip().is_loopback() || token.is_some() {
        return Ok(());
    }
    let got = format!(
        "address: expected a token, because other machines can reach the address, got {address} without one"
    );
    Err(Error::new(ErrorKind::Usage, got).help("without a token, listen on 127.0.0.1"))
}

fn refuse_address(address: SocketAddr, error: io::Error) -> Error {
    Error::new(ErrorKind::Output, format!("{address}: expected a free address")).source(error)
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .merge(openai::routes())
        .merge(openapi::routes())
        .merge(a1111::routes())
        .merge(jobs::routes())
        .merge(kiosk::routes())
        .merge(watch::routes())
        .fallback(async || Problem::not_found("path"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "expected another method for this path")
        })
        .layer(DefaultBodyLimit::max(limit::BODY_BYTES))
        .layer(RequestBodyTimeoutLayer::new(limit::BODY_TIME))
        .layer(middleware::from_fn_with_state(app.clone(), room::admit))
        .layer(middleware::from_fn_with_state(app.clone(), access::check))
        .with_state(app)
}

impl App {
    /// The model of this name, or the default one.
    fn model(&self, name: Option<&str>) -> Result<usize, Problem> {
        let default = self.model.load(std::sync::atomic::Ordering::Relaxed);
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(default) };
        let known = |served: &Served| served.name == name || name.starts_with(&format!("{} [", served.name));
        match self.models.iter().position(known) {
            Some(index) => Ok(index),
            None if self.config.is_strict => {
                let names =
                    self.models.iter().map(|served| served.name.as_str()).collect::<Vec<_>>().join(", ");
                let message = format!("expected one of {names}, got {name:?}");
                Err(Problem::field("model", message).status(StatusCode::NOT_FOUND))
            }
            // Clients have lists of other people's models, and send one of these.
            None => Ok(default),
        }
    }

    /// A recipe for a model of this server, with nothing in it yet.
    fn recipe(&self, model: usize) -> Recipe {
        self.models[model].recipe.clone()
    }

    /// Rounds a size to what the model's latents can have; says so.
    fn rounded(
        &self,
        model: usize,
        width: u32,
        height: u32,
        warnings: &mut Vec<String>,
    ) -> Result<PixelSize, Problem> {
        let factor = self.models[model].model.manifest().latents.factor_px;
        let round = |side: u32| (side.saturating_add(factor / 2) / factor).max(1).saturating_mul(factor);
        let (new_width, new_height) = (round(width), round(height));
        if (new_width, new_height) != (width, height) && width > 0 && height > 0 {
            warnings.push(format!("size: {width}x{height} is rounded to {new_width}x{new_height}"));
            return Ok(PixelSize::new(new_width, new_height)?);
        }
        Ok(PixelSize::new(width, height)?)
    }

    /// Checks a job and puts it into the queue.
    async fn submit(self: &Arc<Self>, submission: Submission) -> Result<Arc<Job>, Problem> {
        let Submission { model, recipe, count, channel, mut warnings } = submission;
        if let Some(fixed) = &self.config.fixed_prompts
            && !fixed.contains(&recipe.prompt)
        {
            let message = "expected one of this server's fixed prompts";
            return Err(Problem::field("prompt", message).status(StatusCode::FORBIDDEN));
        }
        if !(1..=limit::IMAGES).contains(&count) {
            return Err(Problem::field("n", format!("expected 1 to {} images, got {count}", limit::IMAGES)));
        }
        let served = &self.models[model];
        for mention in mentions(&recipe.prompt) {
            if let Mention::Lora { name, .. } = mention
                && !served.additions.iter().any(|addition| addition.is_lora && addition.name == name)
            {
                warnings.push(format!("prompt: <lora:{name}>: not used; the server was started without it"));
            }
        }
        let app = self.clone();
        let request = blocking(move || {
            let request = Request::new(recipe.without_idle_controls(), &app.models[model].model)?;
            request.check_seeds(count)?;
            Ok(request)
        })
        .await?;
        let job = self.queue.submit(Work { model, request, count, channel, warnings })?;
        if let Some(deadline) = self.config.deadline {
            let (app, job) = (self.clone(), job.clone());
            tokio::spawn(async move {
                let mut watch = job.watch();
                tokio::select! {
                    () = tokio::time::sleep(deadline) => app.queue.expire(&job),
                    _ = watch.wait_for(|state| state.status.is_final()) => {}
                }
            });
        }
        Ok(job)
    }

    /// What was set of A1111's options.
    fn options(&self) -> serde_json::Map<String, serde_json::Value> {
        self.options.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Does work that takes a while, such as reading images, in another thread than that of the connections.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
        Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error (a bug in calotype)"))
    })
}
