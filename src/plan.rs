//! The plan of a run: how much memory each stage will take, and how it is kept within a budget.
//! It knows the sizes of weights and activations before anything is opened, and nothing of ONNX Runtime's API.
//!
//! Stages run one after another, and give their memory back when they end, unless the budget has room for all of them at
//! once. Each is run in the fastest way that fits: whole, or with the weights on disk; with one call of the U-Net for all
//! predictions, or one for each; the image whole, or in tiles.

mod extent;
mod text;

use std::fmt;
use std::slice;
use std::str::FromStr;

use serde::Serialize;

use self::extent::Extent;
use self::text::{Call, Reading};
use crate::engine::{self, Library, Providers, Residency, SessionOptions};
use crate::graph::{
    Dialect, Dim, Graph, Port, Segment, SegmentBytes, least_resident_bytes, pinned, resident_bytes,
};
use crate::memory::{self, Memory};
use crate::model::{Model, PREVIEW_DECODER, Part, PreviewDecoder};
use crate::noise::BrownianTree;
use crate::request::Request;
use crate::signature::{Binding, Role};
use crate::stage::feed::{residual_shape, timestep_shape};
use crate::stage::text_encoder::{self, MAX_BATCH};
use crate::stage::tile::Halves;
use crate::tensor::{LatentShape, PixelSize};
use crate::tile::Tile;
use crate::{Error, ErrorKind};

/// What more the process takes than it has when it plans and all of its code. Measured on x86-64 (`smaps` at the peak): 1 MiB of
/// the program's and the C library's data, and up to 3 MiB that came and went between runs of one command; with the rest 600
/// budgets of random rows were kept but one, whose code came in after the plan.
pub(crate) const OVERHEAD_BYTES: u64 = 3 << 20;
/// What ONNX Runtime's library takes, where it is opened after the plan: 33.1 MiB on x86-64 with all of its code in memory, as after
/// the file was copied, with the libraries that it needs and its environment.
const LIBRARY_BYTES: u64 = 34 << 20;
/// What a process is taken to have where the system does not say.
const UNKNOWN_RESIDENT_BYTES: u64 = 64 << 20;
/// What each thread takes for its stack and its arena of the heap.
pub(crate) const THREAD_BYTES: u64 = 128 << 10;
/// How much a tokenizer takes in memory, in the length of its files.
const TOKENIZER_PART: u64 = 7;
/// What our own copies of a graph take while it is open, as one part in so many of what ONNX Runtime has for it.
const COPIES_PART: u64 = 2;
/// The part of what is free that is left to others when no budget is given.
const RESERVED_PART: u64 = 8;
/// By how much what the process has when it plans may differ between two runs of one command: 2.4 MiB at most in twelve runs
/// of one plan, mostly one large page of a mapped file, which is there or not, and between 3 and 4 MiB in one of 200 beside
/// builds. What is named as enough includes it.
const VARIATION_BYTES: u64 = 5 << 20;
/// How many latents a run keeps beside those that the U-Net is fed, and a Brownian tree: samplers' and solvers' past steps, of
/// guidance, noise, the image that is drawn from.
const LATENTS: usize = 12;
/// The weights of a segment, the largest first. Smaller segments than the least are most of the time being opened.
const SEGMENTS_MIB: [usize; 6] = [256, 128, 64, 32, 16, 8];
/// The sides of tiles in cells, the largest first.
const TILES_CELLS: [usize; 6] = [128, 96, 64, 48, 32, 16];
/// How much more than it uses the pool keeps while there is no limit, as one part in so many.
pub(crate) const POOL_KEEPS_PART: u64 = 4;
/// How much of what is copied is there twice while a session opens, as one part in so many: 10 of 46 MiB measured of the built-in
/// model's U-Net.
const OPENING_PART: u64 = 2;
/// What the heap loses between things that are kept for good, as one part in so many of them.
const KEPT_SLACK: u64 = 64;
/// The part of the pool that may be lost in blocks longer than what was asked for, and in pages that are not full.
const POOL_SLACK: u64 = 12;

/// How much memory the process may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    bytes: u64,
    /// Whether somebody asked for it, and the process is held to it.
    is_stated: bool,
}

impl Budget {
    /// So many bytes.
    pub const fn of_bytes(bytes: u64) -> Self {
        Self { bytes, is_stated: true }
    }

    /// What is free on this machine, with what this process has, less an eighth for others; without a limit where the
    /// machine does not say.
    pub fn of_this_machine() -> Self {
        let free = Memory::of_this_machine().map(|memory| {
            let own = memory::resident_bytes().unwrap_or(0);
            own + memory.available_bytes - memory.available_bytes / RESERVED_PART
        });
        Self { bytes: free.unwrap_or(u64::MAX), is_stated: false }
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.bytes
    }

    /// The same, but no more than the process's own limits leave: of what it may map, the stacks of `threads` threads of each of
    /// `sessions` and some to spare are not for us.
    fn within_limits(self, threads: usize, sessions: usize) -> u64 {
        let Some(left_bytes) = memory::mappable_bytes() else { return self.bytes };
        let stacks_bytes = threads.saturating_sub(1) * memory::stack_bytes() + engine::STACK_BYTES;
        let stacks_bytes = (sessions * stacks_bytes) as u64;
        let left_bytes = left_bytes.saturating_sub(stacks_bytes + engine::SPARE_BYTES as u64);
        self.bytes.min(memory::resident_bytes().unwrap_or(0) + left_bytes)
    }
}

impl FromStr for Budget {
    type Err = Error;

    /// A number with a unit, in whatever case: `300MiB`, `1.5GB`, `96mb`. A bare letter is refused: to some programs `M` is
    /// a MB, to others a MiB.
    fn from_str(text: &str) -> Result<Self, Error> {
        const UNITS: [(&str, u64); 9] = [
            ("kib", 1 << 10),
            ("mib", 1 << 20),
            ("gib", 1 << 30),
            ("tib", 1 << 40),
            ("kb", 1_000),
            ("mb", 1_000_000),
            ("gb", 1_000_000_000),
            ("tb", 1_000_000_000_000),
            ("b", 1),
        ];
        let text = text.trim();
        let lower = text.to_ascii_lowercase();
        let unit = UNITS.iter().find_map(|(unit, size)| Some((lower.strip_suffix(unit)?.trim_end(), *size)));
        let bytes = unit.and_then(|(number, size)| {
            let is_plain = number.starts_with(|c: char| c.is_ascii_digit());
            let bytes = number.parse::<f64>().ok().filter(|_| is_plain)? * size as f64;
            (1.0..=i64::MAX as f64).contains(&bytes).then_some(bytes as u64)
        });
        bytes.map(Self::of_bytes).ok_or_else(|| {
            let letter = lower.chars().last().filter(|letter| "kmgt".contains(*letter));
            let number = letter.and_then(|letter| lower.strip_suffix(letter)).map(str::trim_end);
            let help = match letter.zip(number.filter(|number| number.parse::<f64>().is_ok())) {
                Some((letter, number)) => {
                    let letter = letter.to_ascii_uppercase();
                    format!("say {number}{letter}iB (of 1024) or {number}{letter}B (of 1000)")
                }
                None => "a size is a number and a unit, as in 300MiB or 1.5GB".into(),
            };
            Error::new(ErrorKind::Usage, format!("memory: expected a size, got {text:?}")).help(help)
        })
    }
}

/// Bytes, as people read them.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Rounded up: it is told what is enough.
        write!(f, "{} MiB", self.0.div_ceil(1 << 20))
    }
}

/// How a run is kept within its budget.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The most that the process may have.
    budget_bytes: u64,
    /// The most that it will have.
    peak_bytes: u64,
    /// The least budget with which the run could be planned.
    least_bytes: u64,
    /// What the process has before the first stage.
    base_bytes: u64,
    /// The most that it has while images are decoded, before components are opened ([`Request::load`]); nothing where no
    /// image is in a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    images_peak_bytes: Option<u64>,
    /// In the order in which they run.
    stages: Vec<Stage>,
    /// Whether the process is held to the budget.
    #[serde(skip)]
    is_promise: bool,
    /// What it was made for.
    #[serde(skip)]
    extent: Extent,
    /// [`Manifest::identity`](crate::manifest::Manifest::identity) of the model that it was made for, and its name.
    #[serde(skip)]
    model: (u64, String),
    /// How much private memory the model's adapters take.
    #[serde(skip)]
    adapters_bytes: usize,
    /// How many tokens all its texts have.
    #[serde(skip)]
    tokens: usize,
    /// What the process had when it was made.
    #[serde(skip)]
    resident_bytes: u64,
}

/// A stage of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stage {
    /// The component that it runs.
    pub stage: &'static str,
    /// `keep`, `per stage` or `streamed`.
    pub residency: &'static str,
    /// How many images one call of it takes.
    pub batch: usize,
    /// The side of its tiles in latent cells, where there are any.
    pub tile_cells: Option<usize>,
    /// The most that its weights have in memory.
    pub weights_bytes: u64,
    /// The most that it computes in.
    pub activations_bytes: u64,
    /// The most that the process has while it runs.
    pub peak_bytes: u64,
    /// Multiplications with an addition each, of all its calls.
    pub multiplications: u64,
    #[serde(skip)]
    how: How,
}

