//! Sessions: bound graphs, opened in ONNX Runtime and run by checked names.
//! It knows nothing of what the graphs compute.

mod cancel;
mod compile;
mod data;
mod exhaustion;
mod library;
mod pool;
mod provider;
mod stream;
mod sys;
mod threads;
mod value;
mod worker;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

pub use self::cancel::Cancel;
use self::cancel::Flag;
use self::compile::{Cache, Compilation};
pub use self::compile::{Compiling, Watch};
pub use self::data::{Data, Elements, NamedTensor, Output, TensorRef};
pub(crate) use self::exhaustion::SPARE_BYTES;
pub use self::exhaustion::{Refusal, exit_when_exhausted};
pub(crate) use self::library::cpu_kind;
pub use self::library::{Library, cpu_features, cpu_model};
pub use self::provider::{About, Intent, Precision, Provider, ProviderKind, Providers};
use self::stream::Streamed;
use self::sys::{Found, Input, Opening};
pub use self::sys::{Heap, disable_telemetry};
use self::value::Fed;
pub use self::value::Value;
pub(crate) use self::worker::STACK_BYTES;
use self::worker::Worker;
pub use self::worker::{abandoned_for, exit};
use crate::graph::{BoundGraph, Dialect, OnDisk, Port};
use crate::weights::{Dtype, Weights};
use crate::{Error, ErrorKind};

/// Operators for which ONNX Runtime has no kernel on a CPU and that have no standard form, and the providers that have one.
const NOT_ON_CPU: [(&str, &str); 1] = [("com.microsoft.EPContext", "the provider that it was compiled for")];

/// The providers that an operator needs, by its full name, where a CPU will not do.
pub fn providers_needed(operator: &str) -> Option<&'static str> {
    NOT_ON_CPU.iter().find(|(name, _)| *name == operator).map(|(_, providers)| *providers)
}

/// Weights of graphs up to this size are converted and repacked once, at the price of a copy. Those of larger ones are
/// used where they lie, which costs next to nothing beside the work that many weights mean: with SD 1.5 in f32 the
/// difference is within noise, in f16 the conversion is 10 % of the linear layers' time at 2048 rows.
const COPIED_BYTES: usize = 64 << 20;

/// Which copies of weights a session may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copies {
    /// Converted, in other layouts, and repacked.
    All,
    /// Repacked for its kernels.
    Repacked,
    /// None.
    None,
    /// What its provider makes of the graph as it is.
    OfProvider,
}

/// How a session is opened.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// How many threads work on one operator.
    pub threads: NonZeroUsize,
    /// Which providers each graph may run on, by its name.
    pub providers: Providers,
    /// The operators that its graph has; those of the provider that is the first to run it when absent.
    pub dialect: Option<Dialect>,
    /// The folder in which providers keep what they compile; nothing is kept without.
    pub cache: Option<PathBuf>,
    /// Who is told when a provider compiles a graph.
    pub watch: Option<Watch>,
    /// Where its weights are; where another provider than the CPU may run a graph, always [`Residency::Keep`].
    pub residency: Residency,
    /// How much memory is kept between its runs to compute in; as much as is of use when absent, or where another provider
    /// than the CPU may run a graph.
    pub pool_bytes: Option<usize>,
    /// The most memory that the process may have while a session is opened or runs: what would exceed it is an error of
    /// [`ErrorKind::Memory`]. For the CPU alone; no limit when absent.
    pub budget_bytes: Option<u64>,
    /// Ends its calls.
    pub cancel: Cancel,
}

impl SessionOptions {
    /// Everything in memory, on this many threads of the CPU.
    pub fn new(threads: NonZeroUsize) -> Self {
        Self {
            threads,
            providers: Providers::default(),
            dialect: None,
            cache: None,
            watch: None,
            residency: Residency::Keep,
            pool_bytes: None,
            budget_bytes: None,
            cancel: Cancel::new(),
        }
    }

    /// The same, with as little memory as can be: segments small enough for any board, and nothing that would exceed a budget.
    #[must_use]
    pub fn within(self, budget_bytes: u64) -> Self {
        Self { residency: Residency::LEAST, pool_bytes: Some(0), budget_bytes: Some(budget_bytes), ..self }
    }

