//! Finds the ONNX Runtime library and loads it, once in a process. The only place that reads the environment for it.
//! It knows nothing of sessions.

use std::env;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::Device;
use super::provider::{Provider, ProviderKind};
use super::sys::{self, Runtime};
use crate::{Error, ErrorKind, memory};

/// The ONNX Runtime library that this process uses.
pub struct Library {
    path: PathBuf,
    runtime: Runtime,
}

static LOADED: Mutex<Option<&'static Library>> = Mutex::new(None);

impl Library {
    /// Loads the library that `explicit` names, else that `ORT_DYLIB_PATH` names, else the first that can be loaded of:
    /// beside the executable, fetched by the build, the system's.
    ///
    /// A process has one library: once one is loaded, it is what further calls give.
    ///
    /// ONNX Runtime 1.31 and later notes every start in a database in the user's home, unless `ORT_DISABLE_TELEMETRY` is in
    /// the environment: a program that does not want that sets it before, or calls
    /// [`disable_telemetry`](super::disable_telemetry) first.
    ///
    /// # Errors
    /// [`ErrorKind::Runtime`] when no candidate can be loaded, naming each with the reason; when `explicit` names
    /// another library than the loaded one.
    pub fn load(explicit: Option<&Path>) -> Result<&'static Self, Error> {
        Self::load_or(explicit, None)
    }

    /// The same; `installed` is one that other packages brought, and comes before those that nobody named.
    ///
    /// # Errors
    /// As [`Library::load`].
    pub(crate) fn load_or(explicit: Option<&Path>, installed: Option<&Path>) -> Result<&'static Self, Error> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(library) = *loaded {
            return match explicit {
                Some(path) if absolute(path) != library.path => Err(Error::new(
                    ErrorKind::Runtime,
                    format!(
                        "ONNX Runtime: expected {}, got {} already loaded",
                        path.display(),
                        library.path.display()
                    ),
                )
                .in_file(path)),
                _ => Ok(library),
            };
        }
        check_stack()?;
        let candidates = candidates(explicit, installed);
        // Of several the error is about none in particular.
        let only = (candidates.len() == 1).then(|| candidates[0].path.clone());
        let (mut refusals, mut lacks_room) = (Vec::new(), None);
        for Candidate { place, path } in candidates {
            let load = || Runtime::load(&path).map_err(|reason| (ErrorKind::Runtime, reason));
            match check(&path).and_then(|()| load()) {
                Ok(runtime) => return Ok(loaded.insert(Box::leak(Box::new(Self { path, runtime })))),
                Err((kind, reason)) => {
                    tracing::debug!(place, path = %path.display(), reason, "not the ONNX Runtime library");
                    if kind == ErrorKind::Memory {
                        lacks_room.get_or_insert_with(|| reason.clone());
                    }
                    refusals.push(format!("{place} ({}): {reason}", path.display()));
                }
            }
        }
        if let Some(reason) = lacks_room {
            return Err(Error::new(ErrorKind::Memory, reason));
        }
        let error = Error::new(
            ErrorKind::Runtime,
            format!("no ONNX Runtime library could be loaded: {}", refusals.join("; ")),
        )
        .help(format!(
            "name a library of version 1.{} or newer with {{ort}} or ORT_DYLIB_PATH, put one beside the \
                 executable, or build without CALOTYPE_ORT=system",
            sys::LOWEST_MINOR
        ));
        Err(match only {
            Some(path) => error.in_file(path),
            None => error,
        })
    }

    /// Whether one is loaded.
    pub fn is_loaded() -> bool {
        Self::loaded().is_some()
    }

    /// The one that is loaded, if one is.
    pub(super) fn loaded() -> Option<&'static Self> {
        *LOADED.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it was found; a plain name when the system found it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version, as it says itself: `1.31.1`.
    pub fn version(&self) -> &str {
        self.runtime.version()
    }

    /// The names of the execution providers that it was built with, best first: `CPUExecutionProvider`.
    ///
    /// # Errors
    /// [`ErrorKind::Runtime`] when the library cannot say.
    pub fn providers(&self) -> Result<Vec<String>, Error> {
        self.runtime.providers()
    }

    /// The devices of the providers that name theirs: the CPU, and those of the plugins that were found so far.
    pub fn devices(&self) -> Vec<Device> {
        self.runtime.devices()
    }

    /// Those of the known providers that it has, the CPU's left out, with their default options.
    pub fn accelerators(&self) -> Vec<Provider> {
        let known = ProviderKind::built_in().map(|(kind, _)| Provider { kind, options: Vec::new() });
        known.filter(|provider| !provider.is_cpu() && self.find(provider).is_ok()).collect()
    }

    /// The name in ONNX Runtime of a provider that this library has; the file of a plugin is loaded to see.
    ///
    /// # Errors
    /// [`ErrorKind::Runtime`] when it lacks it, or the plugin offers no device on this machine.
    pub fn find(&self, provider: &Provider) -> Result<String, Error> {
        self.runtime.find(provider).map(|found| found.canonical).map_err(|reason| missing(provider, reason))
    }

    pub(super) fn runtime(&self) -> &Runtime {
        &self.runtime
    }
}

