//! Certification: every component on every provider that is asked for, compared with a reference and timed.
//! What the trial at loading does once, it does on several inputs; see [`crate::manual::providers`].

mod auto;
mod peak;

use std::time::{Duration, Instant};

pub use self::auto::{Choice, Chosen, choose};
pub use self::peak::peak;
use crate::engine::{Placement, Provider, Providers, Session, SessionOptions};
use crate::model::{Model, Part};
use crate::stage::feed::Feed;
use crate::stage::seeded;
use crate::stage::trial::{self, Sampled};
use crate::{Error, ErrorKind, memory};

/// How many inputs a component is tried on.
const SEEDS: u64 = 3;
/// How many more runs are timed at most, and how long no more is begun after.
const TIMED_RUNS: usize = 3;
const TIMED: Duration = Duration::from_secs(1);

/// How one component did on one provider.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The component.
    pub component: &'static str,
    /// The provider, and the CPU behind it if that may run what it cannot.
    pub providers: Vec<Provider>,
    /// The largest of its relative errors.
    pub error: Result<f64, String>,
    /// What that may be.
    pub limit: f64,
    /// Whether golden values were among what it was compared with; else it was this machine's CPU alone.
    pub has_golden: bool,
    /// Where it ran.
    pub placement: Placement,
    /// From files to a session.
    pub open: Duration,
    /// The first run, in which some providers compile.
    pub first_run: Duration,
    /// The fastest of the later ones.
    pub run: Duration,
}

impl Certificate {
    /// Whether the provider computes what it should.
    pub fn is_passed(&self) -> bool {
        self.error.as_ref().is_ok_and(|error| *error <= self.limit)
    }
}

/// Tries every component of a model on each provider that is chosen for it, one at a time but for the CPU behind
/// it, and tells of each.
///
/// # Errors
/// [`crate::ErrorKind::Runtime`] for a provider that is missing or cannot run a component; a wrong result is no error
/// here.
pub fn certify(
    model: &Model,
    options: &SessionOptions,
    mut on_certificate: impl FnMut(&Certificate),
) -> Result<Vec<Certificate>, Error> {
    let mut certificates = Vec::new();
    for part in model.parts() {
        let encoder = model.encoder(part);
        let feeds = (trial::SEED..trial::SEED + SEEDS)
            .map(|seed| seeded::feeds(part, encoder, model.manifest(), None, seed))
            .collect::<Result<Vec<_>, Error>>()?;
        let golden = trial::golden(part);
        let mut references: Option<Vec<Vec<Sampled>>> = None;
        let chosen = options.providers.of(part.name());
        let behind = chosen.last().filter(|last| last.is_cpu());
        for provider in chosen {
            let behind = behind.filter(|_| !provider.is_cpu());
            let providers: Vec<Provider> = [provider].into_iter().chain(behind).cloned().collect();
            let Tried { placement, outputs, open, first_run, run } =
                Tried::on(part, &providers, &feeds, options)?;
            let limit = trial::limit(placement.precision);
            let references = match &references {
                Some(references) => references,
                None => {
                    let found = trial::on_cpu(part, feeds.iter().map(Vec::as_slice), options)?;
                    references.insert(found)
                }
            };
            let compared = references.iter().zip(&outputs).chain(golden.iter().zip(&outputs));
            let errors = compared.map(|(expected, outputs)| trial::distance(expected, outputs));
            let errors = errors.collect::<Result<Vec<f64>, String>>();
            // Of all, what is no number would be the largest.
            let error =
                errors.map(|errors| errors.into_iter().max_by(f64::total_cmp).expect("there are seeds"));
            let certificate = Certificate {
                component: part.name(),
                providers,
                error,
                limit,
                has_golden: golden.is_some(),
                placement,
                open,
                first_run,
                run,
            };
            if let Some(budget_bytes) = options.budget_bytes {
                memory::check_budget(part.name(), budget_bytes)?;
            }
            on_certificate(&certificate);
            certificates.push(certificate);
        }
    }
    Ok(certificates)
}

/// What a session of a component did, which is closed again.
struct Tried {
    placement: Placement,
    /// Of each run.
    outputs: Vec<Vec<Vec<f32>>>,
    open: Duration,
    first_run: Duration,
    /// The fastest of the later runs.
    run: Duration,
}

impl Tried {
    /// On these providers; [`ErrorKind::Runtime`] where one of them cannot be had.
    fn on(
        part: &Part,
        providers: &[Provider],
        feeds: &[Vec<Feed>],
        options: &SessionOptions,
    ) -> Result<Self, Error> {
        let options =
            SessionOptions { providers: Providers::everywhere(providers.to_vec()), ..options.clone() };
        let started = Instant::now();
        let mut session = Session::open(part.bind()?, &options)?;
        if let [(provider, reason), ..] = &session.placement().passed_over[..] {
            return Err(Error::new(
                ErrorKind::Runtime,
                format!("{}: {provider}: expected a trial run, got {reason}", part.name()),
            ));
        }
        let open = started.elapsed();
        let started = Instant::now();
        let mut outputs = vec![trial::run(&mut session, part, &feeds[0])?];
        let first_run = started.elapsed();
        session.settle(None);
        for feeds in &feeds[1..] {
            outputs.push(trial::run(&mut session, part, feeds)?);
        }
        let mut run = Duration::MAX;
        let all = Instant::now();
        for _ in 0..TIMED_RUNS {
            let started = Instant::now();
            trial::run(&mut session, part, &feeds[0])?;
            run = run.min(started.elapsed());
            if all.elapsed() > TIMED {
                break;
            }
        }
        Ok(Self { placement: session.placement().clone(), outputs, open, first_run, run })
    }
}