    /// What holds for a component: devices have memory of their own, into which its weights are copied once.
    pub(crate) fn for_component(mut self, component: &str) -> Self {
        if !self.providers.is_cpu(component) {
            (self.residency, self.pool_bytes, self.budget_bytes) = (Residency::Keep, None, None);
        }
        self
    }
}

/// Where the weights of a session are, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// In memory for as long as the model is open, converted and repacked where that makes it faster.
    Keep,
    /// In memory while its stage runs, where they lie.
    PerStage,
    /// On disk: the graph runs in segments.
    Streamed {
        /// The most bytes that the weights of a segment have, in the types in which they are computed with. A single
        /// operator may have more.
        segment_bytes: usize,
        /// The most bytes of the files that are in memory.
        resident_bytes: usize,
    },
}

impl Residency {
    /// Segments small enough for any board, which are read again for every call.
    pub(crate) const LEAST: Self = Self::Streamed { segment_bytes: 16 << 20, resident_bytes: 0 };
}

/// Gives back the memory that sessions have computed in and what else was freed, but for what is in use.
pub(crate) fn trim() {
    if let Some(library) = Library::loaded() {
        library.runtime().pool().trim();
    }
    sys::trim_heap();
}

/// How many bytes of weights a session that is kept converts and repacks, beside those that every session repacks.
pub(crate) fn copied_bytes(bound: &BoundGraph) -> usize {
    converted_bytes(bound) + if bound.repacks() { 0 } else { bound.repacked_bytes() }
}

/// How many bytes of floats a session that is kept converts and repacks: all or none.
fn converted_bytes(bound: &BoundGraph) -> usize {
    // Of tables only the rows that are looked up are converted.
    if bound.float_bytes <= COPIED_BYTES { bound.float_bytes - bound.table_bytes } else { 0 }
}

/// A device that a provider offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The provider's name in ONNX Runtime.
    pub provider: String,
    /// `cpu`, `gpu` or `npu`.
    pub kind: &'static str,
    /// Who made it.
    pub vendor: String,
}

/// Where a component runs, and why not elsewhere.
#[derive(Clone, Debug)]
pub struct Placement {
    /// The component.
    pub component: String,
    /// The providers of its session: each runs what those before it cannot.
    pub providers: Vec<Provider>,
    /// Those that were asked for before and could not be had, with the reasons.
    pub passed_over: Vec<(Provider, String)>,
    /// What it is computed in: the coarsest of its providers.
    pub precision: Precision,
    /// What each provider runs of its graph; nothing where the CPU runs all of it, and where the library, before 1.24,
    /// cannot say.
    pub shares: Option<Vec<Share>>,
    /// How far its trial lay from the reference: see [`crate::manual::providers`]. Nothing where the CPU runs all of it, or
    /// where it could not be compared with the CPU.
    pub error: Option<f64>,
}

impl Placement {
    /// Whether the CPU runs all of it.
    pub fn is_cpu(&self) -> bool {
        self.providers.iter().all(Provider::is_cpu)
    }
}

/// What a provider runs of a graph.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Its name in ONNX Runtime.
    pub provider: String,
    /// Into how many parts its nodes fall, each of which is one call of it; providers that compile nothing have one a node.
    pub partitions: usize,
    /// How many nodes it runs.
    pub nodes: usize,
    /// Its operators, with the number of nodes of each.
    pub operators: BTreeMap<String, usize>,
}

impl Share {
    /// Whether the provider is the CPU's.
    pub fn is_cpu(&self) -> bool {
        self.provider == "CPUExecutionProvider"
    }
}

/// Operators that only prepare sizes and indices, which every provider leaves to the CPU.
const OF_SHAPES: [&str; 16] = [
    "Cast",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Equal",
    "Expand",
    "Gather",
    "Identity",
    "Range",
    "Reshape",
    "Shape",
    "Size",
    "Slice",
    "Squeeze",
    "Unsqueeze",
    "Where",
];