/// How a stage is run.
#[derive(Clone, Copy, Debug, PartialEq)]
struct How {
    residency: Residency,
    pool_bytes: Option<usize>,
}

/// One way to run a stage.
#[derive(Clone, Debug, PartialEq)]
struct Candidate {
    residency: Residency,
    batch: usize,
    tile: Option<Tile>,
    weights_bytes: u64,
    /// Weights that kernels have copied in another order, for as long as the session is open; in the pool.
    repacked_bytes: u64,
    activations_bytes: u64,
    /// Planes of the image, states of texts and latents, which are ours.
    own_bytes: u64,
    /// What is needed before the session is open, to add LoRA files to the weights.
    opening_bytes: u64,
    description_bytes: u64,
    /// Of a way of streaming.
    segments: Vec<SegmentBytes>,
    /// What is copied if the session is kept, so that it is faster.
    copies_bytes: u64,
    /// Whether a session that is kept is opened when it is first needed, after all others.
    is_opened_last: bool,
    operations: u64,
    /// Of a U-Net, the control networks that are open while it is, and compute by turns with it.
    beside: Vec<Candidate>,
}

impl Candidate {
    /// The weights of its segments, if it is streamed.
    fn segment_mib(&self) -> Option<usize> {
        match self.residency {
            Residency::Streamed { segment_bytes, .. } => Some(segment_bytes >> 20),
            Residency::Keep | Residency::PerStage => None,
        }
    }

    /// What is there only while it computes.
    fn computed_bytes(&self) -> u64 {
        (self.activations_bytes + self.own_bytes).max(self.opening_bytes)
    }

    /// It, and those beside it.
    fn all(&self) -> impl Iterator<Item = &Candidate> + Clone {
        std::iter::once(self).chain(&self.beside)
    }

    /// What of it, and of those beside it, lies in the pool.
    fn pool_bytes(&self) -> u64 {
        let activations = self.all().map(|candidate| candidate.activations_bytes).max().unwrap_or(0);
        activations + self.all().map(|candidate| candidate.repacked_bytes).sum::<u64>()
    }

    /// What the stage takes beside the process's base.
    fn bytes(&self) -> u64 {
        let open = |candidate: &Candidate| {
            candidate.weights_bytes + candidate.repacked_bytes + candidate.description_bytes
        };
        self.all().map(open).sum::<u64>() + self.all().map(Candidate::computed_bytes).max().unwrap_or(0)
    }
}

