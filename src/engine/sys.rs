//! ONNX Runtime's API, by way of `ort`: the library's entry point, sessions, runs. The only file that names `ort`.
//! It knows nothing of where libraries are found, and checks nothing that [`super::Session`] has checked.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use ort::AsPointer;
use ort::device;
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::memory::DeviceType;
use ort::ortsys;
use ort::session::SessionInputValue;
use ort::session::builder::{AutoDevicePolicy, GraphOptimizationLevel, LoadCanceler, SessionBuilder};
use ort::sys::{
    ONNXTensorElementDataType as TypeCode, OrtAllocator, OrtAllocatorType, OrtApiBase, OrtIoBinding,
    OrtMemType, OrtMemoryInfo, OrtRunOptions, OrtSession, OrtStatusPtr, OrtValue, os_char,
};
use ort::value::{DynValue, PrimitiveTensorElementType, TensorElementType};

use super::data::{Data, Elements, Output, TensorRef};
use super::exhaustion::{self, Refusal};
use super::pool::Pool;
use super::provider::{Provider, ProviderKind};
use super::{Copies, Device, Share, threads};
use crate::weights::Lent;
use crate::{Error, ErrorKind, memory};

/// The lowest minor version of ONNX Runtime 1 that has all we call.
pub(super) const LOWEST_MINOR: u32 = ort::MINOR_VERSION;

/// ONNX Runtime, loaded. There is one in a process, and it is never unloaded.
pub(super) struct Runtime {
    environment: Environment,
    allocator: &'static Allocator,
    version: String,
    /// Of 1.24 and later.
    assignments: Option<&'static Assignments>,
    plugins: Mutex<Vec<Plugin>>,
}

/// What ONNX Runtime 1.24 added to its table of functions about which provider runs which nodes, from the end of the table
/// that this build knows on.
#[repr(C)]
struct Assignments {
    _before: [*const c_void; 17],
    of_session: unsafe extern "system" fn(
        *const OrtSession,
        *mut *const *const AssignedSubgraph,
        *mut usize,
    ) -> OrtStatusPtr,
    provider: unsafe extern "system" fn(*const AssignedSubgraph, *mut *const c_char) -> OrtStatusPtr,
    nodes: unsafe extern "system" fn(
        *const AssignedSubgraph,
        *mut *const *const AssignedNode,
        *mut usize,
    ) -> OrtStatusPtr,
    _node_name: *const c_void,
    _node_domain: *const c_void,
    operator: unsafe extern "system" fn(*const AssignedNode, *mut *const c_char) -> OrtStatusPtr,
}

// SAFETY: addresses of functions, which never change.
unsafe impl Sync for Assignments {}

/// The minor version that has [`Assignments`].
const ASSIGNMENTS_MINOR: u32 = 24;

/// ONNX Runtime's own, of which nothing but the address is known.
enum AssignedSubgraph {}
/// As above.
enum AssignedNode {}

/// A library of providers that ONNX Runtime has loaded; it is never unloaded.
struct Plugin {
    file: PathBuf,
    /// The addresses of its devices, which live as long as it does.
    devices: Vec<usize>,
}

/// A provider that this library has.
#[derive(Clone)]
pub(super) struct Found {
    /// Its name in ONNX Runtime.
    pub(super) canonical: String,
    /// Of a plugin, the addresses of its devices.
    devices: Vec<usize>,
}

/// Keeps ONNX Runtime from noting in the user's home that it was started, by setting `ORT_DISABLE_TELEMETRY` in the
/// environment of this process; whether that could be done. To be called first of all: where other threads run, whose C
/// code may be reading the environment, nothing is set, and the same holds where it is not known.
pub fn disable_telemetry() -> bool {
    let is_alone = match std::fs::read_dir("/proc/self/task") {
        Ok(threads) => threads.count() == 1,
        Err(_) => cfg!(windows),
    };
    if is_alone {
        // SAFETY: no other thread reads the environment, because there is none; Windows locks it.
        unsafe { std::env::set_var("ORT_DISABLE_TELEMETRY", "1") };
    }
    is_alone
}

impl Runtime {
    /// Loads the library at `path`, or by name as the dynamic linker does when `path` has no folder.
    ///
    /// `ort` could do this itself, but it keeps the reason of a failure to itself, does not tell the version, and
    /// panics where a library that is not what it says gives null.
    pub(super) fn load(path: &Path) -> Result<Self, String> {
        spare_address_space();
        type GetApiBase = unsafe extern "C" fn() -> *const OrtApiBase;
        // SAFETY: opening a library runs its constructors. The user chose the file, or the administrator, or our build.
        let library = unsafe { libloading::Library::new(path) }.map_err(|error| cause(&error))?;
        // SAFETY: ONNX Runtime's C API declares the symbol with this type.
        let get_base = unsafe { library.get::<GetApiBase>(b"OrtGetApiBase\0") }
            .map_err(|_| "not an ONNX Runtime library: it has no OrtGetApiBase".to_owned())?;
        // SAFETY: takes nothing; gives null or a table that lives as long as the library.
        let base = unsafe { get_base().as_ref() }.ok_or("OrtGetApiBase returned nothing")?;
        // SAFETY: takes nothing; gives a NUL-terminated string that lives as long as the library.
        let version = unsafe { CStr::from_ptr((base.GetVersionString)()) }.to_string_lossy().into_owned();
        if !is_supported(&version) {
            return Err(format!("expected ONNX Runtime 1.{LOWEST_MINOR} or newer, got {version}"));
        }
        // SAFETY: gives null, or a table that begins with the fields of the version asked for, which are the fields of
        // `OrtApi` in this build, and lives as long as the library.
        let api = unsafe { (base.GetApi)(LOWEST_MINOR).as_ref() }
            .ok_or_else(|| format!("version {version}: has no API of version {LOWEST_MINOR}"))?
            .clone();

        const { assert!(LOWEST_MINOR == 23, "`Assignments` begins where the table of version 23 ends") };
        // SAFETY: gives null, or a table that begins with that of version 23, is followed by what 1.24 added, and lives as long
        // as the library.
        let assignments = unsafe {
            let newer = (base.GetApi)(ASSIGNMENTS_MINOR);
            (!newer.is_null()).then(|| &*newer.add(1).cast::<Assignments>())
        };

        find_throw(&library);
        // From here on the functions in `api` can be called at any time.
        std::mem::forget(library);
        if !ort::set_api(api) {
            return Err("another ONNX Runtime library is in use already".into());
        }
        let environment = ort::init()
            .with_name("calotype")
            .with_telemetry(false)
            .with_logger(Arc::new(log))
            .build()
            .map_err(|error| error.to_string())?;
        environment.set_log_level(LogLevel::Warning);
        let allocator = Allocator::register(&environment).map_err(|error| error.to_string())?;
        Ok(Self { environment, allocator, version, assignments, plugins: Mutex::default() })
    }

    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// Whether sessions copy weights that lie in memory; those of files they map. What keeps them from it came after 1.24.
    pub(super) fn copies_memory(&self) -> bool {
        minor(&self.version).is_some_and(|minor| minor <= 24)
    }