impl Placement {
    /// How its graph is divided, where that costs time at every run: in more than one part of a provider that compiles whole
    /// parts, or with operators that compute on the CPU, which are named.
    pub fn divided(&self) -> Option<String> {
        let mut problems = Vec::new();
        for share in self.shares.iter().flatten() {
            let Share { provider, partitions, nodes, operators } = share;
            if share.is_cpu() {
                let computing = operators.iter().filter(|(name, _)| !OF_SHAPES.contains(&name.as_str()));
                let computing: Vec<String> =
                    computing.map(|(name, count)| format!("{name} ({count})")).collect();
                if !computing.is_empty() {
                    problems.push(format!("on the CPU {}", computing.join(", ")));
                }
            } else if *partitions > 1 && nodes > partitions {
                problems.push(format!("{partitions} parts on {provider}"));
            }
        }
        (!problems.is_empty())
            .then(|| format!("expected one part on one provider, got {}", problems.join("; ")))
    }
}

/// A graph that is ready to run, with its weights. It lives on a thread of its own, so that whoever is cancelled need not wait
/// for the end of a call.
pub struct Session {
    name: String,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    worker: Worker<Opened>,
    weights: Arc<Weights>,
    placement: Placement,
    cancel: Cancel,
    compilation: Option<Compilation>,
    /// Whether its runs are within a budget.
    is_limited: bool,
    fed_bytes: u64,
}

/// What of a [`Session`] lives on its thread.
struct Opened {
    run: Run,
    /// Outlives `run`, whose memory is of the pool.
    _limit: PoolLimit,
}

/// What is known of a [`Session`] once it is open.
struct Description {
    name: String,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    weights: Arc<Weights>,
    placement: Placement,
    compilation: Option<Compilation>,
}

/// What a [`Session`] runs.
enum Run {
    Whole(sys::Session),
    Streamed(Streamed),
}

impl Run {
    /// The outputs of these names, and how many bytes of the inputs were handed to ONNX Runtime for it.
    fn values(
        &mut self,
        constants: &[(String, Value)],
        inputs: &[NamedTensor],
        outputs: &[&str],
        flag: &Flag,
    ) -> Result<(Vec<sys::Value>, u64), Error> {
        let bytes = |feeds: &mut dyn Iterator<Item = Fed<'_>>| feeds.map(|fed| fed.size_bytes()).sum::<u64>();
        let inputs = inputs.iter().map(NamedTensor::input);
        let fed_bytes = bytes(&mut inputs.clone().map(|(_, tensor)| Fed::Slice(tensor)));
        match self {
            Self::Whole(session) if constants.is_empty() => {
                let inputs = inputs.map(|(name, tensor)| (name, Input::Fed(tensor)));
                Ok((flag.watch(|options| session.run(inputs, outputs, options))?, fed_bytes))
            }
            Self::Whole(session) => {
                let tensors = constants.iter().map(|(name, value)| (name.as_str(), value.tensor()));
                let is_bound = session.bind(tensors)?;
                let values = flag.watch(|options| session.run_bound(inputs, outputs, options))?;
                let bound = &mut constants.iter().map(|(_, value)| Fed::Value(value));
                Ok((values, fed_bytes + if is_bound { 0 } else { bytes(bound) }))
            }
            Self::Streamed(streamed) => {
                let constants =
                    constants.iter().map(|(name, value)| (name.as_str(), Input::Made(value.tensor())));
                let inputs = inputs.map(|(name, tensor)| (name, Input::Fed(tensor)));
                let inputs: Vec<(&str, Input<'_>)> = inputs.chain(constants).collect();
                Ok((streamed.run(&inputs, outputs, flag)?, fed_bytes))
            }
        }
    }
}

impl Session {
    /// Opens a graph in the process's [`Library`], which is loaded by the default rules if none is loaded yet.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when ONNX Runtime does not accept the graph; [`ErrorKind::Runtime`] when there is no
    /// library, or none of the providers that were asked for can be had, or it lacks an operator of the graph.
    pub fn open(bound: BoundGraph, options: &SessionOptions) -> Result<Self, Error> {
        let (cancel, is_limited) = (options.cancel.clone(), options.budget_bytes.is_some());
        let flag = cancel.flag();
        flag.check()?;
        if is_limited {
            worker::wait_for_abandoned(&flag)?;
        }
        let (own, options) = (Arc::clone(&flag), options.clone());
        let (described, worker) = Worker::start(&flag, move || Self::open_here(bound, &options, &own))?;
        let Description { name, inputs, outputs, weights, placement, compilation } = described;
        let fed_bytes = 0;
        Ok(Self {
            name,
            inputs,
            outputs,
            worker,
            weights,
            placement,
            cancel,
            compilation,
            is_limited,
            fed_bytes,
        })
    }