/// The CPU's name, or on a board that has none, the board's; Linux only.
pub fn cpu_model() -> Option<String> {
    let table = fs::read_to_string("/proc/cpuinfo").ok()?;
    let name = table.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    match name {
        Some((_, name)) => Some(name.trim().to_owned()),
        None => {
            let board = fs::read_to_string("/proc/device-tree/model").ok()?;
            Some(board.trim_end_matches('\0').trim().to_owned())
        }
    }
}

/// The vector instructions of this CPU by which ONNX Runtime and noise choose how they compute: how fast, and how sums are rounded.
pub fn cpu_features() -> Vec<&'static str> {
    macro_rules! detected {
        ($is:ident: $($name:tt)*) => { [$(($name, std::arch::$is!($name))),*] };
    }
    #[cfg(target_arch = "x86_64")]
    let all = detected!(is_x86_feature_detected: "avx2" "fma" "f16c" "avx512f" "avx512vnni" "avx512bf16");
    #[cfg(target_arch = "aarch64")]
    let all = detected!(is_aarch64_feature_detected: "neon" "fp16" "dotprod" "i8mm" "bf16" "sve");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let all: [(&str, bool); 0] = [];
    all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}

/// The CPU's architecture, and its [features](cpu_features).
pub(crate) fn cpu_kind() -> String {
    [&[std::env::consts::ARCH], &cpu_features()[..]].concat().join(" ")
}

/// The error for a provider that is not there, with the way to it.
pub(super) fn missing(provider: &Provider, reason: String) -> Error {
    let kind = &provider.kind;
    let error = Error::new(ErrorKind::Runtime, format!("provider {kind}")).source(reason);
    match kind.about() {
        Some(about) => {
            error.help(format!("get a library that has it ({}), and name it with {{ort}}", about.source))
        }
        None => error,
    }
}

struct Candidate {
    /// How messages call it.
    place: &'static str,
    path: PathBuf,
}

fn candidates(explicit: Option<&Path>, installed: Option<&Path>) -> Vec<Candidate> {
    if let Some(path) = explicit {
        return vec![Candidate { place: "the one named", path: absolute(path) }];
    }
    if let Some(path) = env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()) {
        return vec![Candidate { place: "ORT_DYLIB_PATH", path: absolute(Path::new(&path)) }];
    }
    let name = format!("{}onnxruntime{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
    let mut found = Vec::new();
    if let Some(path) = installed {
        found.push(Candidate { place: "the installed package's", path: absolute(path) });
    }
    if let Some(folder) = env::current_exe().ok().as_deref().and_then(Path::parent) {
        found.push(Candidate { place: "beside the executable", path: folder.join(&name) });
    }
    if let Some(path) = option_env!("CALOTYPE_ORT_SHIPPED") {
        found.push(Candidate { place: "fetched by the build", path: path.into() });
    }
    found.push(Candidate { place: "the system's", path: name.into() });
    found
}

/// So that the dynamic linker does not take `libx.so` in the working folder for the name of a system library.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Refuses stacks that ONNX Runtime's threads, which have the size that the shell's limit says, would overflow: the process would end
/// with SIGSEGV.
fn check_stack() -> Result<(), Error> {
    const LEAST_BYTES: usize = 128 << 10;
    let stack_bytes = memory::stack_bytes();
    if stack_bytes < LEAST_BYTES {
        let [least, got] = [LEAST_BYTES, stack_bytes].map(|bytes| bytes >> 10);
        let problem = format!("stack: expected a limit of at least {least} KiB (ulimit -s), got {got} KiB");
        return Err(Error::new(ErrorKind::Memory, problem));
    }
    Ok(())
}

/// What the library's constructors may allocate while it is loaded: where they cannot, the process ends with SIGABRT.
const CONSTRUCTORS_BYTES: u64 = 16 << 20;

/// Refuses what the dynamic linker would answer in a misleading way, or by crashing. Plain names are left to it.
fn check(path: &Path) -> Result<(), (ErrorKind, String)> {
    if path.is_relative() {
        return Ok(());
    }
    let mut len_bytes = 0;
    let problem = File::open(path).and_then(|file| {
        len_bytes = file.metadata()?.len();
        elf_problem(file, len_bytes)
    });
    let wanted_bytes = len_bytes + CONSTRUCTORS_BYTES;
    match problem {
        Ok(None) if memory::mappable_bytes().is_some_and(|left_bytes| left_bytes < wanted_bytes) => {
            let problem = format!(
                "memory: expected {} MiB of address space, got what this process's limits (ulimit -v, ulimit -d) leave",
                wanted_bytes >> 20
            );
            Err((ErrorKind::Memory, problem))
        }
        Ok(None) => Ok(()),
        Ok(Some(problem)) => Err((ErrorKind::Runtime, problem.into())),
        Err(error) => Err((ErrorKind::Runtime, error.to_string())),
    }
}