    /// The memory in which all sessions compute.
    pub(super) fn pool(&self) -> MutexGuard<'_, Pool> {
        self.allocator.pool()
    }

    /// The names of the execution providers that the library was built with, best first.
    pub(super) fn providers(&self) -> Result<Vec<String>, Error> {
        let failed = |error: ort::Error| Error::new(ErrorKind::Runtime, "providers").source(error);
        let mut names: *mut *mut c_char = ptr::null_mut();
        let mut count = 0;
        // SAFETY: writes an array of `count` NUL-terminated strings that is ours until it is released below.
        unsafe { ort::Error::result_from_status((ort::api().GetAvailableProviders)(&mut names, &mut count)) }
            .map_err(failed)?;
        let listed = (0..usize::try_from(count).unwrap_or(0))
            // SAFETY: the index is below `count`.
            .map(|index| unsafe { CStr::from_ptr(*names.add(index)) }.to_string_lossy().into_owned())
            .collect();
        // SAFETY: the array and its size are those that were given; nothing refers to it any more.
        unsafe { ort::Error::result_from_status((ort::api().ReleaseAvailableProviders)(names, count)) }
            .map_err(failed)?;
        Ok(listed)
    }

    /// The devices of all providers that name theirs: those of plugins, and the CPU.
    pub(super) fn devices(&self) -> Vec<Device> {
        self.environment.devices().map(describe).collect()
    }

    /// A provider, if this library has it; the file of a plugin is loaded to see.
    pub(super) fn find(&self, provider: &Provider) -> Result<Found, String> {
        if let Some(about) = provider.kind.about() {
            let names = self.providers().map_err(|error| error.to_string())?;
            return match names.iter().any(|name| name == about.canonical) {
                true => Ok(Found { canonical: about.canonical.into(), devices: Vec::new() }),
                false => Err(format!("not in this ONNX Runtime build; available: {}", names.join(", "))),
            };
        }
        let ProviderKind::Plugin { file, name } = &provider.kind else {
            unreachable!("all others are listed")
        };
        let addresses = self.plug_in(file)?;
        let of_plugin = |device: &device::Device<'_>| addresses.contains(&(device.ptr() as usize));
        let found: Vec<(usize, Device)> = self
            .environment
            .devices()
            .filter(of_plugin)
            .map(|device| (device.ptr() as usize, describe(device)))
            .filter(|(_, device)| name.as_ref().is_none_or(|name| *name == device.provider))
            .collect();
        let Some((_, first)) = found.first() else {
            let name = name.as_ref().map_or(String::new(), |name| format!(" of {name}"));
            return Err(format!("it offers no device{name} on this machine"));
        };
        if let Some((_, other)) = found.iter().find(|(_, device)| device.provider != first.provider) {
            return Err(format!(
                "expected one provider, got {} and {}: add its name after the file",
                first.provider, other.provider
            ));
        }
        Ok(Found {
            canonical: first.provider.clone(),
            devices: found.iter().map(|(address, _)| *address).collect(),
        })
    }

    /// The addresses of a plugin's devices; it is loaded when it is first asked for.
    fn plug_in(&self, file: &Path) -> Result<Vec<usize>, String> {
        let file = std::path::absolute(file).map_err(|error| error.to_string())?;
        let mut plugins = self.plugins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plugin) = plugins.iter().find(|plugin| plugin.file == file) {
            return Ok(plugin.devices.clone());
        }
        let addresses = || self.environment.devices().map(|device| device.ptr() as usize).collect::<Vec<_>>();
        let before = addresses();
        self.environment
            .register_ep_library(file.display().to_string(), &file)
            .map_err(|error| error.to_string())?;
        let devices = addresses().into_iter().filter(|address| !before.contains(address)).collect::<Vec<_>>();
        plugins.push(Plugin { file, devices: devices.clone() });
        Ok(devices)
    }
}

fn describe(device: device::Device<'_>) -> Device {
    let hardware = device.hardware_device();
    Device {
        provider: device.ep().unwrap_or_default().to_owned(),
        kind: match hardware.ty() {
            DeviceType::GPU => "gpu",
            DeviceType::NPU => "npu",
            _ => "cpu",
        },
        vendor: hardware.vendor().unwrap_or_default().to_owned(),
    }
}

/// A [`Pool`] as ONNX Runtime wants it.
#[repr(C)]
struct Allocator {
    /// What ONNX Runtime sees; first, so that its address is this value's.
    functions: OrtAllocator,
    info: *const OrtMemoryInfo,
    pool: Mutex<Pool>,
}

// SAFETY: the functions are constant, the description is never written again and lives for ever, the pool is locked.
unsafe impl Sync for Allocator {}