    /// Opens a graph on the thread that is to run it.
    fn open_here(
        mut bound: BoundGraph,
        options: &SessionOptions,
        flag: &Flag,
    ) -> Result<(Description, Opened), Error> {
        bound.weights.check_files()?;
        let library = Library::load(None)?;
        let options = &options.clone().for_component(&bound.name);
        let mut placement = Placement {
            component: bound.name.clone(),
            providers: Vec::new(),
            passed_over: Vec::new(),
            precision: Precision::Full,
            shares: None,
            error: None,
        };
        let mut providers = Vec::new();
        for provider in options.providers.of(&bound.name) {
            match library.runtime().find(provider) {
                Ok(found) => providers.push((provider.clone(), found)),
                Err(reason) => placement.passed_over.push((provider.clone(), reason)),
            }
        }
        let (run, compilation, limit) = loop {
            // All that was asked for is missing: the first was wanted most.
            let Some((first, _)) = providers.first() else {
                let (provider, reason) = placement.passed_over.swap_remove(0);
                return Err(named(&bound.name, library::missing(&provider, reason)));
            };
            if first.is_cpu() {
                bound.convert_rows();
            }
            match open_on(library, &bound, &providers, options, flag) {
                Ok(opened) => break opened,
                Err(error) if providers.len() == 1 || error.kind() == ErrorKind::Cancelled => {
                    return Err(named(&bound.name, error));
                }
                Err(error) => {
                    placement.passed_over.push((first.clone(), error.to_string()));
                    providers.remove(0);
                }
            }
        };
        // A number that is off by a rounding error may become the next integer.
        let rounds = bound.rounds();
        let BoundGraph { name, inputs, outputs, model, weights, .. } = bound;
        drop(model);
        // Reading a graph leaves as many holes as it has names, and converting weights holes as large as they are.
        sys::trim_heap();
        for (provider, reason) in &placement.passed_over {
            tracing::warn!(component = name, %provider, reason, "a provider was passed over");
        }
        let mut precisions =
            providers.iter().map(|(provider, found)| Precision::of(&found.canonical, provider));
        let is_half = inputs.iter().chain(&outputs).any(|port| port.dtype == Dtype::F16);
        if rounds {
            placement.precision = Precision::Integers;
        } else if is_half || precisions.any(|precision| precision == Precision::Reduced) {
            placement.precision = Precision::Reduced;
        }
        placement.providers = providers.into_iter().map(|(provider, _)| provider).collect();
        if let Run::Whole(session) = &run
            && !placement.is_cpu()
        {
            placement.shares = session.shares(library.runtime())?;
        }
        if let Some(problem) = placement.divided() {
            tracing::warn!(component = name, problem, "a graph is divided between providers");
        }
        let described = Description { name, inputs, outputs, weights, placement, compilation };
        Ok((described, Opened { run, _limit: limit }))
    }

    /// Where it runs.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Notes what its trial found, and ends the compilation that opening it began: some providers compile when a graph
    /// is first run.
    pub(crate) fn settle(&mut self, error: Option<f64>) {
        self.placement.error = error;
        if let Some(compilation) = self.compilation.take() {
            compilation.finish();
        }
    }

