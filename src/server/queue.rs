//! Jobs that wait, the one that runs, and those that are finished. It knows nothing of HTTP or of how an image is generated.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use image::RgbImage;
use tokio::sync::watch;

use super::limit;
use crate::engine::Cancel;
use crate::recipe::{Receipt, Recipe};
use crate::request::Request;
use crate::{Error, ErrorKind};

/// What a job does: a request that its model can fulfil.
#[derive(Clone, Debug)]
pub struct Work {
    /// The index of the model.
    pub model: usize,
    /// Of the first image; the others have consecutive seeds.
    pub request: Request,
    /// How many images.
    pub count: u64,
    /// The channel whose newest image they become.
    pub channel: Option<String>,
    /// What the client asked for and is not used, a line each.
    pub warnings: Vec<String>,
}

/// A request on its way to images.
pub struct Job {
    /// Its random name.
    pub id: String,
    /// When it came.
    pub created: SystemTime,
    /// The index of its model.
    pub model: usize,
    /// Of the first image, with all defaults; without pixels.
    pub recipe: Recipe,
    /// How many images.
    pub count: u64,
    /// The channel whose newest image they become.
    pub channel: Option<String>,
    /// Until it runs: its images are not kept in memory afterwards.
    request: Mutex<Option<Request>>,
    /// Whether a client reads previews.
    pub wants_previews: AtomicBool,
    state: watch::Sender<State>,
    /// Whether it ends after the step that is done, with the image as it is then.
    is_interrupted: AtomicBool,
    is_late: AtomicBool,
}

/// How far a job is.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Whether it waits, runs, or how it ended.
    pub status: Status,
    /// Steps of the image that is generated which are done.
    pub step: usize,
    /// Steps of one image.
    pub steps: usize,
    /// When the first step began, of the image that is generated.
    pub began: Option<Instant>,
    /// What the image looks like after the last step, where somebody looks.
    pub preview: Option<Arc<RgbImage>>,
    /// The images that are finished.
    pub images: Vec<Arc<Finished>>,
    /// Why it failed.
    pub error: Option<Failure>,
    /// What was not done as asked, a line each.
    pub warnings: Vec<String>,
}

/// Whether a job waits, runs, or how it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Status {
    /// It waits.
    #[default]
    Queued,
    /// It is generated.
    Running,
    /// All its images are there.
    Done,
    /// It ended with an error.
    Failed,
    /// It was cancelled.
    Cancelled,
}

impl Status {
    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether it stays as it is.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// A finished image.
#[derive(Debug)]
pub struct Finished {
    /// Its pixels.
    pub image: RgbImage,
    /// How to generate it again; of an interrupted job none.
    pub receipt: Option<Receipt>,
    /// A1111's text of it.
    pub parameters: String,
    /// Its seed.
    pub seed: u64,
    /// When it was finished.
    pub time: SystemTime,
}

/// An error that several readers see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its kind.
    pub kind: ErrorKind,
    /// Its text.
    pub message: String,
    /// Whether its deadline was over.
    pub is_late: bool,
}

/// How messages for clients name a setting.
pub fn setting(name: &str) -> String {
    name.replace('_', " ")
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let message = error.message_with(setting);
        Self { kind: error.kind(), message, is_late: false }
    }
}

impl Job {
    /// How far it is, for who waits for changes.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// How far it is.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Changes what is known of it.
    pub fn update(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
    }

    /// Whether it ends with what there is.
    pub fn is_interrupted(&self) -> bool {
        self.is_interrupted.load(Ordering::Relaxed)
    }

    /// The request of its first image, for the one who generates it: there is none a second time.
    pub fn take_request(&self) -> Option<Request> {
        self.request.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn end(&self, status: Status, error: Option<Failure>) {
        self.update(|state| {
            state.status = status;
            state.error = error;
            state.preview = None;
        });
        self.take_request();
    }
}

/// The jobs of a server, in the order in which they came.
pub struct Queue {
    jobs: Mutex<Jobs>,
    ready: Condvar,
    limit: usize,
    /// Ends the call that runs.
    cancel: Cancel,
    /// What was counted.
    pub counts: Counts,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Arc<Job>>,
    running: Option<Arc<Job>>,
    /// The oldest first.
    finished: VecDeque<Arc<Job>>,
    /// The newest image of each channel, the oldest channel first.
    channels: VecDeque<(String, Arc<Finished>)>,
    is_closed: bool,
    /// How long the last job ran.
    last: Option<Duration>,
    began: Option<Instant>,
    /// When the running job was cancelled.
    cancelled: Option<Instant>,
}

/// What a server counts from its start.
#[derive(Default)]
pub struct Counts {
    /// Jobs that were accepted.
    pub accepted: AtomicU64,
    /// Jobs that were refused because the queue was full.
    pub refused: AtomicU64,
    /// Images that were finished.
    pub images: AtomicU64,
    /// Jobs that failed.
    pub failed: AtomicU64,
    /// Jobs that were cancelled.
    pub cancelled: AtomicU64,
    /// Steps that were done.
    pub steps: AtomicU64,
    /// The time that jobs ran, in milliseconds.
    pub busy_ms: AtomicU64,
}

/// Why a job was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// So many wait already; one may be through after this time.
    Full(Duration),
    /// The server ends.
    Closed,
}