impl Allocator {
    /// Puts a new pool in the place of the arenas that sessions would have of their own. It lives as long as the process.
    fn register(environment: &Environment) -> ort::Result<&'static Self> {
        let mut info: *mut OrtMemoryInfo = ptr::null_mut();
        ortsys![unsafe CreateCpuMemoryInfo(
            OrtAllocatorType::OrtDeviceAllocator, OrtMemType::OrtMemTypeDefault, &mut info
        )?];
        // SAFETY: gives a structure of plain values.
        let mut functions = unsafe { OrtAllocator::default() };
        type Alloc = unsafe extern "system" fn(*mut OrtAllocator, usize) -> *mut c_void;
        type UnwindingAlloc = unsafe extern "system-unwind" fn(*mut OrtAllocator, usize) -> *mut c_void;
        type Reserve = unsafe extern "system" fn(*const OrtAllocator, usize) -> *mut c_void;
        type UnwindingReserve = unsafe extern "system-unwind" fn(*const OrtAllocator, usize) -> *mut c_void;
        // SAFETY: the types differ in whether C++ exceptions may leave the function, which ONNX Runtime, who alone calls
        // it, expects of allocators: its own throw, too.
        let (alloc, reserve) = unsafe {
            (
                std::mem::transmute::<UnwindingAlloc, Alloc>(Self::alloc),
                std::mem::transmute::<UnwindingReserve, Reserve>(Self::reserve),
            )
        };
        functions.Alloc = Some(alloc);
        functions.Free = Some(Self::free);
        functions.Info = Some(Self::info);
        functions.Reserve = Some(reserve);
        let allocator: &'static Self = Box::leak(Box::new(Self { functions, info, pool: Mutex::default() }));
        // SAFETY: both live as long as the process; nothing writes to the allocator but through its lock.
        ortsys![unsafe RegisterAllocator(
            environment.ptr().cast_mut(), ptr::from_ref(allocator).cast_mut().cast()
        )?];
        Ok(allocator)
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Safety
    /// `this` is what [`Allocator::register`] gave ONNX Runtime.
    unsafe fn of<'a>(this: *const OrtAllocator) -> &'a Self {
        // SAFETY: the table of functions is the first field of an `Allocator` that lives as long as the process.
        unsafe { &*this.cast() }
    }

    /// Never gives null, which ONNX Runtime would take for an address: it throws, or ends the process.
    unsafe extern "system-unwind" fn alloc(this: *mut OrtAllocator, len_bytes: usize) -> *mut c_void {
        // SAFETY: ONNX Runtime passes what was registered.
        let allocator = unsafe { Self::of(this) };
        let budget_bytes = CALL.get().and_then(|call| call.budget_bytes);
        // The lock is open again before anything is thrown.
        let taken = allocator.pool().take(len_bytes, budget_bytes);
        taken.map_or_else(|refusal| refuse(refusal), |address| address as *mut c_void)
    }

    unsafe extern "system-unwind" fn reserve(this: *const OrtAllocator, len_bytes: usize) -> *mut c_void {
        // SAFETY: as above.
        unsafe { Self::alloc(this.cast_mut(), len_bytes) }
    }

    unsafe extern "system" fn free(this: *mut OrtAllocator, block: *mut c_void) {
        // SAFETY: as above.
        unsafe { Self::of(this) }.pool().give_back(block as usize);
    }

    unsafe extern "system" fn info(this: *const OrtAllocator) -> *const OrtMemoryInfo {
        // SAFETY: as above.
        unsafe { Self::of(this) }.info
    }
}

/// A call of ONNX Runtime that a thread is in.
#[derive(Clone, Copy)]
struct Call {
    /// The most that the process may have meanwhile.
    budget_bytes: Option<u64>,
    /// Memory that it was not given.
    refusal: Option<Refusal>,
}

thread_local! {
    static CALL: Cell<Option<Call>> = const { Cell::new(None) };
}

impl Call {
    /// Runs `call`, which is within `budget_bytes`; its error, if it has one, and the memory that it was not given.
    fn of<T>(
        budget_bytes: Option<u64>,
        call: impl FnOnce() -> ort::Result<T>,
    ) -> Result<T, (ort::Error, Option<Refusal>)> {
        let before = CALL.replace(Some(Self { budget_bytes, refusal: None }));
        let result = call();
        let refusal = CALL.replace(before).and_then(|call| call.refusal);
        result.map_err(|error| (error, refusal))
    }
}

/// `std::__throw_bad_alloc`, which is how ONNX Runtime's own allocators say that there is no memory.
type Throw = unsafe extern "C-unwind" fn() -> !;
type NewHandler = extern "C-unwind" fn();

static THROW: OnceLock<Throw> = OnceLock::new();

/// Finds out how to throw what ONNX Runtime catches, in the C++ library that it was linked with, and has its own
/// allocations handled as those from the pool are, where the process is to end with a message.
fn find_throw(library: &libloading::Library) {
    // SAFETY: the C++ libraries of GCC and of LLVM declare the symbol with this type.
    if let Ok(throw) = unsafe { library.get::<Throw>(b"_ZSt17__throw_bad_allocv\0") } {
        let _ = THROW.set(*throw);
    }
    if exhaustion::is_reported() {
        type SetNewHandler = unsafe extern "C" fn(NewHandler) -> Option<NewHandler>;
        // SAFETY: as above: `std::set_new_handler`.
        if let Ok(set) = unsafe { library.get::<SetNewHandler>(b"_ZSt15set_new_handlerPFvvE\0") } {
            // SAFETY: a handler may throw `std::bad_alloc` or end the process, and this one does.
            unsafe { set(on_new_failing) };
        }
    }
}

extern "C-unwind" fn on_new_failing() {
    refuse(Refusal::of_system(0))
}

/// Leaves a call of ONNX Runtime for want of memory: by an exception, where a thread of ours called it and it is caught;
/// in its own threads, where it would not be, by the end of the process.
fn refuse(refusal: Refusal) -> ! {
    if let (Some(call), Some(throw)) = (CALL.get(), THROW.get()) {
        CALL.set(Some(Call { refusal: Some(refusal), ..call }));
        // SAFETY: between here and ONNX Runtime, which catches it, are only functions that may unwind and have nothing to
        // drop.
        unsafe { throw() }
    }
    end(refusal)
}

/// The heap of a program in which [`super::exit_when_exhausted`] holds for allocations of Rust code, too.
///
/// ```
/// #[global_allocator]
/// static HEAP: calotype::engine::Heap = calotype::engine::Heap;
/// ```
pub struct Heap;