    /// What [`Session::run`] must be fed.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// What [`Session::run`] can give.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// Runs the graph once: on copies of the inputs, and copies the outputs that are asked for into the slices given with
    /// their names, as 32-bit floats in row-major order.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when the graph's inputs and outputs are not those named here, with these types and sizes;
    /// [`ErrorKind::Runtime`] when the run fails; [`ErrorKind::Cancelled`] when it is cancelled.
    pub fn run(
        &mut self,
        inputs: &[(&str, TensorRef<'_>)],
        outputs: &mut [(&str, &mut [f32])],
    ) -> Result<(), Error> {
        self.run_bound(&[], inputs, outputs)
    }

    /// The same, with inputs that stay where they are: they are bound when the session is first run with them, which copies
    /// them to the device that computes, and later runs with the same constants read them there. What was bound is released
    /// once its values are dropped and the session is run or closed.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run_bound(
        &mut self,
        constants: &[(String, Value)],
        inputs: &[(&str, TensorRef<'_>)],
        outputs: &mut [(&str, &mut [f32])],
    ) -> Result<(), Error> {
        let mut inputs: Vec<NamedTensor> = inputs.iter().map(NamedTensor::copied).collect();
        self.run_owned(constants, &mut inputs.iter_mut().collect::<Vec<_>>(), outputs)
    }

    /// The same, without copies of the inputs: they are the session's while it runs. Where the run is cancelled they may be
    /// gone.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run_owned(
        &mut self,
        constants: &[(String, Value)],
        inputs: &mut [&mut NamedTensor],
        outputs: &mut [(&str, &mut [f32])],
    ) -> Result<(), Error> {
        let names: Vec<&str> = outputs.iter().map(|(name, _)| *name).collect();
        let values = self.values(constants, inputs, &names)?;
        for ((name, out), value) in outputs.iter_mut().zip(values) {
            value.copy_to(out).map_err(|problem| self.unfit_output(name, &problem))?;
        }
        Ok(())
    }

    /// Runs the graph once and gives the outputs of these names, as 32-bit floats in row-major order.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn compute(
        &mut self,
        inputs: &[(&str, TensorRef<'_>)],
        outputs: &[&str],
    ) -> Result<Vec<Output>, Error> {
        let mut inputs: Vec<NamedTensor> = inputs.iter().map(NamedTensor::copied).collect();
        self.compute_owned(&mut inputs.iter_mut().collect::<Vec<_>>(), outputs)
    }

    /// The same, without copies of the inputs: they are the session's while it runs. Where the run is cancelled they may be
    /// gone.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn compute_owned(
        &mut self,
        inputs: &mut [&mut NamedTensor],
        outputs: &[&str],
    ) -> Result<Vec<Output>, Error> {
        let values = self.values(&[], inputs, outputs)?.into_iter().zip(outputs);
        values
            .map(|(value, name)| value.output().map_err(|problem| self.unfit_output(name, &problem)))
            .collect()
    }

    /// How many bytes of inputs were handed to ONNX Runtime since the session was opened: those of slices at every run, those
    /// of constants when they were bound.
    pub fn fed_bytes(&self) -> u64 {
        self.fed_bytes
    }

    fn values(
        &mut self,
        constants: &[(String, Value)],
        inputs: &mut [&mut NamedTensor],
        outputs: &[&str],
    ) -> Result<Vec<sys::Value>, Error> {
        let (values, fed_bytes) =
            self.try_values(constants, inputs, outputs).map_err(|error| named(&self.name, error))?;
        self.fed_bytes += fed_bytes;
        Ok(values)
    }

    fn try_values(
        &mut self,
        constants: &[(String, Value)],
        inputs: &mut [&mut NamedTensor],
        outputs: &[&str],
    ) -> Result<(Vec<sys::Value>, u64), Error> {
        let flag = self.cancel.flag();
        if self.is_limited {
            worker::wait_for_abandoned(&flag)?;
        }
        let constants_fed = constants.iter().map(|(name, value)| (name.as_str(), Fed::Value(value)));
        let fed = inputs.iter().map(|input| input.input()).map(|(name, tensor)| (name, Fed::Slice(tensor)));
        self.check(fed.chain(constants_fed), outputs)?;
        self.weights.check_files()?;
        // All that the run reads is its own, whoever waits for its end.
        let (own, constants) = (Arc::clone(&flag), constants.to_vec());
        let names: Vec<String> = outputs.iter().map(|name| (*name).to_owned()).collect();
        let taken: Vec<NamedTensor> = inputs.iter_mut().map(|input| input.take()).collect();
        let (taken, values) = self.worker.call(&flag, move |opened| {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let values = opened.run.values(&constants, &taken, &names, &own);
            (taken, values)
        })?;
        inputs.iter_mut().zip(taken).for_each(|(input, taken)| **input = taken);
        values
    }

    fn unfit_output(&self, name: &str, problem: &str) -> Error {
        named(&self.name, Error::new(ErrorKind::Model, format!("output {name}: {problem}")))
    }

    fn check<'a>(
        &self,
        inputs: impl Iterator<Item = (&'a str, Fed<'a>)> + Clone,
        outputs: &[&str],
    ) -> Result<(), Error> {
        for (name, fed) in inputs.clone() {
            let port = find(&self.inputs, name).ok_or_else(|| unknown("input", name, &self.inputs))?;
            if !fed.is_whole() {
                return Err(Error::new(
                    ErrorKind::Internal,
                    format!(
                        "input {name}: expected data of shape {:?}, got {} elements",
                        fed.shape(),
                        fed.len()
                    ),
                ));
            }
            if !fed.fits(port) {
                let (dtype, shape) = (fed.dtype(), fed.shape());
                return Err(Error::new(
                    ErrorKind::Model,
                    format!("input {name}: expected {}, got {dtype}{shape:?}", port.signature()),
                ));
            }
        }
        for port in &self.inputs {
            let times = inputs.clone().filter(|(name, _)| *name == port.name).count();
            if times != 1 {
                return Err(Error::new(
                    ErrorKind::Model,
                    format!("input {}: expected once, got {times} times", port.name),
                ));
            }
        }
        for name in outputs {
            find(&self.outputs, name).ok_or_else(|| unknown("output", name, &self.outputs))?;
        }
        Ok(())
    }
}

/// Opens a graph on all of these providers, the first of which is to run it.
fn open_on(
    library: &'static Library,
    bound: &BoundGraph,
    providers: &[(Provider, Found)],
    options: &SessionOptions,
    flag: &Flag,
) -> Result<(Run, Option<Compilation>, PoolLimit), Error> {
    let (first, found) = &providers[0];
    let rewritten = bound.in_dialect(options.dialect.unwrap_or_else(|| first.kind.dialect()));
    let bound = rewritten.as_ref().unwrap_or(bound);
    if first.is_cpu()
        && let Some((operator, providers)) =
            bound.custom_operators.iter().find_map(|name| Some((name, providers_needed(name)?)))
    {
        return Err(Error::new(
            ErrorKind::Runtime,
            format!("{operator}: expected an operator that the CPU can run, got one that needs {providers}"),
        )
        .help("use an export of the model that was not optimised for one provider"));
    }
    let reads_files = provider::reads_files(&found.canonical);
    let copies = match options.residency {
        _ if reads_files => Copies::OfProvider,
        Residency::Keep if converted_bytes(bound) > 0 => Copies::All,
        Residency::Keep if bound.has_integers => Copies::Repacked,
        _ if bound.repacks() => Copies::Repacked,
        _ => Copies::None,
    };
    let mut providers: Vec<(Provider, Found)> = providers.to_vec();
    let mut cache = None;
    let root = options.cache.as_deref();
    if let (Some(root), [(provider, found), ..]) = (root, &mut providers[..])
        && provider::compiles(&found.canonical, provider)
        && !provider::cache_options(&found.canonical, root).is_empty()
    {
        let opened = Cache::open(root, &found.canonical, &bound.key())?;
        for (key, value) in provider::cache_options(&found.canonical, opened.folder()) {
            // What was typed is meant.
            if provider.option(key).is_none() {
                provider.options.push((key.to_owned(), value));
            }
        }
        cache = Some(opened);
    }
    let watch = options.watch.as_ref();
    let begin = || Compilation::begin(&bound.name, &found.canonical, cache.as_ref(), root, watch);
    let compilation = provider::compiles(&found.canonical, first).then(begin).flatten();
    let runtime = library.runtime();
    let how = Opening { threads: options.threads.get(), copies, budget_bytes: options.budget_bytes };
    let limit = PoolLimit::new(library, options.pool_bytes);
    let run = flag.watch_loads(|loads| match options.residency {
        Residency::Keep | Residency::PerStage => {
            let on_disk = (reads_files || runtime.copies_memory()).then(|| bound.on_disk()).flatten();
            let (model, files, folder) = match on_disk {
                Some(OnDisk { model, folder }) => (model, Vec::new(), folder),
                None => (bound.encode(), bound.files(), None),
            };
            let weights = bound.weights.lend(files)?;
            let folder = folder.as_deref();
            sys::Session::open(runtime, &model, weights, how, &providers, loads, folder).map(Run::Whole)
        }
        Residency::Streamed { segment_bytes, resident_bytes } => {
            Streamed::open(runtime, bound, how, segment_bytes, resident_bytes, loads).map(Run::Streamed)
        }
    });
    let run = run.map_err(|error| match first.is_cpu() || error.kind() == ErrorKind::Cancelled {
        true => error,
        false => Error::new(ErrorKind::Runtime, format!("provider {first}"))
            .source(error)
            .help(format!("{},cpu runs the operators that it lacks on the CPU", first.kind)),
    })?;
    Ok((run, compilation, limit))
}

/// What a session lets the pool keep, for as long as it is open.
struct PoolLimit {
    library: &'static Library,
    limit_bytes: Option<usize>,
}

impl PoolLimit {
    fn new(library: &'static Library, limit_bytes: Option<usize>) -> Self {
        library.runtime().pool().limit(limit_bytes);
        Self { library, limit_bytes }
    }
}

impl Drop for PoolLimit {
    fn drop(&mut self) {
        self.library.runtime().pool().unlimit(self.limit_bytes);
    }
}

fn find<'a>(ports: &'a [Port], name: &str) -> Option<&'a Port> {
    ports.iter().find(|port| port.name == name)
}