impl Queue {
    /// An empty queue in which so many may wait. `cancel` ends the calls of the pipelines.
    pub fn new(limit: usize, cancel: Cancel) -> Self {
        Self { jobs: Mutex::default(), ready: Condvar::new(), limit, cancel, counts: Counts::default() }
    }

    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        // Nothing in here is left half done by a panic.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts a job.
    pub fn submit(&self, work: Work) -> Result<Arc<Job>, Refusal> {
        let mut jobs = self.jobs();
        if jobs.is_closed {
            return Err(Refusal::Closed);
        }
        if jobs.waiting.len() >= self.limit {
            self.counts.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Refusal::Full(jobs.last.unwrap_or(Duration::from_secs(5))));
        }
        let Work { model, request, count, channel, warnings } = work;
        let job = Arc::new(Job {
            id: id(),
            created: SystemTime::now(),
            model,
            recipe: request.recipe(),
            count,
            channel,
            wants_previews: AtomicBool::new(false),
            state: watch::Sender::new(State { steps: request.steps_taken(), warnings, ..State::default() }),
            request: Mutex::new(Some(request)),
            is_interrupted: AtomicBool::new(false),
            is_late: AtomicBool::new(false),
        });
        jobs.waiting.push_back(job.clone());
        self.counts.accepted.fetch_add(1, Ordering::Relaxed);
        self.ready.notify_one();
        Ok(job)
    }

    /// The next job, which runs from now on; nothing when the queue is closed and empty.
    pub fn next(&self) -> Option<Arc<Job>> {
        let mut jobs = self.jobs();
        loop {
            if let Some(job) = jobs.waiting.pop_front() {
                // Under the lock: what is cancelled after this is this job.
                self.cancel.reset();
                jobs.running = Some(job.clone());
                jobs.began = Some(Instant::now());
                jobs.cancelled = None;
                job.update(|state| state.status = Status::Running);
                // Those behind it have moved up.
                jobs.waiting.iter().for_each(|waiting| waiting.update(|_| ()));
                return Some(job);
            }
            if jobs.is_closed {
                return None;
            }
            jobs = self.ready.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The running job has ended, so.
    pub fn finish(&self, job: &Arc<Job>, result: Result<(), Error>) {
        let mut jobs = self.jobs();
        jobs.running = None;
        jobs.cancelled = None;
        jobs.last = jobs.began.take().map(|began| began.elapsed());
        let ran = jobs.last.unwrap_or_default();
        self.counts.busy_ms.fetch_add(ran.as_millis() as u64, Ordering::Relaxed);
        if let (Some(channel), Some(image)) = (&job.channel, job.state().images.last()) {
            jobs.channels.retain(|(name, _)| name != channel);
            jobs.channels.push_back((channel.clone(), image.clone()));
            if jobs.channels.len() > limit::CHANNELS {
                jobs.channels.pop_front();
            }
        }
        let is_late = job.is_late.load(Ordering::Relaxed);
        let (status, count) = match &result {
            Ok(()) => (Status::Done, None),
            Err(error) if error.kind() == ErrorKind::Cancelled && !is_late => {
                (Status::Cancelled, Some(&self.counts.cancelled))
            }
            Err(_) => (Status::Failed, Some(&self.counts.failed)),
        };
        if let Some(count) = count {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let failure = result.err().map(|error| Failure { is_late, ..Failure::from(&error) });
        jobs.keep(job);
        job.end(status, failure);
    }

    /// Cancels a job, whether it waits or runs; the call that runs ends.
    pub fn cancel(&self, job: &Job) {
        let mut jobs = self.jobs();
        if jobs.running.as_ref().is_some_and(|running| running.id == job.id) {
            self.cancel.cancel();
            jobs.cancelled.get_or_insert_with(Instant::now);
            return;
        }
        let Some(at) = jobs.waiting.iter().position(|waiting| waiting.id == job.id) else { return };
        let Some(job) = jobs.waiting.remove(at) else { return };
        jobs.keep(&job);
        jobs.waiting.iter().for_each(|waiting| waiting.update(|_| ()));
        drop(jobs);
        let is_late = job.is_late.load(Ordering::Relaxed);
        let message = if is_late {
            "the deadline passed before the job began"
        } else {
            "cancelled before the job began"
        };
        let failure = Failure { kind: ErrorKind::Cancelled, message: message.into(), is_late };
        self.counts.cancelled.fetch_add(1, Ordering::Relaxed);
        job.end(if is_late { Status::Failed } else { Status::Cancelled }, Some(failure));
    }

    /// How long the running job has gone on since it was cancelled; nothing where it was not.
    pub fn overdue(&self) -> Option<Duration> {
        self.jobs().cancelled.map(|cancelled| cancelled.elapsed())
    }

    /// Cancels a job whose deadline is over.
    pub fn expire(&self, job: &Job) {
        job.is_late.store(true, Ordering::Relaxed);
        self.cancel(job);
    }

    /// The job that runs ends after its step, with the image as it is then.
    pub fn interrupt(&self) {
        if let Some(job) = &self.jobs().running {
            job.is_interrupted.store(true, Ordering::Relaxed);
        }
    }

    /// No more jobs: those that wait are cancelled, the one that runs goes on.
    pub fn close(&self) {
        let waiting: Vec<_> = {
            let mut jobs = self.jobs();
            jobs.is_closed = true;
            jobs.waiting.iter().cloned().collect()
        };
        waiting.iter().for_each(|job| self.cancel(job));
        self.ready.notify_all();
    }

    /// Whether it takes jobs.
    pub fn is_open(&self) -> bool {
        !self.jobs().is_closed
    }

    /// How many may wait.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.jobs().waiting.len()
    }

    /// Whether nothing waits or runs.
    pub fn is_idle(&self) -> bool {
        let jobs = self.jobs();
        jobs.waiting.is_empty() && jobs.running.is_none()
    }

    /// How many jobs are before this one, the one that runs included; nothing when it does not wait.
    pub fn position(&self, job: &Job) -> Option<usize> {
        let jobs = self.jobs();
        let before = jobs.waiting.iter().position(|waiting| waiting.id == job.id)?;
        Some(before + usize::from(jobs.running.is_some()))
    }

    /// The job that runs.
    pub fn running(&self) -> Option<Arc<Job>> {
        self.jobs().running.clone()
    }

    /// The job of this name.
    pub fn find(&self, id: &str) -> Option<Arc<Job>> {
        self.all().into_iter().find(|job| job.id == id)
    }

    /// All that are known, the newest first.
    pub fn all(&self) -> Vec<Arc<Job>> {
        let jobs = self.jobs();
        let mut all: Vec<_> =
            jobs.finished.iter().chain(&jobs.running).chain(&jobs.waiting).cloned().collect();
        all.reverse();
        all
    }

    /// The newest image of a channel; of all images without a name.
    pub fn newest(&self, channel: Option<&str>) -> Option<Arc<Finished>> {
        let jobs = self.jobs();
        match channel {
            Some(name) => {
                jobs.channels.iter().find(|(known, _)| known == name).map(|(_, image)| image.clone())
            }
            None => jobs.finished.iter().rev().find_map(|job| job.state().images.last().cloned()),
        }
    }
}

impl Jobs {
    /// Keeps a job that is finished, and lets the oldest go.
    fn keep(&mut self, job: &Arc<Job>) {
        self.finished.push_back(job.clone());
        let bytes = |job: &Arc<Job>| {
            job.state().images.iter().map(|finished| finished.image.as_raw().len()).sum::<usize>()
        };
        let mut kept_bytes: usize = self.finished.iter().map(bytes).sum();
        while self.finished.len() > limit::FINISHED_JOBS
            || (self.finished.len() > 1 && kept_bytes > limit::FINISHED_BYTES)
        {
            kept_bytes -= self.finished.pop_front().as_ref().map(bytes).unwrap_or_default();
        }
    }
}

/// 128 random bits, as the standard library seeds its hash tables with.
fn id() -> String {
    use std::hash::{BuildHasher, RandomState};
    format!("{:016x}{:016x}", RandomState::new().hash_one(0), RandomState::new().hash_one(1))
}

#[cfg(test)]
#[cfg(feature = "builtin")]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use crate::model::Model;

    fn work() -> Work {
        static REQUEST: LazyLock<Request> = LazyLock::new(|| {
            Request::new(Recipe::default(), &Model::built_in().expect("the model")).expect("a request")
        });
        Work { model: 0, request: REQUEST.clone(), count: 1, channel: None, warnings: Vec::new() }
    }

    #[test]
    fn a_cancelled_job_is_overdue_until_it_ends() {
        let queue = Queue::new(1, Cancel::new());
        let job = queue.submit(work()).unwrap();
        queue.next();
        assert_eq!(queue.overdue(), None);
        queue.cancel(&job);
        let first = queue.overdue().expect("it was cancelled");
        queue.cancel(&job);
        assert!(queue.overdue().expect("it was cancelled") >= first);
        queue.finish(&job, Ok(()));
        assert_eq!(queue.overdue(), None);
    }

    /// A request holds the images that it starts from; finished jobs are kept.
    #[test]
    fn jobs_that_have_ended_hold_no_request() {
        let queue = Queue::new(4, Cancel::new());
        let (one, two, three) =
            (queue.submit(work()).unwrap(), queue.submit(work()).unwrap(), queue.submit(work()).unwrap());
        let running = queue.next().unwrap();
        let seed = running.take_request().expect("the request").seed();
        assert_eq!(one.recipe.seed, Some(seed), "clients see the seed from the start");
        assert!(one.take_request().is_none(), "it runs once");
        queue.finish(&one, Ok(()));
        queue.cancel(&two);
        queue.next();
        queue.finish(&three, Err(Error::new(ErrorKind::Model, "damaged")));
        assert!([two, three].iter().all(|job| job.take_request().is_none()));
    }

    #[test]
    fn jobs_run_in_order_and_more_than_fit_are_refused() {
        let queue = Queue::new(2, Cancel::new());
        let (one, two) = (queue.submit(work()).unwrap(), queue.submit(work()).unwrap());
        assert!(matches!(queue.submit(work()), Err(Refusal::Full(_))));
        assert_eq!(queue.next().unwrap().id, one.id);
        assert_eq!((queue.position(&one), queue.position(&two)), (None, Some(1)));
        let three = queue.submit(work()).expect("room behind the one that runs");
        queue.finish(&one, Ok(()));
        assert_eq!(queue.next().unwrap().id, two.id);
        assert_eq!(queue.position(&three), Some(1));
        assert_eq!(queue.find(&one.id).unwrap().state().status, Status::Done);
    }

    #[test]
    fn waiting_and_running_jobs_are_cancelled() {
        let cancel = Cancel::new();
        let queue = Queue::new(4, cancel.clone());
        let (one, two) = (queue.submit(work()).unwrap(), queue.submit(work()).unwrap());
        queue.next();
        queue.cancel(&two);
        assert!(!cancel.is_cancelled());
        assert_eq!(two.state().status, Status::Cancelled);
        queue.cancel(&one);
        assert!(cancel.is_cancelled());
        queue.finish(&one, Err(Error::new(ErrorKind::Cancelled, "stopped")));
        assert_eq!(one.state().status, Status::Cancelled);
        let three = queue.submit(work()).unwrap();
        assert_eq!(queue.next().unwrap().id, three.id);
        assert!(!cancel.is_cancelled(), "the next job is not cancelled with the last");
    }

    #[test]
    fn a_job_that_is_late_failed() {
        let queue = Queue::new(4, Cancel::new());
        let (one, two) = (queue.submit(work()).unwrap(), queue.submit(work()).unwrap());
        queue.next();
        for job in [&one, &two] {
            queue.expire(job);
        }
        queue.finish(&one, Err(Error::new(ErrorKind::Cancelled, "stopped")));
        for job in [one, two] {
            let state = job.state();
            assert_eq!((state.status, state.error.unwrap().is_late), (Status::Failed, true));
        }
    }

    #[test]
    fn a_closed_queue_ends() {
        let queue = Queue::new(4, Cancel::new());
        let (one, two) = (queue.submit(work()).unwrap(), queue.submit(work()).unwrap());
        queue.next();
        queue.close();
        assert_eq!(two.state().status, Status::Cancelled);
        assert_eq!(one.state().status, Status::Running);
        assert!(matches!(queue.submit(work()), Err(Refusal::Closed)));
        queue.finish(&one, Ok(()));
        assert!(queue.next().is_none());
    }

    #[test]
    fn what_is_finished_is_bounded() {
        let queue = Queue::new(4, Cancel::new());
        for _ in 0..limit::FINISHED_JOBS + 5 {
            queue.submit(work()).unwrap();
            let job = queue.next().unwrap();
            queue.finish(&job, Ok(()));
        }
        assert_eq!(queue.all().len(), limit::FINISHED_JOBS);
        let large = Finished {
            image: RgbImage::new(8192, 4096),
            receipt: None,
            parameters: String::new(),
            seed: 0,
            time: SystemTime::UNIX_EPOCH,
        };
        let large = Arc::new(large);
        for _ in 0..2 {
            queue.submit(work()).unwrap();
            let job = queue.next().unwrap();
            job.update(|state| state.images.push(large.clone()));
            queue.finish(&job, Ok(()));
        }
        assert_eq!(queue.all().len(), 1, "two of 96 MiB are too much");
    }
}