// SAFETY: every call is passed on as it came, and what is given is given back; where nothing is given and the process is to
// end, nothing is returned at all.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as above.
        given(unsafe { System.realloc(memory, layout, new_size) }, new_size)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[inline]
fn given(memory: *mut u8, wanted_bytes: usize) -> *mut u8 {
    if memory.is_null() && exhaustion::is_reported() {
        end(Refusal::of_system(wanted_bytes))
    }
    memory
}

/// Ends the process: as the program has said, else as Rust itself does where an allocation fails.
fn end(refusal: Refusal) -> ! {
    if exhaustion::report(&refusal) {
        exit_at_once(ErrorKind::Memory.exit_code())
    } else {
        std::process::abort()
    }
}

/// Has this called before the library's destructors, when the process ends in order.
pub(super) fn before_exit(call: extern "C" fn()) {
    // Windows ends all other threads first.
    #[cfg(unix)]
    // SAFETY: a function that takes and gives nothing, and lives as long as the process. What is registered later is called
    // earlier, and the library registered its destructors when it was loaded.
    unsafe {
        libc::atexit(call);
    }
    #[cfg(not(unix))]
    let _ = call;
}

/// Ends the process without running what is registered for its end: other threads may be at work, and there may be no memory.
pub(super) fn exit_at_once(code: u8) -> ! {
    #[cfg(unix)]
    // SAFETY: may be called at any time by any thread.
    unsafe {
        libc::_exit(code.into())
    }
    #[cfg(not(unix))]
    std::process::exit(code.into())
}

/// Has the C library reserve less address space, where that is limited: it would take 64 MiB for every thread.
fn spare_address_space() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if memory::mappable_bytes().is_some() {
        // SAFETY: may be called at any time by any thread.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    }
}

/// An error of ONNX Runtime; `kind` is that of those that are not about memory.
fn failed(what: &str, kind: ErrorKind, (error, refusal): (ort::Error, Option<Refusal>)) -> Error {
    let text = error.to_string();
    if refusal.is_some() || text.contains("bad_alloc") {
        tracing::debug!(text, "no memory");
        return refusal.unwrap_or_else(|| Refusal::of_system(0)).error(what);
    }
    Error::new(kind, what).source(error)
}

/// An open session; it owns the memory in which ONNX Runtime reads its weights.
pub(super) struct Session {
    // Dropped in this order: bindings are of the session, which reads the weights until it is gone.
    bindings: Vec<Binding>,
    session: ort::session::Session,
    /// The memory that outputs are in.
    outputs: &'static Allocator,
    budget_bytes: Option<u64>,
    _weights: Lent,
}

/// What the sessions of a graph have in common.
#[derive(Clone, Copy)]
pub(super) struct Opening {
    pub(super) threads: usize,
    /// Which copies of weights they may make.
    pub(super) copies: Copies,
    /// The process may never have more for want of what they open or run.
    pub(super) budget_bytes: Option<u64>,
}

impl Session {
    /// Opens a session on `model`, whose external data lies in the files of `weights`, or else in those below `folder`.
    pub(super) fn open(
        runtime: &Runtime,
        model: &[u8],
        weights: Lent,
        opening: Opening,
        providers: &[(Provider, Found)],
        loads: &Loads,
        folder: Option<&Path>,
    ) -> Result<Self, Error> {
        let Opening { threads, copies, budget_bytes } = opening;
        threads::expect(threads)?;
        let opened = Call::of(budget_bytes, || {
            let builder = options(runtime, threads, copies)?;
            let mut builder = append(runtime, builder, providers)?;
            lend_weights(&mut builder, &weights)?;
            if let Some(folder) = folder {
                let folder =
                    folder.to_str().ok_or_else(|| ort::Error::new("a folder's name is not UTF-8"))?;
                builder = builder
                    .with_config_entry("session.model_external_initializers_file_folder_path", folder)?;
            }
            // Ends with the builder.
            loads.add(builder.canceler());
            builder.commit_from_memory(model)
        });
        let session = opened.map_err(|(error, refusal)| {
            let kind = match error.code() {
                // An operator or provider that this library was built without.
                ort::ErrorCode::NotImplemented | ort::ErrorCode::ExecutionProviderFailure => {
                    ErrorKind::Runtime
                }
                _ => ErrorKind::Model,
            };
            failed("ONNX Runtime cannot open the graph", kind, (error, refusal))
        })?;
        Ok(Self {
            bindings: Vec::new(),
            session,
            outputs: runtime.allocator,
            budget_bytes,
            _weights: weights,
        })
    }

    /// What each provider runs of the graph, where the library can say.
    pub(super) fn shares(&self, runtime: &Runtime) -> Result<Option<Vec<Share>>, Error> {
        let Some(api) = runtime.assignments else { return Ok(None) };
        let failed = |error| failed("providers of the graph", ErrorKind::Runtime, (error, None));
        // SAFETY: a status that ONNX Runtime gave, and that is released by this.
        let check = |status| unsafe { ort::Error::result_from_status(status) }.map_err(failed);
        let (mut subgraphs, mut count) = (ptr::null(), 0);
        // SAFETY: writes an array of `count` addresses; what they refer to is the session's, and lives as long.
        check(unsafe { (api.of_session)(self.session.ptr(), &mut subgraphs, &mut count) })?;
        let mut shares: Vec<Share> = Vec::new();
        for index in 0..count {
            let (mut provider, mut nodes, mut node_count) = (ptr::null(), ptr::null(), 0);
            // SAFETY: the index is below `count`.
            let subgraph = unsafe { *subgraphs.add(index) };
            // SAFETY: as above; writes a string that ends in 0.
            check(unsafe { (api.provider)(subgraph, &mut provider) })?;
            // SAFETY: as above; writes an array of `node_count` addresses.
            check(unsafe { (api.nodes)(subgraph, &mut nodes, &mut node_count) })?;
            // SAFETY: the session's, which is open.
            let provider = unsafe { CStr::from_ptr(provider) }.to_string_lossy().into_owned();
            let place = shares.iter().position(|share| share.provider == provider).unwrap_or(shares.len());
            if place == shares.len() {
                shares.push(Share { provider, ..Share::default() });
            }
            let share = &mut shares[place];
            share.partitions += 1;
            share.nodes += node_count;
            for node in 0..node_count {
                let mut operator = ptr::null();
                // SAFETY: the index is below `node_count`; writes a string that ends in 0.
                check(unsafe { (api.operator)(*nodes.add(node), &mut operator) })?;
                // SAFETY: the session's, which is open.
                let operator = unsafe { CStr::from_ptr(operator) }.to_string_lossy().into_owned();
                *share.operators.entry(operator).or_default() += 1;
            }
        }
        Ok(Some(shares))
    }