impl Plan {
    /// The plan within a budget; where nobody gave one, within what is free, if it can be made. None where a component may
    /// run elsewhere than on the CPU and no budget was given.
    ///
    /// # Errors
    /// As [`Plan::new`], but for models whose memory cannot be predicted where nobody gave a budget.
    pub fn for_run(
        budget: Option<Budget>,
        model: &Model,
        request: &Request,
        options: &SessionOptions,
    ) -> Result<Option<Self>, Error> {
        let is_cpu = model.parts().all(|part| options.providers.is_cpu(part.name()));
        if budget.is_none() && !is_cpu {
            return Ok(None);
        }
        match Self::new(model, request, options, budget.unwrap_or_else(Budget::of_this_machine)) {
            Ok(plan) => Ok(Some(plan)),
            // Nobody asked for a promise.
            Err(error) if budget.is_none() && error.kind() == ErrorKind::Model => {
                tracing::info!(%error, "no memory plan");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Plans the images of a request.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`] when no way to run it fits, with the least budget that would do; [`ErrorKind::Model`] for a
    /// graph whose memory cannot be predicted; [`ErrorKind::Usage`] for a component that may run elsewhere than on the
    /// CPU. The ONNX Runtime library is not loaded for a plan; where it is not, what it takes is estimated.
    pub fn new(
        model: &Model,
        request: &Request,
        options: &SessionOptions,
        budget: Budget,
    ) -> Result<Self, Error> {
        Self::beside(model, request, options, budget, || {
            engine::trim();
            process_bytes()
        })
    }

    /// The same, where the process has `resident_bytes` when candidates are known, the library included.
    fn beside(
        model: &Model,
        request: &Request,
        options: &SessionOptions,
        budget: Budget,
        resident_bytes: impl FnOnce() -> u64,
    ) -> Result<Self, Error> {
        request.check_model(model.manifest())?;
        expect_cpu(model, &options.providers)?;
        let reading = Reading::of(model, request)?;
        let dialect = options.dialect.unwrap_or(Dialect::Cpu);
        let planner = Planner { threads: options.threads.get(), dialect };
        let candidates = planner.candidates(model, request, &reading)?;
        let previews = planner.previews(model, request)?;
        let resident_bytes = resident_bytes();
        let described =
            candidates.iter().map(|(_, candidates)| candidates[0].description_bytes).max().unwrap_or(0);
        // A T2I-Adapter is a stage of its own.
        let beside = model.controls().iter().filter(|control| control.encoder().is_some());
        let beside: Vec<&'static str> = beside.map(|control| control.part().name()).collect();
        let sessions = candidates.len() + beside.len() + previews.len().min(1);
        let limit_bytes = budget.within_limits(options.threads.get(), sessions);
        // The image matters more than its last bits.
        if resident_bytes + request.image_bytes(None).0 > limit_bytes {
            request.reduce_images();
        }
        let (images_peak_bytes, images_kept_bytes) = request.image_bytes(None);
        let images_peak_bytes = resident_bytes + images_peak_bytes;
        let least_images_bytes = resident_bytes + request.image_bytes(Some(true)).0;
        let base_bytes = resident_bytes
            + images_kept_bytes
            + OVERHEAD_BYTES
            + THREAD_BYTES * (options.threads.get() + sessions) as u64
            + model.text_encoders().iter().map(|part| part.vocabulary_bytes() as u64).sum::<u64>()
                * TOKENIZER_PART
            + described / COPIES_PART;
        let (names, candidates): (Vec<&'static str>, Vec<Vec<Candidate>>) = candidates.into_iter().unzip();
        let least_preview_bytes = previews.iter().map(preview_bytes).min().unwrap_or(0);
        let least_bytes = base_bytes + least_preview_bytes + least(&candidates);
        let least_bytes = least_bytes.max(least_images_bytes) + VARIATION_BYTES;
        let room = limit_bytes.saturating_sub(base_bytes);
        let choice = choose_beside(&previews, candidates, room).filter(|_| images_peak_bytes <= limit_bytes);
        let Some((preview, Choice { candidates, kept_peaks })) = choice else {
            let error = Error::new(
                ErrorKind::Memory,
                format!(
                    "memory: expected at least {} for an image of {}, got {}",
                    Size(least_bytes),
                    request.size(),
                    Size(limit_bytes)
                ),
            );
            return Err(if limit_bytes < budget.bytes {
                error.help("this process's limits (ulimit -v, ulimit -d) leave no more")
            } else {
                error
            });
        };
        let base_bytes = base_bytes + preview.as_ref().map_or(0, preview_bytes);
        let is_kept = kept_peaks.is_some();
        let mut stages = stages(&beside, &names, &candidates, kept_peaks.as_deref(), base_bytes);
        let peak_bytes = stages.iter().map(|stage| stage.peak_bytes).max().unwrap_or(base_bytes);
        // It runs between the steps, beside the U-Net.
        stages.extend(preview.map(|candidate| {
            let pool_bytes = (!is_kept).then_some(candidate.pool_bytes() as usize);
            let how = How { residency: Residency::PerStage, pool_bytes };
            Stage::of(PREVIEW_DECODER, &candidate, how, peak_bytes)
        }));
        let peak_bytes = peak_bytes.max(images_peak_bytes);
        let images_peak_bytes = (images_kept_bytes > 0).then_some(images_peak_bytes);
        let (is_promise, extent) = (budget.is_stated, Extent::of(request));
        Ok(Self {
            budget_bytes: budget.bytes,
            peak_bytes,
            least_bytes,
            base_bytes,
            images_peak_bytes,
            stages,
            is_promise,
            extent,
            model: (model.manifest().identity(), model.manifest().name.clone()),
            adapters_bytes: adapters_bytes(model),
            tokens: reading.all_tokens,
            resident_bytes,
        })
    }

    /// The plan of the same model with another form of a component, which is opened while what this plan keeps stays open.
    /// [`ErrorKind::Memory`] where that does not fit; otherwise as [`Plan::new`].
    pub(crate) fn again(
        &self,
        model: &Model,
        request: &Request,
        options: &SessionOptions,
    ) -> Result<Self, Error> {
        let budget = Budget { bytes: self.budget_bytes, is_stated: self.is_promise };
        let again = Self::beside(model, request, options, budget, || self.resident_bytes)?;
        let keeps = |plan: &Self| plan.stages.iter().any(|stage| stage.how.residency == Residency::Keep);
        if keeps(self) && !keeps(&again) {
            let got = Size(self.budget_bytes);
            let problem = format!("memory: expected room for it beside what is open, got {got} in all");
            return Err(Error::new(ErrorKind::Memory, problem));
        }
        Ok(again)
    }

    /// [`ErrorKind::Usage`] for another model than the one that was planned, and [`ErrorKind::Memory`] for one to which more
    /// was added.
    pub(crate) fn check_model(&self, model: &Model) -> Result<(), Error> {
        let (identity, name) = &self.model;
        if *identity != model.manifest().identity() {
            let got = &model.manifest().name;
            let message = format!("plan: expected one made for {got}, got one made for {name}");
            return Err(
                Error::new(ErrorKind::Usage, message).help("make a plan with the model that is opened")
            );
        }
        let is_planned = self.stages.iter().any(|stage| stage.stage == PREVIEW_DECODER);
        if model.preview_decoder().is_some() && !is_planned {
            let message = "plan: expected one with the model's decoder of previews, got one without";
            return Err(
                Error::new(ErrorKind::Usage, message).help("name the decoder before the plan is made")
            );
        }
        let got = adapters_bytes(model);
        if got <= self.adapters_bytes {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Memory,
            format!(
                "memory: expected adapters of at most {}, for which the plan was made, got {}",
                Size(self.adapters_bytes as u64),
                Size(got as u64)
            ),
        )
        .help("add them before the plan is made"))
    }

    /// [`ErrorKind::Memory`] for a request that is larger than the one that was planned.
    pub(crate) fn check(&self, request: &Request) -> Result<(), Error> {
        self.extent.check(request)
    }

    /// [`ErrorKind::Memory`] for an image that is larger than those of the request that was planned, or that is encoded where
    /// the request had none.
    pub(crate) fn check_image(
        &self,
        size: PixelSize,
        shape: LatentShape,
        is_encoded: bool,
    ) -> Result<(), Error> {
        self.extent.check_image(size, shape, is_encoded)
    }

    /// [`ErrorKind::Memory`] for more tokens than the texts have that were planned, where a budget was promised.
    pub(crate) fn check_tokens(&self, tokens: usize) -> Result<(), Error> {
        if !self.is_promise || tokens <= self.tokens {
            return Ok(());
        }
        let planned = self.tokens;
        Err(Error::new(
            ErrorKind::Memory,
            format!(
                "memory: expected at most {planned} tokens of text, for which the plan was made, got {tokens}"
            ),
        )
        .help("open a pipeline with a plan of the longest prompts"))
    }

    /// The most that the process may have.
    pub fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    /// The most that it will have.
    pub fn peak_bytes(&self) -> u64 {
        self.peak_bytes
    }

    /// The least budget with which the run could be planned.
    pub fn least_bytes(&self) -> u64 {
        self.least_bytes
    }

    /// What the process has before the first stage.
    pub fn base_bytes(&self) -> u64 {
        self.base_bytes
    }

    /// The most that it has while images are decoded, before components are opened ([`Request::load`]); nothing where no
    /// image is in a file.
    pub fn images_peak_bytes(&self) -> Option<u64> {
        self.images_peak_bytes
    }

    /// In the order in which they run.
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// Multiplications with an addition in all calls of the components whose names start with one of these, for one image; nothing
    /// where there are none, or where they are not known.
    pub fn multiplications(&self, components: &[&str]) -> Option<u64> {
        let is_meant = |stage: &&Stage| components.iter().any(|name| stage.stage.starts_with(name));
        Some(self.stages.iter().filter(is_meant).map(|stage| stage.multiplications).sum())
            .filter(|sum| *sum > 0)
    }

    /// The same plan with another budget, which it was not made for.
    #[cfg(test)]
    #[cfg(feature = "builtin")]
    pub(crate) fn with_budget(self, budget_bytes: u64) -> Self {
        Self { budget_bytes, ..self }
    }

    /// The budget, if the process is held to it.
    pub(crate) fn promised_bytes(&self) -> Option<u64> {
        self.is_promise.then_some(self.budget_bytes)
    }

    /// How the sessions of a component are opened.
    pub(crate) fn session(&self, component: &str, options: &SessionOptions) -> SessionOptions {
        let stage = self.stages.iter().find(|stage| stage.stage == component);
        let unplanned = How { residency: Residency::PerStage, pool_bytes: None };
        let How { residency, pool_bytes } = stage.map_or(unplanned, |stage| stage.how);
        SessionOptions { residency, pool_bytes, budget_bytes: self.promised_bytes(), ..options.clone() }
    }

    /// The most images that one call of the U-Net takes.
    pub(crate) fn batch(&self) -> usize {
        let unet = self.stages.iter().find(|stage| stage.stage == "unet");
        unet.map_or(usize::MAX, |stage| stage.batch)
    }

    /// The tiles of a component.
    pub(crate) fn tile(&self, component: &str) -> Option<Tile> {
        let side = self.stages.iter().find(|stage| stage.stage == component)?.tile_cells?;
        Some(Tile::new(side).expect("tiles that were planned"))
    }
}

/// The stages of components, of which each is the candidate that was chosen; where sessions are kept, with the peaks then.
fn stages(
    controls: &[&'static str],
    names: &[&'static str],
    candidates: &[Candidate],
    kept_peaks: Option<&[u64]>,
    base_bytes: u64,
) -> Vec<Stage> {
    // ControlNets are stages of their own, whose memory is counted with the U-Net's.
    let open = names.iter().zip(candidates).flat_map(|(name, candidate)| {
        // Their encoders are not told of.
        let names = std::iter::once(*name).chain(controls.iter().copied()).map(Some);
        let names = names.chain(std::iter::repeat(None));
        names.zip(candidate.all()).map(move |(name, one)| (name, one, candidate))
    });
    open.enumerate()
        .filter_map(|(index, (stage, candidate, group))| Some((index, stage?, candidate, group)))
        .map(|(index, stage, candidate, group)| match kept_peaks {
            Some(peaks) => {
                let how = How { residency: Residency::Keep, pool_bytes: None };
                Stage::of(stage, candidate, how, base_bytes + peaks[index])
            }
            None => {
                let pool_bytes = Some(group.pool_bytes() as usize);
                let how = How { residency: candidate.residency, pool_bytes };
                Stage::of(stage, candidate, how, base_bytes + group.bytes())
            }
        })
        .collect()
}

impl Stage {
    fn of(stage: &'static str, candidate: &Candidate, how: How, peak_bytes: u64) -> Self {
        Self {
            stage,
            residency: match how.residency {
                Residency::Keep => "keep",
                Residency::PerStage => "per stage",
                Residency::Streamed { .. } => "streamed",
            },
            batch: candidate.batch,
            tile_cells: candidate.tile.map(Tile::side_cells),
            weights_bytes: candidate.weights_bytes + candidate.repacked_bytes,
            activations_bytes: candidate.computed_bytes(),
            peak_bytes,
            multiplications: candidate.operations,
            how,
        }
    }
}

/// What the process has before components are opened: with ONNX Runtime's library, and with all of its code.
pub(crate) fn process_bytes() -> u64 {
    memory::resident_bytes().unwrap_or(UNKNOWN_RESIDENT_BYTES)
        + memory::absent_code_bytes()
        + if Library::is_loaded() { 0 } else { LIBRARY_BYTES }
}

/// How much private memory all that was added to a model takes.
fn adapters_bytes(model: &Model) -> usize {
    model.parts().filter_map(Part::added_cost).map(|cost| cost.bytes).sum()
}

/// What the decoder of previews takes, which is counted beside every stage: the pool may keep more than it uses.
fn preview_bytes(candidate: &Candidate) -> u64 {
    candidate.bytes() + candidate.activations_bytes / POOL_KEEPS_PART
}

/// The stages' choice beside the first way to decode previews that leaves them room; of no ways, beside nothing.
fn choose_beside(
    previews: &[Candidate],
    stages: Vec<Vec<Candidate>>,
    room: u64,
) -> Option<(Option<Candidate>, Choice)> {
    if previews.is_empty() {
        return choose(stages, room).map(|choice| (None, choice));
    }
    let beside = |preview: &Candidate| {
        let room = room.checked_sub(preview_bytes(preview))?;
        choose(stages.clone(), room).map(|choice| (Some(preview.clone()), choice))
    };
    previews.iter().find_map(beside)
}

/// How all stages are run.
#[derive(Debug, PartialEq)]
struct Choice {
    /// One of each stage.
    candidates: Vec<Candidate>,
    /// The most that there is while each is opened or computes, if everything is kept.
    kept_peaks: Option<Vec<u64>>,
}

/// The least room in which all stages can run: that of the largest, in its smallest way.
fn least(stages: &[Vec<Candidate>]) -> u64 {
    let least =
        |candidates: &Vec<Candidate>| candidates.iter().map(Candidate::bytes).min().unwrap_or(u64::MAX);
    stages.iter().map(least).max().unwrap_or(0)
}

/// Everything kept, if that fits; else of each stage, as only one is in memory at a time, its first way that does.
fn choose(stages: Vec<Vec<Candidate>>, room: u64) -> Option<Choice> {
    let kept_peaks = kept_peaks(stages.iter().flat_map(|candidates| candidates[0].all()));
    if kept_peaks.iter().all(|&peak| peak <= room) {
        let candidates = stages.into_iter().map(|mut candidates| candidates.swap_remove(0)).collect();
        return Some(Choice { candidates, kept_peaks: Some(kept_peaks) });
    }
    let first =
        |candidates: Vec<Candidate>| candidates.into_iter().find(|candidate| candidate.bytes() <= room);
    let candidates: Option<Vec<Candidate>> = stages.into_iter().map(first).collect();
    let candidates = candidates?.into_iter().map(|candidate| with_more_resident(candidate, room)).collect();
    Some(Choice { candidates, kept_peaks: None })
}

/// Of stages whose sessions are kept, the most that there is while each of them is opened, after those before it, or computes,
/// when all are open.
fn kept_peaks<'a>(stages: impl Iterator<Item = &'a Candidate> + Clone) -> Vec<u64> {
    // What is kept may also be copied where that makes it faster.
    let kept = |candidate: &Candidate| {
        candidate.weights_bytes
            + candidate.repacked_bytes
            + candidate.description_bytes
            + candidate.copies_bytes
    };
    let with_slack = |bytes: u64| bytes + bytes / KEPT_SLACK;
    let all: u64 = stages.clone().map(kept).sum();
    let mut before = 0;
    let peak = |candidate: &Candidate| {
        let opened = if candidate.is_opened_last {
            all
        } else {
            before += kept(candidate);
            before
        };
        // While it is opened, some weights are there as they were converted and in another layout.
        let opening = with_slack(opened) + candidate.opening_bytes.max(candidate.copies_bytes / OPENING_PART);
        // No limit is set to its pool.
        let activations_bytes = candidate.activations_bytes + candidate.activations_bytes / POOL_KEEPS_PART;
        opening.max(with_slack(all) + candidate.own_bytes + activations_bytes)
    };
    stages.map(peak).collect()
}

/// [`ErrorKind::Usage`] for a component that may run elsewhere than on the CPU: what is planned is its memory.
pub(crate) fn expect_cpu(model: &Model, providers: &Providers) -> Result<(), Error> {
    for part in model.parts() {
        if let Some(other) = providers.of(part.name()).iter().find(|provider| !provider.is_cpu()) {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("memory: expected all components on the CPU, got {other} for {}", part.name()),
            )
            .help("leave out {memory}"));
        }
    }
    Ok(())
}

/// A way of streaming with as much of the weights in memory as there is room for.
fn with_more_resident(mut candidate: Candidate, room: u64) -> Candidate {
    let more = room - candidate.bytes();
    if let Residency::Streamed { resident_bytes: allowed, .. } = &mut candidate.residency {
        let of = |allowed: usize| {
            resident_bytes(&candidate.segments, &pinned(&candidate.segments, allowed)) as u64
        };
        let before = of(*allowed);
        // A segment that stays open may take more than it is allowed for: what it is read into is beside it.
        let fitting = std::iter::successors(Some(more as usize), |&more| (more > 0).then_some(more / 2))
            .find(|&extra| of(*allowed + extra).saturating_sub(before) <= more);
        *allowed += fitting.unwrap_or(0);
        candidate.weights_bytes += of(*allowed).saturating_sub(before);
    }
    candidate
}

/// Finds the ways to run a stage.
struct Planner {
    threads: usize,
    /// The operators that graphs are run with: attention takes more memory in some than in others.
    dialect: Dialect,
}

impl Planner {
    /// Per stage, in their order, the ways to run it, the fastest first.
    fn candidates(
        &self,
        model: &Model,
        request: &Request,
        reading: &Reading,
    ) -> Result<Vec<(&'static str, Vec<Candidate>)>, Error> {
        let (size, shape) = (request.size(), request.shape());
        let states_bytes = reading.states_bytes() as u64;
        let mut stages = Vec::new();
        for part in model.text_encoders() {
            let context = text_encoder::context(part);
            let batch = reading.chunks.min(MAX_BATCH);
            let inputs = inputs(part.signature().inputs.iter(), size, shape, batch, context);
            let mut candidates = self.whole_or_streamed(part, part.graph(), &[inputs], 1, 1)?;
            // Of each chunk as the graph gives them, per chunk, and joined.
            candidates.iter_mut().for_each(|candidate| candidate.own_bytes += 3 * states_bytes);
            stages.push((part.name(), candidates));
        }
        if let Some(part) = model.vae_encoder().filter(|_| request.draws_from_image()) {
            let mut candidates = self.in_tiles(part, size, shape, Halves::of_encoder)?;
            // The image's planes, and those that are fed or cut into tiles.
            let planes = image_bytes_of(size);
            for candidate in &mut candidates {
                candidate.is_opened_last = true;
                candidate.own_bytes +=
                    states_bytes + if candidate.tile.is_some() { planes } else { 2 * planes };
            }
            stages.push((part.name(), candidates));
        }
        stages.extend(self.adapters(model, request, states_bytes)?);
        let unet = model.unet();
        let sized = |axis: usize| match unet.signature().input(Role::Latents).map(|port| &port.dims[axis]) {
            Some(Dim::Fixed(size)) => Some(*size),
            _ => None,
        };
        let fixed = sized(0);
        let fed_len = sized(1).unwrap_or(shape.channels) * shape.height_cells * shape.width_cells;
        let tree = request.tree_levels().map_or(0, |(low, high)| BrownianTree::tensors(low, high));
        let latents = LATENTS + tree + reading.predictions();
        let own_bytes = states_bytes
            + reading.calls_bytes(fed_len + shape.len()) as u64
            + (latents * shape.len() * size_of::<f32>()) as u64;
        let all = reading.calls(usize::MAX).iter().map(|call| call.batch).max().unwrap_or(1);
        let mut found = Vec::new();
        for batch in fixed.map_or(vec![all, 1], |batch| vec![batch]) {
            let calls = reading.calls(batch);
            let fed = |part: &Part| -> Vec<Inputs> {
                let of_call = |call: &Call| {
                    let batch = fixed.unwrap_or(call.batch);
                    inputs(part.signature().inputs.iter(), size, shape, batch, call.tokens)
                };
                calls.iter().map(of_call).collect()
            };
            let count = reading.count(batch);
            let mut ways = self.whole_or_streamed(unet, unet.graph(), &fed(unet), batch, count)?;
            let encoders = model.controls().iter();
            let encoders = encoders.filter_map(|control| Some((control.part(), control.encoder()?)));
            for (part, _) in encoders.clone() {
                put_beside(&mut ways, &self.whole_or_streamed(part, part.graph(), &fed(part), batch, count)?);
            }
            for (part, encoder) in encoders {
                let input = encoder.inputs()[0].name.clone();
                let inputs = vec![(input, vec![1, 3, size.height_px() as usize, size.width_px() as usize])];
                put_beside(&mut ways, &self.whole_or_streamed(part, encoder, &[inputs], 1, 1)?);
            }
            let images = fixed.unwrap_or(calls.iter().map(|call| call.batch).max().unwrap_or(1));
            let fed_bytes = controls_bytes(model, request, images, reading);
            ways.iter_mut().for_each(|candidate| candidate.own_bytes += fed_bytes);
            found.extend(ways);
        }
        for candidate in &mut found {
            candidate.own_bytes += own_bytes;
            // What is fed is there while each of them computes.
            candidate.beside.iter_mut().for_each(|beside| beside.own_bytes = candidate.own_bytes);
        }
        // Whole before streamed, and few large segments before many small ones; of equals the doubled batch first.
        found.sort_by_key(|candidate| match candidate.residency {
            Residency::Streamed { segment_bytes, .. } => usize::MAX - segment_bytes,
            _ => 0,
        });
        found.dedup();
        stages.push((unet.name(), found));
        let decoder = model.vae_decoder();
        let mut candidates = self.in_tiles(decoder, size, shape, Halves::of_decoder)?;
        // What tiles are joined to is the image.
        let whole = candidates.iter_mut().filter(|candidate| candidate.tile.is_none());
        whole.for_each(|candidate| candidate.own_bytes += image_bytes_of(size));
        stages.push((decoder.name(), candidates));
        Ok(stages)
    }

    /// The ways to run T2I-Adapters, which are stages of their own: once for each of their images, before the U-Net is opened.
    fn adapters(
        &self,
        model: &Model,
        request: &Request,
        states_bytes: u64,
    ) -> Result<Vec<(&'static str, Vec<Candidate>)>, Error> {
        let (size, shape) = (request.size(), request.shape());
        let adapters = model.controls().iter().enumerate().filter(|(_, control)| control.encoder().is_none());
        let stages = adapters.map(|(index, control)| {
            let part = control.part();
            let images = request.controls.iter().filter(|control| control.network == index).count();
            let inputs = inputs(part.signature().inputs.iter(), size, shape, 1, 0);
            let mut candidates = self.whole_or_streamed(part, part.graph(), &[inputs], 1, images)?;
            // The image's planes, and what all of them give, which stays.
            let own_bytes = states_bytes + 2 * image_bytes_of(size) + features_bytes(model, request);
            candidates.iter_mut().for_each(|candidate| candidate.own_bytes += own_bytes);
            Ok((part.name(), candidates))
        });
        stages.collect()
    }

    /// The ways to decode previews, the fastest first: whole and in tiles, with all weights, which are few.
    fn previews(&self, model: &Model, request: &Request) -> Result<Vec<Candidate>, Error> {
        let Some(PreviewDecoder { part, .. }) = model.preview_decoder() else { return Ok(Vec::new()) };
        let mut candidates = self.in_tiles(part, request.size(), request.shape(), Halves::of_decoder)?;
        candidates.retain(|candidate| candidate.residency == Residency::PerStage);
        // What tiles are joined to is the image; and its pixels.
        for candidate in &mut candidates {
            let planes = if candidate.tile.is_none() { image_bytes_of(request.size()) } else { 0 };
            candidate.own_bytes += planes + image_bytes_of(request.size()) / 4;
        }
        Ok(candidates)
    }

    /// A graph in one session, and in segments of several sizes; it is fed tensors of each of these sizes in turn.
    fn whole_or_streamed(
        &self,
        part: &Part,
        graph: &Graph,
        inputs: &[Inputs],
        batch: usize,
        calls: usize,
    ) -> Result<Vec<Candidate>, Error> {
        let graph = &graph.clone().in_dialect(self.dialect);
        let mut bound = part.bind_to_count(graph.clone())?;
        bound.convert_rows();
        let sliced = graph.in_slices();
        let converted = graph.converted(part.weights());
        let (mut whole_bytes, mut plain_bytes, mut operations) = (0, 0, 0u64);
        for inputs in inputs {
            let inputs: Vec<(&str, &[usize])> =
                inputs.iter().map(|(name, dims)| (name.as_str(), &dims[..])).collect();
            let activations = graph.activations(&inputs, self.threads, Some(&converted))?;
            whole_bytes = whole_bytes.max(activations.peak_bytes());
            operations = operations.max(activations.operations());
            // In segments all weights of one may be converted before the first is used.
            plain_bytes = plain_bytes.max(sliced.activations(&inputs, self.threads, None)?.peak_bytes());
        }
        let operations = operations.saturating_mul(calls as u64);
        let padded = |bytes: usize| bytes as u64 + bytes as u64 / POOL_SLACK;
        let [whole] = &bound.segments(usize::MAX)[..] else { unreachable!("nothing is larger") };
        let all = whole.weight_bytes() as u64;
        // Tensors that LoRA files change are in private memory from then on.
        let (added_bytes, temporary_bytes) =
            part.added_cost().map_or((0, 0), |cost| (cost.bytes as u64, cost.temporary_bytes as u64));
        // Converted or repacked once, with padding; what opening leaves beside that is given back.
        let copied_bytes = engine::copied_bytes(&bound) as u64;
        let copies_bytes = copied_bytes + copied_bytes / 6;
        let mut candidates = vec![Candidate {
            residency: Residency::PerStage,
            batch,
            tile: None,
            // Once as sums, and once as the pages of the originals in the file, which the kernel brings into memory with the
            // neighbours that are used (half of them in f16 and f32). Segments give those back when they end.
            weights_bytes: all + 2 * added_bytes,
            repacked_bytes: whole.repacked_bytes as u64,
            activations_bytes: padded(whole_bytes),
            own_bytes: 0,
            opening_bytes: temporary_bytes,
            description_bytes: whole.description_bytes as u64,
            segments: Vec::new(),
            copies_bytes,
            is_opened_last: false,
            operations,
            beside: Vec::new(),
        }];
        for segment_bytes in SEGMENTS_MIB.map(|mib| mib << 20) {
            let segments = bound.segments(segment_bytes);
            if segments.len() < 3 {
                continue;
            }
            let most = |bytes: fn(&Segment) -> usize| segments.iter().map(bytes).max().unwrap_or(0);
            let copied = most(|segment| segment.converted_bytes + segment.repacked_bytes);
            let extents: Vec<SegmentBytes> = segments.iter().map(Segment::extent).collect();
            let allowed = least_resident_bytes(&extents);
            let weights_bytes = resident_bytes(&extents, &pinned(&extents, allowed)) as u64;
            candidates.push(Candidate {
                residency: Residency::Streamed { segment_bytes, resident_bytes: allowed },
                batch,
                tile: None,
                weights_bytes: weights_bytes + added_bytes,
                repacked_bytes: 0,
                activations_bytes: padded(plain_bytes + copied),
                own_bytes: 0,
                opening_bytes: temporary_bytes,
                description_bytes: most(|segment| segment.description_bytes) as u64,
                segments: extents,
                copies_bytes,
                is_opened_last: false,
                operations,
                beside: Vec::new(),
            });
        }
        Ok(candidates)
    }

    /// A VAE whole, and in tiles of several sizes.
    fn in_tiles(
        &self,
        part: &Part,
        size: PixelSize,
        shape: LatentShape,
        halves: impl Fn(&Part, LatentShape, usize, Tile) -> Result<Option<Halves>, Error>,
    ) -> Result<Vec<Candidate>, Error> {
        let inputs = inputs(part.signature().inputs.iter(), size, shape, 1, 0);
        let factor_px = size.width_px() as usize / shape.width_cells;
        let mut candidates = self.whole_or_streamed(part, part.graph(), &[inputs], 1, 1)?;
        candidates.truncate(1);
        for side in TILES_CELLS {
            let Ok(Some(halves)) = halves(part, shape, factor_px, Tile::new(side)?) else { continue };
            let planes_bytes = halves.planes_bytes() as u64;
            let [whole, tile] = [&halves.whole, &halves.tile]
                .map(|run| self.whole_or_streamed(part, &run.graph, slice::from_ref(&run.inputs), 1, 1));
            let (whole, tile) = (whole?, tile?);
            // Both halves are opened in the same way.
            for segment in std::iter::once(None).chain(SEGMENTS_MIB.map(Some)) {
                let [whole, tile] = [&whole, &tile].map(|candidates| {
                    let is_so = |candidate: &&Candidate| candidate.segment_mib() == segment;
                    candidates.iter().find(is_so).unwrap_or(&candidates[0])
                });
                if [whole, tile].iter().all(|candidate| candidate.segment_mib() != segment) {
                    continue;
                }
                let larger = if whole.bytes() > tile.bytes() { whole } else { tile };
                let allowed = [whole, tile]
                    .map(|candidate| least_resident_bytes(&candidate.segments))
                    .into_iter()
                    .max();
                let residency = match (segment, allowed) {
                    (Some(mib), Some(resident_bytes)) => {
                        Residency::Streamed { segment_bytes: mib << 20, resident_bytes }
                    }
                    _ => Residency::PerStage,
                };
                let operations = whole.operations + tile.operations * halves.tile_runs() as u64;
                let tile = Tile::new(side).ok();
                candidates.push(Candidate {
                    residency,
                    tile,
                    own_bytes: planes_bytes,
                    operations,
                    ..larger.clone()
                });
            }
        }
        Ok(candidates)
    }
}

/// Adds another network to the ways to run a U-Net: each is opened in the same way.
fn put_beside(ways: &mut [Candidate], own: &[Candidate]) {
    for candidate in ways {
        let segment = candidate.segment_mib();
        // One that is too small for such segments stays whole.
        let same = own.iter().find(|own| own.segment_mib() == segment).unwrap_or(&own[0]);
        candidate.beside.push(same.clone());
    }
}

/// The names and sizes of a graph's inputs.
type Inputs = Vec<(String, Vec<usize>)>;

/// The planes of an image, in floats.
fn image_bytes_of(size: PixelSize) -> u64 {
    3 * size_of::<f32>() as u64 * u64::from(size.width_px()) * u64::from(size.height_px())
}

/// What a run has of its control images, for calls of so many predictions: each as it is encoded, what the networks are fed
/// beside it, what they give, and its sum.
fn controls_bytes(model: &Model, request: &Request, batch: usize, reading: &Reading) -> u64 {
    if model.controls().is_empty() {
        return 0;
    }
    let shape = request.shape();
    let residuals = model.unet().signature().inputs.iter().filter_map(|binding| match binding.role {
        Role::DownResidual(_) | Role::BlockResidual(_) | Role::MiddleResidual => {
            Some(residual_shape(&binding.port, batch, shape))
        }
        _ => None,
    });
    let residuals: usize = residuals.map(|shape| shape.iter().product::<usize>()).sum();
    let hints = request.controls.iter().map(|control| {
        let hint = model.controls()[control.network].part().signature().input(Role::ControlHint);
        hint.map_or(0, |port| residual_shape(port, 1, shape).iter().product::<usize>())
    });
    let hints: usize = hints.sum::<usize>() * size_of::<f32>();
    let fed = request.controls.len() * reading.calls_bytes(shape.len());
    // Sums for calls of every number of predictions that a step may need.
    let sums: usize = (1..=batch).map(|images| residuals / batch * images).sum();
    // While an image is encoded, its planes and what that gives.
    2 * image_bytes_of(request.size())
        + (hints + fed + (residuals + sums) * size_of::<f32>()) as u64
        + features_bytes(model, request)
}

/// What T2I-Adapters give of all control images, for as long as a run lasts.
fn features_bytes(model: &Model, request: &Request) -> u64 {
    let adapters = request.controls.iter().map(|control| &model.controls()[control.network]);
    let features = adapters.filter(|control| control.encoder().is_none()).flat_map(|control| {
        let outputs = control.part().signature().outputs.iter();
        outputs.map(|binding| residual_shape(&binding.port, 1, request.shape()).iter().product::<usize>())
    });
    (features.sum::<usize>() * size_of::<f32>()) as u64
}

/// The sizes of a graph's inputs.
fn inputs<'a>(
    bindings: impl Iterator<Item = &'a Binding>,
    size: PixelSize,
    shape: LatentShape,
    batch: usize,
    tokens: usize,
) -> Inputs {
    let (width, height) = (size.width_px() as usize, size.height_px() as usize);
    let dims = |port: &Port, role: Role| -> Vec<usize> {
        let free: &[usize] = match role {
            Role::Latents | Role::Moments => &[batch, shape.channels, shape.height_cells, shape.width_cells],
            Role::Image | Role::ControlImage => &[batch, 3, height, width],
            Role::ControlHint => return residual_shape(port, 1, shape),
            Role::DownResidual(_) | Role::BlockResidual(_) | Role::MiddleResidual => {
                return residual_shape(port, batch, shape);
            }
            Role::Timestep => return timestep_shape(port, batch),
            Role::TokenIds | Role::Mask => &[batch, tokens],
            Role::States | Role::PenultimateStates => &[batch, tokens, 1],
            Role::TimeIds => &[batch, 6],
            Role::Pooled | Role::GuidanceEmbedding | Role::ClassLabels => &[batch, 1],
            Role::On | Role::Off => &[1],
        };
        let size = |(axis, dim): (usize, &Dim)| match dim {
            Dim::Fixed(size) => *size,
            Dim::Free(_) => free.get(axis).copied().unwrap_or(1),
        };
        port.dims.iter().enumerate().map(size).collect()
    };
    bindings.map(|binding| (binding.port.name.clone(), dims(&binding.port, binding.role))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(weights_bytes: u64, activations_bytes: u64) -> Candidate {
        Candidate {
            beside: Vec::new(),
            residency: Residency::PerStage,
            batch: 1,
            tile: None,
            weights_bytes,
            repacked_bytes: 1,
            activations_bytes,
            own_bytes: 3,
            opening_bytes: 0,
            description_bytes: 2,
            segments: Vec::new(),
            copies_bytes: weights_bytes / 2,
            is_opened_last: false,
            operations: 0,
        }
    }

    /// One of `ways` per stage, in all combinations, the later stages' ways changing first.
    fn combinations(stages: &[Vec<Candidate>]) -> Vec<Vec<&Candidate>> {
        let Some((first, others)) = stages.split_first() else { return vec![vec![]] };
        let others = combinations(others);
        let with = |candidate| others.iter().map(move |others| [&[candidate][..], others].concat());
        first.iter().flat_map(with).collect()
    }

    /// The first way to decode previews that leaves room for the stages; without one, a plan that would fit alone is refused.
    #[test]
    fn previews_take_what_the_stages_leave() {
        let previews = [candidate(100, 40), candidate(10, 8)];
        let bytes = previews.iter().map(preview_bytes).collect::<Vec<_>>();
        assert_eq!(bytes, [100 + 1 + 40 + 3 + 2 + 40 / 4, 10 + 1 + 8 + 3 + 2 + 8 / 4]);
        let stages = vec![vec![candidate(30, 20)], vec![candidate(50, 5)]];
        let alone = least(&stages);
        let chosen =
            |room| choose_beside(&previews, stages.clone(), room).map(|(preview, _)| preview.unwrap());
        assert_eq!(chosen(alone + bytes[0]).unwrap(), previews[0]);
        assert_eq!(chosen(alone + bytes[0] - 1).unwrap(), previews[1]);
        assert_eq!(chosen(alone + bytes[1]).unwrap(), previews[1]);
        assert!(chosen(alone + bytes[1] - 1).is_none() && choose(stages.clone(), alone).is_some());
        let (preview, choice) = choose_beside(&[], stages.clone(), alone).unwrap();
        assert_eq!((preview, Some(choice)), (None, choose(stages, alone)));
    }

    /// Against all combinations of ways: the first of those that fit is taken, which is the one with the fastest way for
    /// every stage, and nothing is refused that could be run.
    #[test]
    fn what_is_chosen_is_the_best_of_all_that_fits() {
        let stages = [
            vec![candidate(40, 20), candidate(10, 25)],
            vec![candidate(100, 30), candidate(60, 12), candidate(30, 41), candidate(20, 9)],
            vec![candidate(8, 90), candidate(8, 50), candidate(9, 20)],
        ];
        let all = combinations(&stages);
        assert_eq!(all.len(), 2 * 4 * 3);
        let mut kinds = [0; 3];
        for room in 0..400 {
            // Opened one after another, then all open while each computes.
            let kept: Vec<u64> =
                all[0].iter().map(|candidate| candidate.weights_bytes + 3 + candidate.copies_bytes).collect();
            let slack = |bytes: u64| bytes + bytes / 64;
            let peaks: Vec<u64> = (0..3)
                .map(|at| {
                    let Candidate { activations_bytes: computed, copies_bytes, .. } = all[0][at];
                    (slack(kept[..=at].iter().sum()) + copies_bytes / 2)
                        .max(slack(kept.iter().sum()) + computed + computed / 4 + 3)
                })
                .collect();
            let peak = |candidates: &&Vec<&Candidate>| {
                let bytes = candidates
                    .iter()
                    .map(|candidate| candidate.weights_bytes + candidate.activations_bytes + 6);
                bytes.max().unwrap() <= room
            };
            let found = all.iter().find(peak).map(|candidates| candidates.iter().copied().cloned().collect());
            let chosen = choose(stages.to_vec(), room);
            kinds[chosen.as_ref().map_or(0, |choice| 1 + usize::from(choice.kept_peaks.is_some()))] += 1;
            assert_eq!(chosen.is_some(), room >= least(&stages), "{room}");
            if peaks.iter().all(|&peak| peak <= room) {
                let candidates = all[0].iter().copied().cloned().collect();
                assert_eq!(chosen, Some(Choice { candidates, kept_peaks: Some(peaks) }), "{room}");
            } else {
                assert_eq!(chosen.map(|choice| choice.candidates), found, "{room}");
            }
        }
        assert!(kinds.iter().all(|&count| count > 20), "{kinds:?}");
    }

    /// As many segments as there is room for stay open, and what is planned is what they and the largest two of the others
    /// have.
    #[test]
    fn segments_stay_open_as_there_is_room() {
        let extent = |bytes: usize| SegmentBytes { weight_bytes: bytes, open_bytes: bytes + 1 };
        let segments: Vec<SegmentBytes> = [4, 5, 1, 3].map(extent).into();
        let streamed = Residency::Streamed { segment_bytes: 5, resident_bytes: 10 };
        for (room, allowed, weights) in [(35, 10, 9), (36, 11, 9), (37, 12, 2 + 9), (42, 17, 7 + 8)] {
            let candidate = Candidate { residency: streamed, segments: segments.clone(), ..candidate(9, 20) };
            let Choice { candidates, kept_peaks } = choose(vec![vec![candidate]], room).unwrap();
            let residency = Residency::Streamed { segment_bytes: 5, resident_bytes: allowed };
            assert_eq!(
                (candidates[0].residency, candidates[0].weights_bytes),
                (residency, weights),
                "{room}"
            );
            assert!(candidates[0].bytes() <= room && kept_peaks.is_none());
        }
    }

    /// What a plan adds up beside what stages take, each term in bytes.
    #[test]
    fn what_a_way_takes_is_the_sum_of_its_terms() {
        let plain = candidate(100, 20);
        // Weights, repacked ones, activations, our own buffers, the description.
        assert_eq!((plain.bytes(), plain.pool_bytes()), (100 + 1 + 20 + 3 + 2, 20 + 1));
        let of = |opening_bytes| Candidate { opening_bytes, ..plain.clone() };
        // Adding LoRA files and computing do not overlap.
        assert_eq!((of(23).bytes(), of(50).bytes()), (126, 100 + 1 + 50 + 2));
        // Kept: 100 + 1 + 2, and a sixty-fourth; a quarter more than it uses stays in a pool without a limit.
        let one = |candidate: Candidate| kept_peaks(std::iter::once(&candidate))[0];
        let kept = Candidate { copies_bytes: 0, ..of(0) };
        assert_eq!(one(kept.clone()), 103 + 1 + 3 + 20 + 5);
        assert_eq!(one(Candidate { opening_bytes: 29, ..kept.clone() }), 103 + 1 + 29);
        assert_eq!(one(Candidate { copies_bytes: 90, ..kept.clone() }), 193 + 3 + 45);
        // What is opened last is so when all others are open.
        let copied = Candidate { copies_bytes: 90, ..kept.clone() };
        let late = Candidate { is_opened_last: true, ..copied.clone() };
        assert_eq!(kept_peaks([&copied, &kept].into_iter()), [296 + 4 + 28, 296 + 4 + 28]);
        assert_eq!(kept_peaks([&late, &kept].into_iter()), [296 + 4 + 45, 296 + 4 + 28]);
    }

    /// The terms of stages and of what is beside them, with the built-in model, whose numbers are written here once more: 24
    /// tokens of 192 values, and latents of 16 channels with a cell for 16x16 pixels.
    #[cfg(feature = "builtin")]
    mod terms {
        use std::fs;
        use std::num::NonZeroUsize;
        use std::ops::ControlFlow;
        use std::path::Path;

        use image::{GrayImage, ImageFormat, RgbImage};

        use super::*;
        use crate::adapter::lora::Lora;
        use crate::image_file::{ImageFile, Init, Mask, OutputFormat, encode};
        use crate::manifest::Compute;
        use crate::pack::{self, ComputeOptions};
        use crate::pipeline::{Options, Pipeline};
        use crate::recipe::{self, Recipe};
        use crate::weights::Dtype;

        const FLOAT: u64 = 4;
        /// A token's state.
        const STATE: u64 = 192 * FLOAT;
        const CONTEXT: u64 = 24;
        /// Latents of 128x128 pixels, in values.
        const LATENTS_LEN: u64 = 16 * 8 * 8;
        const PLANES: u64 = 3 * 128 * 128 * FLOAT;
        /// What the process is taken to have.
        const RESIDENT: u64 = 50 << 20;

        fn recipe() -> Recipe {
            let size = Some(PixelSize::new(128, 128).unwrap());
            Recipe { prompt: "a red apple".into(), size, steps: Some(2), ..Recipe::default() }
        }

        fn options(threads: usize) -> SessionOptions {
            SessionOptions::new(NonZeroUsize::new(threads).unwrap())
        }

        fn candidates(model: &Model, recipe: Recipe) -> Vec<(&'static str, Vec<Candidate>)> {
            let request = Request::new(recipe, model).unwrap();
            let reading = Reading::of(model, &request).unwrap();
            let planner = Planner { threads: 2, dialect: Dialect::Cpu };
            planner.candidates(model, &request, &reading).unwrap()
        }

        /// The ways of one stage.
        fn stage(model: &Model, recipe: Recipe, name: &str) -> Vec<Candidate> {
            let mut stages = candidates(model, recipe);
            let at = stages.iter().position(|(stage, _)| *stage == name).unwrap();
            stages.swap_remove(at).1
        }

        fn plan(model: &Model, recipe: Recipe, threads: usize, budget_bytes: u64) -> Result<Plan, Error> {
            let request = Request::new(recipe, model)?;
            let budget = Budget::of_bytes(budget_bytes);
            Plan::beside(model, &request, &options(threads), budget, || RESIDENT)
        }

        /// What a graph computes in, with inputs of these sizes, and a twelfth more for what a pool loses.
        fn computed(part: &Part, inputs: &[(&str, &[usize])]) -> u64 {
            let graph = part.graph().clone().in_dialect(Dialect::Cpu);
            let converted = graph.converted(part.weights());
            let bytes = graph.activations(inputs, 2, Some(&converted)).unwrap().peak_bytes() as u64;
            bytes + bytes / 12
        }

        #[test]
        fn of_the_texts() {
            let model = Model::built_in().unwrap();
            let encoder = &model.text_encoders()[0];
            let of = |prompt: &str, texts: u64, batch: usize| {
                let recipe = Recipe { prompt: prompt.into(), guidance: Some(3.5.into()), ..recipe() };
                for candidate in stage(&model, recipe, "text_encoder") {
                    // As the graph gives them, per chunk, and joined.
                    assert_eq!(candidate.own_bytes, 3 * texts * CONTEXT * STATE, "{prompt}");
                    if candidate.segment_mib().is_none() {
                        let expected = computed(encoder, &[("input_ids", &[batch, 24])]);
                        assert_eq!(candidate.activations_bytes, expected, "{prompt}");
                    }
                }
            };
            // The negative prompt is a text, too; no more than 8 chunks are encoded at once.
            of("a red apple", 2, 2);
            of("a red apple AND a green pear AND a blue fish", 4, 4);
            let many: Vec<String> = (0..11).map(|number| format!("apple {number}")).collect();
            of(&many.join(" AND "), 12, 8);
            // A prompt of two chunks.
            of(&"a red apple on a blue background ".repeat(4), 3, 3);
        }

        #[test]
        fn of_the_unet() {
            let model = Model::built_in().unwrap();
            let unet = model.unet();
            let of = |prompt: &str, guidance: f64, views: u64, layouts: u64| {
                let recipe = Recipe { prompt: prompt.into(), guidance: Some(guidance.into()), ..recipe() };
                let candidates = stage(&model, recipe, "unet");
                let texts = views * CONTEXT * STATE;
                // Of every layout the states once more, the latents as they are fed and as they come back; and all predictions.
                let feeds =
                    layouts * (CONTEXT * STATE + 2 * LATENTS_LEN * FLOAT) + views * LATENTS_LEN * FLOAT;
                // The run's latents, those that samplers keep, noise, masks.
                let latents = 12 * LATENTS_LEN * FLOAT;
                let batches: Vec<usize> = candidates.iter().map(|candidate| candidate.batch).collect();
                assert_eq!(batches[..batches.len().min(2)], [views as usize, 1][..batches.len().min(2)]);
                for candidate in &candidates {
                    assert_eq!(candidate.own_bytes, texts + feeds + latents, "{prompt}");
                    if candidate.segment_mib().is_none() {
                        let batch = candidate.batch;
                        let inputs: [(&str, &[usize]); 3] = [
                            ("sample", &[batch, 16, 8, 8]),
                            ("timestep", &[]),
                            ("encoder_hidden_states", &[batch, 24, 192]),
                        ];
                        assert_eq!(candidate.activations_bytes, computed(unet, &inputs), "batch {batch}");
                    }
                }
                candidates
            };
            let guided = of("a red apple", 3.5, 2, 2 + 1);
            assert!(guided[0].activations_bytes > guided[1].activations_bytes);
            assert_eq!(of("a red apple", 1.0, 1, 1)[0].batch, 1);
            // Three prompts and the negative one, or the prompts alone.
            of("a red apple AND a pear AND a fish", 3.5, 4, 4 + 3);
            // A tree of noise over levels up to 65.9 has 26 halvings to a millionth, and the whole.
            let sampler = Some("dpm++2m-sde".parse().unwrap());
            let with_tree = stage(&model, Recipe { sampler, guidance: Some(3.5.into()), ..recipe() }, "unet");
            assert_eq!(with_tree[0].own_bytes, guided[0].own_bytes + 27 * LATENTS_LEN * FLOAT);
            // 19 MB of weights, in f16.
            assert!((19 << 20..20 << 20).contains(&(guided[0].weights_bytes + (1 << 20))));
        }

        /// A U-Net in integers: its products keep another copy of their weights, in whole tiles and with a sum for each
        /// column, where the session is kept, or in blocks always; and columns of convolutions are values as others are.
        #[test]
        fn of_a_unet_in_integers() {
            let folder = tempfile::tempdir().unwrap();
            let plain = stage(&Model::built_in().unwrap(), recipe(), "unet");
            for form in [Compute::Int8, Compute::Int8Fine] {
                let bundle = folder.path().join(form.to_string());
                let compute = ComputeOptions { form, weight_bits: None, max_error: None };
                let threads = NonZeroUsize::MIN;
                let options = pack::Options {
                    weights: None,
                    compute: Some(compute),
                    name: None,
                    licence: None,
                    threads,
                    memory: None,
                };
                let report = pack::pack(&Model::built_in().unwrap(), &bundle, &options, |_| ()).unwrap();
                let model = Model::open(&bundle).unwrap();
                let whole = stage(&model, recipe(), "unet").swap_remove(0);
                let (mut columns, mut blocks, mut floats) = (0, 0, 0);
                for parameter in model.unet().graph().parameters() {
                    let elements = parameter.shape.iter().product::<usize>() as u64;
                    match (parameter.dtype, &parameter.shape[..]) {
                        (Dtype::I8, [inputs, out]) => {
                            columns += (out.div_ceil(16) * 16 * (inputs.div_ceil(64) * 64 + 4)) as u64;
                        }
                        (Dtype::U8, [_, _, _]) => blocks += elements,
                        (Dtype::F32, [_, _]) if parameter.name.ends_with(".scales") => {
                            blocks += elements * FLOAT
                        }
                        _ => {}
                    }
                    if parameter.dtype == Dtype::F32 {
                        floats += elements * FLOAT;
                    }
                }
                assert!(columns > 4 << 20 && (blocks > 1 << 20) == (form == Compute::Int8Fine));
                let (repacked, copied) = match form {
                    Compute::Int8 => (0, floats + columns),
                    Compute::Int8Fine => (columns + blocks, floats),
                    Compute::Qdq => unreachable!("not among the forms"),
                };
                assert_eq!(
                    (whole.repacked_bytes, whole.copies_bytes),
                    (repacked, copied + copied / 6),
                    "{form}"
                );
                let unet = report.components.iter().find(|component| component.name == "unet").unwrap();
                assert!(whole.weights_bytes.abs_diff(unet.packed_bytes) < 256 << 10, "{form}");
                let inputs: [(&str, &[usize]); 3] =
                    [("sample", &[2, 16, 8, 8]), ("timestep", &[]), ("encoder_hidden_states", &[2, 24, 192])];
                assert_eq!(whole.activations_bytes, computed(model.unet(), &inputs), "{form}");
                assert_eq!(whole.operations, plain[0].operations, "{form}");
            }
        }

        #[test]
        fn of_the_vae() {
            let model = Model::built_in().unwrap();
            let decoded = stage(&model, recipe(), "vae_decoder");
            let expected = computed(model.vae_decoder(), &[("latent_sample", &[1, 16, 8, 8])]);
            let whole = &decoded[0];
            assert_eq!((whole.tile, whole.own_bytes, whole.activations_bytes), (None, PLANES, expected));
            // Of a larger image there are tiles, whose planes are joined.
            let large = Recipe { size: Some(PixelSize::new(512, 512).unwrap()), ..recipe() };
            let tiled = stage(&model, large, "vae_decoder");
            assert_eq!(tiled[0].own_bytes, 16 * PLANES);
            assert!(tiled.iter().any(|candidate| candidate.tile.is_some()));
            for candidate in tiled.iter().filter(|candidate| candidate.tile.is_some()) {
                assert!(candidate.own_bytes > 16 * PLANES, "{candidate:?}");
            }

            // Without an image nothing is encoded.
            assert!(candidates(&model, recipe()).iter().all(|(stage, _)| *stage != "vae_encoder"));
            let init = Some(recipe::Image::Given(RgbImage::new(128, 128).into()));
            let mask = Some(recipe::Image::Given(GrayImage::from_pixel(128, 128, [255].into()).into()));
            for recipe in [Recipe { init: init.clone(), ..recipe() }, Recipe { init, mask, ..recipe() }] {
                let texts = 2 * CONTEXT * STATE;
                let encoded = &stage(&model, recipe, "vae_encoder")[0];
                let expected = computed(model.vae_encoder().unwrap(), &[("sample", &[1, 3, 128, 128])]);
                assert_eq!((encoded.own_bytes, encoded.activations_bytes), (texts + 2 * PLANES, expected));
            }
        }

        /// A LoRA of rank 1 of one layer of 96 to 96 channels.
        fn with_lora(folder: &Path) -> Model {
            let path = folder.join("lora.safetensors");
            let stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";
            let values = 0.1f32.to_le_bytes().repeat(96);
            let tensors = [("lora_down", vec![1, 96]), ("lora_up", vec![96, 1])].map(|(end, shape)| {
                let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &values);
                (format!("{stem}.{end}.weight"), view.unwrap())
            });
            fs::write(&path, safetensors::serialize(tensors, &None).unwrap()).unwrap();
            let mut model = Model::built_in().unwrap();
            model.add_loras(vec![(Lora::open(&path).unwrap(), 1.0)]).unwrap();
            model
        }

        #[test]
        fn of_adapters() {
            let folder = tempfile::tempdir().unwrap();
            let (plain, added) = (Model::built_in().unwrap(), with_lora(folder.path()));
            // The sums, in f16.
            const SUMS: u64 = 96 * 96 * 2;
            // Bytes in four forms, two in floats, and both factors with their pages.
            const TEMPORARY: u64 = 4 * SUMS + 2 * 96 * 96 * FLOAT + 2 * 2 * 96 * FLOAT;
            let pairs = stage(&plain, recipe(), "unet").into_iter().zip(stage(&added, recipe(), "unet"));
            let mut streamed = 0;
            for (plain, added) in pairs {
                assert_eq!((plain.batch, plain.segment_mib()), (added.batch, added.segment_mib()));
                // Whole, the pages of the originals are there as well.
                let times = if plain.segment_mib().is_none() { 2 } else { 1 };
                streamed += usize::from(times == 1);
                assert_eq!(added.weights_bytes, plain.weights_bytes + times * SUMS);
                assert_eq!((plain.opening_bytes, added.opening_bytes), (0, TEMPORARY));
            }
            assert!(streamed > 0);
            let [plain_text, added_text] =
                [&plain, &added].map(|model| stage(model, recipe(), "text_encoder"));
            assert_eq!(plain_text, added_text);

            // A plan is for no more than was added when it was made.
            let [for_plain, for_added] =
                [&plain, &added].map(|model| plan(model, recipe(), 1, u64::MAX).unwrap());
            for (plan, model) in [(&for_plain, &plain), (&for_added, &added), (&for_added, &plain)] {
                plan.check_model(model).unwrap();
            }
            let error = for_plain.check_model(&added).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Memory);
            let message =
                "memory: expected adapters of at most 0 MiB, for which the plan was made, got 1 MiB";
            assert!(error.to_string().starts_with(message), "{error}");
            let opened = Pipeline::open(&added, &Options { session: options(1), plan: Some(for_plain) });
            assert_eq!(opened.map(|_| ()).unwrap_err().kind(), ErrorKind::Memory);
            let mut pipeline =
                Pipeline::open(&added, &Options { session: options(1), plan: Some(for_added) }).unwrap();
            let request = pipeline.request(recipe()).unwrap();
            pipeline.generate(&request, |_| ControlFlow::Continue(())).unwrap();
        }

        #[test]
        fn of_what_is_beside_the_stages() {
            let model = Model::built_in().unwrap();
            let stages = candidates(&model, recipe());
            let described = stages.iter().map(|(_, stage)| stage[0].description_bytes).max().unwrap();
            assert!(described > 1000, "{described}");
            let base = |threads: u64| {
                // What the data of the program and the heap take, threads with those of the sessions, tokenizers, copies of graphs.
                RESIDENT
                    + (3 << 20)
                    + (threads + stages.len() as u64) * (128 << 10)
                    + 7 * model.text_encoders()[0].vocabulary_bytes() as u64
                    + described / 2
            };
            for threads in [1, 2, 8] {
                let plan = plan(&model, recipe(), threads as usize, u64::MAX).unwrap();
                assert_eq!((plan.base_bytes(), plan.images_peak_bytes()), (base(threads), None));
            }

            // The least is that of the largest stage in its smallest way, and what may differ between two runs.
            let smallest = |stage: &Vec<Candidate>| stage.iter().map(Candidate::bytes).min().unwrap();
            let largest = stages.iter().map(|(_, stage)| smallest(stage)).max().unwrap();
            let least = base(2) + largest + VARIATION_BYTES;
            let roomy = plan(&model, recipe(), 2, u64::MAX).unwrap();
            assert_eq!(roomy.least_bytes(), least);
            assert!(roomy.peak_bytes() > base(2) + largest);
            let smaller = least - VARIATION_BYTES;
            assert!(plan(&model, recipe(), 2, smaller).is_ok());
            let error = plan(&model, recipe(), 2, smaller - 1).unwrap_err();
            let message = format!(
                "memory: expected at least {} MiB for an image of 128x128, got {} MiB",
                least.div_ceil(1 << 20),
                smaller.div_ceil(1 << 20)
            );
            assert_eq!((error.kind(), error.to_string()), (ErrorKind::Memory, message));

            // Images in files are decoded before anything is open, and stay.
            let png = |image: image::DynamicImage| {
                let mut bytes = std::io::Cursor::new(Vec::new());
                image.write_to(&mut bytes, ImageFormat::Png).unwrap();
                ImageFile::from_bytes("x", bytes.into_inner()).unwrap()
            };
            let image = png(RgbImage::new(3000, 2000).into());
            let mask = png(GrayImage::from_pixel(3000, 2000, [255].into()).into());
            let decoding = image.decode_to_bytes(128, 128);
            let init = Some(recipe::Image::Given(Init::from(image)));
            let mask = Some(recipe::Image::Given(Mask::from(mask)));
            let with_init = Recipe { init, ..recipe() };
            let planned = plan(&model, with_init.clone(), 2, u64::MAX).unwrap();
            // The encoder's session has a thread, too.
            assert_eq!(planned.base_bytes(), base(3) + 3 * 128 * 128);
            assert_eq!(planned.images_peak_bytes(), Some(RESIDENT + decoding));
            let masked = plan(&model, Recipe { mask, ..with_init }, 2, u64::MAX).unwrap();
            assert_eq!(masked.base_bytes(), base(3) + (3 + 1) * 128 * 128);

            // One whose decoding takes more than any stage sets the least.
            let mut bytes = Vec::new();
            encode(&RgbImage::new(16, 16), OutputFormat::Jpeg, None, &mut bytes).unwrap();
            let frame = bytes.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
            bytes[frame + 5..frame + 9]
                .copy_from_slice(&[6000u16.to_be_bytes(), 8000u16.to_be_bytes()].concat());
            // Progressive, so that it is not decoded at a smaller size.
            bytes[frame + 1] = 0xc2;
            let huge = ImageFile::from_bytes("x", bytes).unwrap();
            assert_eq!(huge.dimensions(), (8000, 6000));
            let decoding = RESIDENT + huge.decode_to_bytes(128, 128);
            let init = Some(recipe::Image::Given(Init::from(huge)));
            let with_huge = Recipe { init, ..recipe() };
            let planned = plan(&model, with_huge.clone(), 2, u64::MAX).unwrap();
            assert_eq!(planned.least_bytes(), decoding + VARIATION_BYTES);
            assert!(decoding > least && plan(&model, with_huge.clone(), 2, decoding).is_ok());
            assert!(plan(&model, with_huge, 2, decoding - 1).is_err());
        }
    }

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes) in [
            ("300MiB", 300 << 20),
            ("1.5GiB", 3 << 29),
            ("2 GB", 2_000_000_000),
            ("7B", 7),
            ("96mb", 96_000_000),
            ("1TiB", 1 << 40),
            ("1 gib", 1 << 30),
        ] {
            assert_eq!(text.parse::<Budget>().unwrap().bytes(), bytes, "{text}");
        }
        for (text, help) in
            [("96M", "; say 96MiB (of 1024) or 96MB (of 1000)"), ("1g", "; say 1GiB (of 1024) or")]
        {
            assert!(text.parse::<Budget>().expect_err(text).to_string().contains(help), "{text}");
        }
        for text in ["", "M", "kib", "-1MiB", "1e400MiB", "infMiB", "96", "é"] {
            assert!(text.parse::<Budget>().is_err(), "{text}");
        }
        assert_eq!(Size((1 << 20) + 1).to_string(), "2 MiB");
    }
}