/// What is wrong with a 64-bit little-endian ELF file; nothing, if it is another kind of file.
///
/// Of a library for another processor the dynamic linker says that it does not exist. One that ends before its segments
/// do it would map nevertheless, and the process would die of SIGBUS when it touches what is not there. Constructors of
/// ONNX Runtime's own plug-ins for providers call what only ONNX Runtime has, and end the process where it is not loaded.
fn elf_problem(mut file: impl Read + Seek, len_bytes: u64) -> io::Result<Option<&'static str>> {
    const FILE_HEADER_BYTES: usize = 64;
    const SEGMENT_HEADER_BYTES: u64 = 56;
    const CUT_SHORT: Option<&str> = Some("the file is truncated");

    let mut header = Vec::new();
    file.by_ref().take(FILE_HEADER_BYTES as u64).read_to_end(&mut header)?;
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return Ok(None);
    }
    if header.len() < FILE_HEADER_BYTES {
        return Ok(CUT_SHORT);
    }
    let machine = number(&header[18..20]);
    if matches!((machine, env::consts::ARCH), (62, "aarch64") | (183, "x86_64")) {
        return Ok(Some("the library is for another CPU architecture"));
    }
    let (table_offset, segment_count) = (number(&header[32..40]), number(&header[56..58]));
    let table_len = segment_count * SEGMENT_HEADER_BYTES;
    let table = read_at(&mut file, table_offset, table_len)?;
    let ends_after_file = |segment: &[u8]| {
        let (offset, len) = (number(&segment[8..16]), number(&segment[32..40]));
        offset.saturating_add(len) > len_bytes
    };
    let is_cut = (table.len() as u64) < table_len
        || table.chunks_exact(SEGMENT_HEADER_BYTES as usize).any(ends_after_file);
    if is_cut {
        return Ok(CUT_SHORT);
    }
    let exports = exports(&mut file, &header, ENTRY_POINT)?;
    Ok((exports == Some(false)).then_some("not an ONNX Runtime library: it has no OrtGetApiBase"))
}

/// The function that every ONNX Runtime library has.
const ENTRY_POINT: &[u8] = b"OrtGetApiBase";

/// Whether a 64-bit little-endian ELF file with this header defines a symbol for others; nothing where its sections do not tell
/// (ELF-64 object file format 1.5, sections "Sections" and "Symbol table").
fn exports(file: &mut (impl Read + Seek), header: &[u8], name: &[u8]) -> io::Result<Option<bool>> {
    const SECTION_HEADER_BYTES: u64 = 64;
    const SYMBOL_BYTES: usize = 24;
    const DYNAMIC_SYMBOLS: u64 = 11;
    /// Larger tables than any that is known: the largest of ONNX Runtime's have some thousand symbols.
    const MAX_TABLE_BYTES: u64 = 64 << 20;
    let (offset, size, count) = (number(&header[40..48]), number(&header[58..60]), number(&header[60..62]));
    if size != SECTION_HEADER_BYTES {
        return Ok(None);
    }
    let sections = read_at(file, offset, count * size)?;
    let sections: Vec<&[u8]> = sections.chunks_exact(SECTION_HEADER_BYTES as usize).collect();
    let Some(symbols) = sections.iter().find(|section| number(&section[4..8]) == DYNAMIC_SYMBOLS) else {
        return Ok(None);
    };
    let Some(names) = sections.get(number(&symbols[40..44]) as usize) else { return Ok(None) };
    let mut table = |section: &[u8]| {
        let len_bytes = number(&section[32..40]);
        read_at(file, number(&section[24..32]), len_bytes.min(MAX_TABLE_BYTES))
    };
    let (symbols, names) = (table(symbols)?, table(names)?);
    let is_wanted = |symbol: &[u8]| {
        let text = names.get(number(&symbol[..4]) as usize..).unwrap_or_default();
        let is_defined = number(&symbol[6..8]) != 0;
        is_defined && text.starts_with(name) && text.get(name.len()) == Some(&0)
    };
    Ok(Some(symbols.chunks_exact(SYMBOL_BYTES).any(is_wanted)))
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// What a file has from `offset` on, and not more than `len_bytes` of it.
fn read_at(file: &mut (impl Read + Seek), offset: u64, len_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(offset))?;
    file.take(len_bytes).read_to_end(&mut bytes)?;
    Ok(bytes)
}