    /// The element types of the outputs, as ONNX numbers them.
    pub(super) fn output_types(&self) -> impl Iterator<Item = (&str, i32)> {
        let types = self.session.outputs().iter();
        types.filter_map(|output| Some((output.name(), TypeCode::from(output.dtype().tensor_type()?) as i32)))
    }

    /// Runs the graph once; outputs stay where ONNX Runtime has put them, and may outlive the session.
    /// [`ErrorKind::Runtime`] when it fails, and when its options say that it is to end.
    pub(super) fn run<'a>(
        &mut self,
        inputs: impl Iterator<Item = (&'a str, Input<'a>)>,
        outputs: &[&str],
        options: &RunOptions,
    ) -> Result<Vec<Value>, Error> {
        let failed = |error| failed("run", ErrorKind::Runtime, error);
        let c_name = |name: &str| CString::new(name).expect("graphs' names have no zeros");
        let mut names = Vec::new();
        let mut values = Vec::new();
        for (name, input) in inputs {
            names.push(c_name(name));
            values.push(match input {
                Input::Fed(tensor) => input_value(&tensor).map_err(|error| failed((error, None)))?,
                Input::Made(value) => (&value.0).into(),
            });
        }
        let output_names: Vec<CString> = outputs.iter().map(|name| c_name(name)).collect();
        let pointers = |names: &[CString]| names.iter().map(|name| name.as_ptr()).collect::<Vec<_>>();
        let (input_names, output_names) = (pointers(&names), pointers(&output_names));
        let values_ptr: Vec<*const OrtValue> = values.iter().map(|value| value.ptr()).collect();
        let mut results: Vec<*mut OrtValue> = vec![ptr::null_mut(); outputs.len()];
        Call::of(self.budget_bytes, || {
            // SAFETY: per input and output a name that ends in 0 and a value, or room for one; all live until it returns.
            // The session is ours alone.
            let status = unsafe {
                (ort::api().Run)(
                    self.session.ptr().cast_mut(),
                    options.0.as_ptr(),
                    input_names.as_ptr(),
                    values_ptr.as_ptr(),
                    values_ptr.len(),
                    output_names.as_ptr(),
                    output_names.len(),
                    results.as_mut_ptr(),
                )
            };
            // SAFETY: the status is what ONNX Runtime gave, and is released by this.
            unsafe { ort::Error::result_from_status(status) }
        })
        .map_err(failed)?;
        let results = results.into_iter().zip(outputs);
        results.map(|(value, name)| Value::given(value, name)).collect()
    }

    /// Binds inputs for [`Session::run_bound`]; whether they are bound already. They stay bound for as long as their values
    /// live. [`ErrorKind::Runtime`] when they cannot be copied to the device.
    pub(super) fn bind<'a>(
        &mut self,
        constants: impl ExactSizeIterator<Item = (&'a str, &'a Arc<Value>)> + Clone,
    ) -> Result<bool, Error> {
        self.bindings.retain(|binding| binding.constants.iter().all(|(_, value)| value.strong_count() > 0));
        let is_bound = |binding: &Binding| {
            binding.constants.len() == constants.len()
                && binding.constants.iter().zip(constants.clone()).all(|((bound, kept), (name, value))| {
                    // The address is this value's for as long as it is referred to.
                    bound == name && kept.as_ptr() == Arc::as_ptr(value)
                })
        };
        if let Some(place) = self.bindings.iter().position(is_bound) {
            // The last is run.
            self.bindings[place..].rotate_left(1);
            return Ok(true);
        }
        let bound = Call::of(self.budget_bytes, || Binding::new(&self.session, constants));
        self.bindings.push(bound.map_err(|error| failed("inputs", ErrorKind::Runtime, error))?);
        Ok(false)
    }

    /// As [`Session::run`], with the constants that were bound last.
    pub(super) fn run_bound<'a>(
        &mut self,
        inputs: impl Iterator<Item = (&'a str, TensorRef<'a>)>,
        outputs: &[&str],
        options: &RunOptions,
    ) -> Result<Vec<Value>, Error> {
        let Some(binding) = self.bindings.last() else {
            return Err(Error::new(ErrorKind::Internal, "run: expected bound inputs, got none"));
        };
        let values = Call::of(self.budget_bytes, || {
            for (name, tensor) in inputs {
                binding.bind(name, &input_value(&tensor)?)?;
            }
            binding.run(&self.session, outputs, self.outputs.info, options)
        });
        let values = values.map_err(|error| failed("run", ErrorKind::Runtime, error))?;
        values.into_iter().zip(outputs).map(|(value, name)| Value::given(value, name)).collect()
    }
}

/// Inputs of a session that stay where they are from run to run: on its device, if it has one. It is used and dropped before
/// the session is.
struct Binding {
    io: ptr::NonNull<OrtIoBinding>,
    constants: Vec<(String, Weak<Value>)>,
}

// SAFETY: used by one thread at a time, as its session is, to whose memory alone it refers.
unsafe impl Send for Binding {}
// SAFETY: nothing can be done with a shared one: its functions are called by its session, which is borrowed mutably.
unsafe impl Sync for Binding {}