fn unknown(what: &str, name: &str, ports: &[Port]) -> Error {
    let names: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
    Error::new(ErrorKind::Model, format!("{what}: expected one of {}, got {name}", names.join(", ")))
}

/// Says in which graph an error occurred.
fn named(name: &str, error: Error) -> Error {
    Error::new(error.kind(), name).source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A provider, its parts, and how often it runs each operator.
    type Ran<'a> = (&'a str, usize, &'a [(&'a str, usize)]);

    fn placement(shares: &[Ran<'_>]) -> Placement {
        let shares = shares.iter().map(|(provider, partitions, operators)| Share {
            provider: (*provider).into(),
            partitions: *partitions,
            nodes: operators.iter().map(|(_, count)| count).sum(),
            operators: operators.iter().map(|(name, count)| ((*name).into(), *count)).collect(),
        });
        Placement {
            component: "unet".into(),
            providers: Vec::new(),
            passed_over: Vec::new(),
            precision: Precision::Full,
            shares: Some(shares.collect()),
            error: None,
        }
    }

    #[test]
    fn what_costs_time_at_every_run_is_named() {
        const OPENVINO: &str = "OpenVINOExecutionProvider";
        const CPU: &str = "CPUExecutionProvider";
        assert_eq!(placement(&[]).divided(), None);
        assert_eq!(placement(&[(OPENVINO, 1, &[("Conv", 64), ("Softmax", 32)])]).divided(), None);
        // One call a node is how such a provider works.
        let cuda = [("Conv", 64), ("MultiHeadAttention", 32)];
        assert_eq!(placement(&[("CUDAExecutionProvider", 96, &cuda)]).divided(), None);
        let shapes = (CPU, 3, &[("Shape", 2), ("Gather", 1)][..]);
        assert_eq!(placement(&[(OPENVINO, 1, &[("Conv", 64)]), shapes]).divided(), None);
        let attention = (CPU, 32, &[("MultiHeadAttention", 32), ("Gather", 1), ("Split", 2)][..]);
        assert_eq!(
            placement(&[(OPENVINO, 33, &[("Conv", 64)]), attention]).divided().unwrap(),
            "expected one part on one provider, got 33 parts on OpenVINOExecutionProvider; on the CPU MultiHeadAttention \
             (32), Split (2)"
        );
    }
}