impl Binding {
    fn new<'a>(
        session: &ort::session::Session,
        constants: impl Iterator<Item = (&'a str, &'a Arc<Value>)>,
    ) -> ort::Result<Self> {
        let mut io = ptr::null_mut();
        // SAFETY: writes a pointer that is ours until it is released.
        ortsys![unsafe CreateIoBinding(session.ptr().cast_mut(), &mut io)?];
        let io = ptr::NonNull::new(io).ok_or_else(|| ort::Error::new("expected a binding, got none"))?;
        let mut binding = Self { io, constants: Vec::new() };
        for (name, value) in constants {
            binding.bind(name, &(&value.0).into())?;
            binding.constants.push((name.to_owned(), Arc::downgrade(value)));
        }
        Ok(binding)
    }

    /// Binds a value in place of the one that the input had; on a device a copy of it.
    fn bind(&self, name: &str, value: &SessionInputValue<'_>) -> ort::Result<()> {
        let name = CString::new(name).expect("graphs' names have no zeros");
        // SAFETY: a binding that is ours, a name that ends in 0, a value that lives until it returns. The binding counts its
        // own reference to the value; elements that the value borrows are read by the next run alone, before which every
        // borrowed input is bound again.
        ortsys![unsafe BindInput(self.io.as_ptr(), name.as_ptr(), value.ptr())?];
        Ok(())
    }

    /// Runs the session; gives its outputs, in the CPU's memory.
    fn run(
        &self,
        session: &ort::session::Session,
        outputs: &[&str],
        memory: *const OrtMemoryInfo,
        options: &RunOptions,
    ) -> ort::Result<Vec<*mut OrtValue>> {
        let io = self.io.as_ptr();
        // Outputs of the run before would be written again, and they belong to whoever has them.
        // SAFETY: a binding that is ours.
        ortsys![unsafe ClearBoundOutputs(io)];
        for name in outputs {
            let name = CString::new(*name).expect("graphs' names have no zeros");
            // SAFETY: as above; a name that ends in 0, and a description that lives as long as the process.
            ortsys![unsafe BindOutputToDevice(io, name.as_ptr(), memory)?];
        }
        // SAFETY: as above.
        ortsys![unsafe SynchronizeBoundInputs(io)?];
        // SAFETY: as above; the session is ours alone, the options live until it returns.
        ortsys![unsafe RunWithBinding(session.ptr().cast_mut(), options.0.as_ptr(), io)?];
        // SAFETY: as above.
        ortsys![unsafe SynchronizeBoundOutputs(io)?];
        let allocator = ort::memory::Allocator::default();
        let (mut values, mut count) = (ptr::null_mut(), 0);
        // SAFETY: writes an array of `count` values, both of which are ours; the array is of the allocator's memory.
        ortsys![unsafe GetBoundOutputValues(io, allocator.ptr().cast_mut(), &mut values, &mut count)?];
        if values.is_null() {
            return Ok(Vec::new());
        }
        // SAFETY: as many values as were written.
        let given = unsafe { std::slice::from_raw_parts(values, count) }.to_vec();
        // SAFETY: given back to the allocator that it is of, once.
        ortsys![unsafe AllocatorFree(allocator.ptr().cast_mut(), values.cast())?];
        // SAFETY: as above.
        ortsys![unsafe ClearBoundOutputs(io)];
        Ok(given)
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        // SAFETY: ours, and its session is open.
        ortsys![unsafe ReleaseIoBinding(self.io.as_ptr())];
    }
}

/// The sessions that are being opened, all of which can be cancelled at once, from any thread.
#[derive(Default)]
pub(super) struct Loads(Mutex<LoadsState>);

#[derive(Default)]
struct LoadsState {
    is_cancelled: bool,
    /// Those whose builder is gone have no effect.
    cancelers: Vec<LoadCanceler>,
}

impl Loads {
    fn add(&self, canceler: LoadCanceler) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_cancelled {
            cancel_load(&canceler);
        }
        // A pipeline opens its sessions one at a time, but its cancel may be another's, too.
        if state.cancelers.len() >= MAX_LOADS {
            state.cancelers.remove(0);
        }
        state.cancelers.push(canceler);
    }

    /// Cancels those that are being opened, and those that are begun later.
    pub(super) fn cancel(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_cancelled = true;
        state.cancelers.drain(..).for_each(|canceler| cancel_load(&canceler));
    }
}

/// How many sessions are remembered at most as being opened.
const MAX_LOADS: usize = 16;

fn cancel_load(canceler: &LoadCanceler) {
    if let Err(error) = canceler.cancel() {
        tracing::warn!(%error, "opening a session cannot be cancelled");
    }
}

/// What running calls look at. `ort` has the same, and keeps the pointer to itself.
pub(super) struct RunOptions(ptr::NonNull<OrtRunOptions>);

// SAFETY: ONNX Runtime lets any thread set the flag, also while calls run; nothing else of it is changed.
unsafe impl Send for RunOptions {}
// SAFETY: as above.
unsafe impl Sync for RunOptions {}

impl RunOptions {
    pub(super) fn new() -> Result<Self, Error> {
        let mut options = ptr::null_mut();
        // SAFETY: writes a pointer that is ours until it is released.
        let status = unsafe { (ort::api().CreateRunOptions)(&mut options) };
        // SAFETY: the status is what ONNX Runtime gave, and is released by this.
        unsafe { ort::Error::result_from_status(status) }
            .map_err(|error| failed("run options", ErrorKind::Runtime, (error, None)))?;
        let options = ptr::NonNull::new(options);
        options
            .map(Self)
            .ok_or_else(|| Error::new(ErrorKind::Internal, "run options: expected some, got none"))
    }

    /// Ends the calls that run with these options.
    pub(super) fn terminate(&self) {
        // SAFETY: the options live as long as this does; the status is released by what it becomes.
        let set =
            unsafe { ort::Error::result_from_status((ort::api().RunOptionsSetTerminate)(self.0.as_ptr())) };
        if let Err(error) = set {
            tracing::warn!(%error, "calls cannot be cancelled");
        }
    }
}

impl Drop for RunOptions {
    fn drop(&mut self) {
        // SAFETY: ours, and used by no call: each borrows them.
        unsafe { (ort::api().ReleaseRunOptions)(self.0.as_ptr()) };
    }
}

/// What an input is fed.
#[derive(Clone, Copy)]
pub(super) enum Input<'a> {
    Fed(TensorRef<'a>),
    Made(&'a Value),
}

/// A tensor that a graph has given, in ONNX Runtime's memory, or that keeps the elements that it was made of.
pub(super) struct Value(DynValue);

impl Value {
    /// One of these elements; they fill the shape.
    pub(super) fn of(shape: Vec<usize>, elements: Elements) -> Result<Self, Error> {
        fn owned<T: PrimitiveTensorElementType + Clone + Debug + 'static>(
            shape: Vec<usize>,
            data: Vec<T>,
        ) -> ort::Result<DynValue> {
            Ok(ort::value::Tensor::from_array((shape, data))?.into_dyn())
        }
        let made = match elements {
            Elements::F32(data) => owned(shape, data),
            Elements::F16(data) => owned(shape, data),
            Elements::F64(data) => owned(shape, data),
            Elements::I64(data) => owned(shape, data),
            Elements::I32(data) => owned(shape, data),
            Elements::Bool(data) => owned(shape, data),
        };
        made.map(Self).map_err(|error| failed("value", ErrorKind::Runtime, (error, None)))
    }

    /// What a run has given for the output of this name.
    fn given(value: *mut OrtValue, name: &str) -> Result<Self, Error> {
        let value = ptr::NonNull::new(value).ok_or_else(|| {
            Error::new(ErrorKind::Internal, format!("output {name}: the run did not return it"))
        })?;
        let allocator = ort::memory::Allocator::default();
        // SAFETY: a value that is ours from now on. Its memory is of the pool, which outlives every session: what another
        // provider computed is copied to the CPU's memory, too. The allocator that is named here only stands in for a
        // session's, and frees nothing of it.
        Ok(Self(unsafe { DynValue::from_ptr(value, Some(&allocator)) }))
    }

    /// Its elements as 32-bit floats.
    pub(super) fn copy_to(&self, out: &mut [f32]) -> Result<(), String> {
        copy_out(&self.0, out)
    }

    /// A copy of it.
    pub(super) fn output(&self) -> Result<Output, String> {
        let shape = self.0.dtype().tensor_shape();
        let shape: Vec<usize> =
            shape.map(|shape| shape.iter().map(|&size| size as usize).collect()).unwrap_or_default();
        let mut data = vec![0.0; shape.iter().product()];
        copy_out(&self.0, &mut data)?;
        Ok(Output { shape, data })
    }
}

/// Gives the system back what the C library keeps of memory that was freed: tens of MiB after a session was open.
pub(super) fn trim_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: may be called at any time by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// How sessions are opened: fast kernels, weights repacked for them.
fn options(runtime: &Runtime, threads: usize, copies: Copies) -> ort::Result<SessionBuilder> {
    let builder = SessionBuilder::new(&runtime.environment)?
        // `ort` asks for the most efficient device, and anything that was plugged in could be that.
        .with_auto_device(AutoDevicePolicy::PreferCPU)?
        .with_intra_threads(threads)?
        // Threads that wait in a loop are no faster, and take a third more processor time.
        .with_intra_op_spinning(false)?
        // Read the weights where they lie, instead of copying the files' contents first.
        .with_config_entry("session.use_external_initializer_file_buffers_directly", "1")?
        // Computes in the pool, which takes memory and gives it back block by block; patterns would ask for all at once,
        // and DirectML cannot work with them.
        .with_env_allocators()?
        .with_memory_pattern(false)?;
    if copies == Copies::All {
        return Ok(builder.with_optimization_level(GraphOptimizationLevel::All)?);
    }
    if copies == Copies::OfProvider {
        // Constants that are folded are copies of weights, in memory.
        return Ok(builder.with_optimization_level(GraphOptimizationLevel::Disable)?);
    }
    // The last level copies weights into layouts of its own.
    Ok(builder
        .with_optimization_level(GraphOptimizationLevel::Level2)?
        .with_prepacking(copies == Copies::Repacked)?
        .with_config_entry("optimization.constant_folding_max_output_size_in_bytes", "65536")?)
}

/// The option by which one of a plugin's devices is chosen, by its place in their list; ours, not the plugin's.
const DEVICE: &str = "device";

/// Gives a session-to-be its providers, in order; the CPU, always the last, runs nothing unless it is among them or
/// there are none.
fn append(
    runtime: &Runtime,
    mut builder: SessionBuilder,
    providers: &[(Provider, Found)],
) -> ort::Result<SessionBuilder> {
    /// Providers whose options are kept in a structure of their own.
    macro_rules! append_by_struct {
        ($builder:ident, $keys:ident, $values:ident, $create:ident, $update:ident, $release:ident, $append:ident) => {{
            let mut options = ptr::null_mut();
            // SAFETY: writes the address of a structure that is ours until it is released below.
            ortsys![unsafe $create(&mut options)?];
            // SAFETY: two arrays of `$keys.len()` strings that end in 0, and a structure of this provider's.
            let updated = ortsys![
                @ort: unsafe $update(options, $keys.as_ptr(), $values.as_ptr(), $keys.len()) as Result
            ];
            let appended = updated.and_then(|()| {
                // SAFETY: session options that are ours, and a structure that is copied.
                ortsys![@ort: unsafe $append($builder.ptr_mut(), options) as Result]
            });
            // SAFETY: released once, on all ways.
            ortsys![unsafe $release(options)];
            appended?;
        }};
    }
    for (provider, found) in providers {
        let options = provider.options.iter().filter(|(key, _)| found.devices.is_empty() || key != DEVICE);
        if !found.devices.is_empty() {
            let which = provider.option(DEVICE).map_or(Ok(0), str::parse::<usize>);
            let count = found.devices.len();
            let Some(&chosen) = which.ok().and_then(|index| found.devices.get(index)) else {
                return Err(ort::Error::new(format!("{DEVICE}: expected a number below {count}")));
            };
            let options: Vec<(String, String)> =
                options.map(|(key, value)| (format!("{}.{key}", found.canonical), value.clone())).collect();
            let device =
                runtime.environment.devices().filter(|device| device.ptr() as usize == chosen).take(1);
            builder = builder.with_devices(device, Some(&options))?;
            continue;
        }
        let strings = |text: &str| CString::new(text).map_err(|_| ort::Error::new("an option has a NUL"));
        let options = options
            .map(|(key, value)| Ok((strings(key)?, strings(value)?)))
            .collect::<ort::Result<Vec<(CString, CString)>>>()?;
        let keys: Vec<*const c_char> = options.iter().map(|(key, _)| key.as_ptr()).collect();
        let values: Vec<*const c_char> = options.iter().map(|(_, value)| value.as_ptr()).collect();
        match provider.kind {
            // Every session has it.
            ProviderKind::Cpu => {}
            ProviderKind::Cuda => append_by_struct!(
                builder,
                keys,
                values,
                CreateCUDAProviderOptions,
                UpdateCUDAProviderOptions,
                ReleaseCUDAProviderOptions,
                SessionOptionsAppendExecutionProvider_CUDA_V2
            ),
            ProviderKind::TensorRt => append_by_struct!(
                builder,
                keys,
                values,
                CreateTensorRTProviderOptions,
                UpdateTensorRTProviderOptions,
                ReleaseTensorRTProviderOptions,
                SessionOptionsAppendExecutionProvider_TensorRT_V2
            ),
            _ => {
                let name = strings(&found.canonical)?;
                // SAFETY: session options that are ours, a string and two arrays of `keys.len()` strings that end in 0,
                // all of which are copied.
                ortsys![unsafe SessionOptionsAppendExecutionProvider(
                    builder.ptr_mut(), name.as_ptr(), keys.as_ptr(), values.as_ptr(), keys.len()
                )?];
            }
        }
    }
    if providers.iter().any(|(provider, _)| !provider.is_cpu()) {
        builder = builder.with_config_entry("session.record_ep_graph_assignment_info", "1")?;
    }
    if !providers.is_empty() && !providers.iter().any(|(provider, _)| provider.is_cpu()) {
        builder = builder.with_config_entry("session.disable_cpu_ep_fallback", "1")?;
    }
    Ok(builder)
}

/// Tells the session-to-be where in memory the files lie that the model's external data names.
fn lend_weights(builder: &mut SessionBuilder, weights: &Lent) -> ort::Result<()> {
    let mut names: Vec<Vec<os_char>> = Vec::new();
    let mut addresses: Vec<*mut c_char> = Vec::new();
    let mut lens_bytes: Vec<usize> = Vec::new();
    for (name, address, len_bytes) in weights.files() {
        // The names are ASCII; `os_char` is a wide character on Windows.
        names.push(name.bytes().chain([0]).map(|byte| byte as os_char).collect());
        addresses.push(address.cast_mut().cast());
        lens_bytes.push(len_bytes);
    }
    if names.is_empty() {
        return Ok(());
    }
    let names: Vec<*const os_char> = names.iter().map(|name| name.as_ptr()).collect();
    // SAFETY: three arrays of `names.len()` elements; each name ends in 0, each address has as many bytes as its length
    // says. ONNX Runtime copies the arrays, and reads (never writes) the bytes for as long as the session lives, which
    // is as long as `Session` keeps `weights`.
    ortsys![unsafe AddExternalInitializersFromMemory(
        builder.ptr_mut(), names.as_ptr(), addresses.as_ptr(), lens_bytes.as_ptr(), names.len()
    )?];
    Ok(())
}

/// A value that borrows the tensor's data.
fn input_value<'a>(tensor: &TensorRef<'a>) -> ort::Result<SessionInputValue<'a>> {
    fn view<'a, T: PrimitiveTensorElementType + Clone + Debug + 'static>(
        shape: &[usize],
        data: &'a [T],
    ) -> ort::Result<SessionInputValue<'a>> {
        Ok(ort::value::TensorRef::from_array_view((shape.to_vec(), data))?.into())
    }
    match tensor.data {
        Data::F32(data) => view(tensor.shape, data),
        Data::F16(data) => view(tensor.shape, data),
        Data::F64(data) => view(tensor.shape, data),
        Data::I64(data) => view(tensor.shape, data),
        Data::I32(data) => view(tensor.shape, data),
        Data::Bool(data) => view(tensor.shape, data),
    }
}

fn copy_out(value: &DynValue, out: &mut [f32]) -> Result<(), String> {
    let (Some(dtype), Some(shape)) = (value.dtype().tensor_type(), value.dtype().tensor_shape()) else {
        return Err("expected a tensor, got another type".into());
    };
    if shape.num_elements() != out.len() {
        return Err(format!("expected {} numbers, got shape {shape}", out.len()));
    }
    if out.is_empty() {
        return Ok(()); // An empty tensor may have no address.
    }
    match dtype {
        TensorElementType::Float32 => {
            out.copy_from_slice(value.try_extract_tensor::<f32>().map_err(|error| error.to_string())?.1);
        }
        TensorElementType::Float16 => {
            let (_, numbers) = value.try_extract_tensor::<half::f16>().map_err(|error| error.to_string())?;
            out.iter_mut().zip(numbers).for_each(|(out, number)| *out = number.to_f32());
        }
        other => return Err(format!("expected f32 or f16, got {other}")),
    }
    Ok(())
}

fn is_supported(version: &str) -> bool {
    minor(version).is_some_and(|minor| minor >= LOWEST_MINOR)
}

/// The minor version of version 1.
fn minor(version: &str) -> Option<u32> {
    version.strip_prefix("1.")?.split('.').next()?.parse().ok()
}

/// The text of an error whose reason is in its source.
fn cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// Passes ONNX Runtime's messages on.
fn log(level: LogLevel, category: &str, _id: &str, location: &str, message: &str) {
    match level {
        LogLevel::Verbose => tracing::trace!(category, location, "{message}"),
        LogLevel::Info => tracing::debug!(category, location, "{message}"),
        LogLevel::Warning => tracing::warn!(category, location, "{message}"),
        LogLevel::Error | LogLevel::Fatal => tracing::error!(category, location, "{message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_below_the_api_are_too_old() {
        assert!(is_supported("1.23.0"));
        assert!(is_supported("1.31.1"));
        assert!(!is_supported("1.22.1"));
        assert!(!is_supported("1.3.0"));
        assert!(!is_supported("2.30.0"));
        assert!(!is_supported(""));
    }
}
