//! Execution providers: their names, the choice of them per component as people type it, and what each needs.
//! It knows nothing of sessions, and asks no library what it has.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::graph::Dialect;
use crate::name::{bare, unknown};
use crate::{Error, ErrorKind};

/// What runs a graph: the CPU itself, or a way to a device.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // Each is what its name says.
pub enum ProviderKind {
    Cpu,
    Cuda,
    TensorRt,
    CoreMl,
    OpenVino,
    DirectMl,
    Qnn,
    Xnnpack,
    WebGpu,
    /// A library of its own, that ONNX Runtime loads; and the provider in it, where it has several.
    Plugin {
        file: PathBuf,
        name: Option<String>,
    },
}

/// How exactly providers are to compute, where they leave the choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// In 32-bit floats.
    Exact,
    /// With 11 binary digits at least: TF32, 16-bit floats.
    Balanced,
    /// With 8 binary digits at least: bfloat16, too.
    Fast,
}

impl Intent {
    /// All, in the order of the help.
    pub const ALL: [(Self, &str); 3] =
        [(Self::Exact, "exact"), (Self::Balanced, "balanced"), (Self::Fast, "fast")];

    /// The options that mean it to a provider; none where it has no such choice.
    fn options(self, provider: &Provider) -> Vec<(&'static str, String)> {
        match &provider.kind {
            ProviderKind::OpenVino => {
                let device = provider.option("device_type").unwrap_or("CPU").to_ascii_uppercase();
                // Of the 16-bit floats CPUs have bfloat16 alone, which OpenVINO leaves out where they have none.
                let hint = match (self, device.starts_with("CPU")) {
                    (Self::Exact, _) | (Self::Balanced, true) => "f32",
                    (Self::Fast, true) => "bf16",
                    (_, false) => "f16",
                };
                // Other keys than the names of single devices are ignored.
                let device = device.split(['.', ':']).next().unwrap_or_default();
                let config = format!(r#"{{"{device}":{{"INFERENCE_PRECISION_HINT":"{hint}"}}}}"#);
                vec![("load_config", config)]
            }
            ProviderKind::Cuda => {
                vec![("use_tf32", if self == Self::Exact { "0" } else { "1" }.into())]
            }
            ProviderKind::TensorRt if self != Self::Exact => vec![("trt_fp16_enable", "1".into())],
            ProviderKind::CoreMl if self != Self::Exact => {
                vec![("AllowLowPrecisionAccumulationOnGPU", "1".into())]
            }
            _ => Vec::new(),
        }
    }
}

impl fmt::Display for Intent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(intent, _)| intent == self).map(|(_, name)| *name);
        f.write_str(name.expect("all are listed"))
    }
}

impl FromStr for Intent {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let found = Self::ALL.iter().find(|(_, name)| *name == bare(text)).map(|(intent, _)| *intent);
        found.ok_or_else(|| unknown("precision", Self::ALL.iter().map(|(_, name)| *name), text))
    }
}

/// What is known of a provider that a library can be built with.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// Its name here.
    pub name: &'static str,
    /// Its name in ONNX Runtime.
    pub canonical: &'static str,
    /// Where a library that has it comes from.
    pub source: &'static str,
    /// The packages of PyPI with such a library for this kind of machine; nothing where there are none.
    pub packages: Option<&'static str>,
}

/// Whether this is a machine for which PyPI has libraries with CUDA, TensorRT and OpenVINO.
const IS_PC: bool = cfg!(all(target_arch = "x86_64", any(target_os = "linux", windows)));

/// All but plugins, in the order of the help.
const BUILT_IN: [(ProviderKind, About); 9] = [
    (ProviderKind::Cpu, about("cpu", "CPUExecutionProvider", "in every library")),
    (
        ProviderKind::Cuda,
        about(
            "cuda",
            "CUDAExecutionProvider",
            "pip install onnxruntime-gpu, which needs CUDA and cuDNN; on a Jetson, NVIDIA's build",
        )
        .with("onnxruntime-gpu", IS_PC),
    ),
    (
        ProviderKind::TensorRt,
        about(
            "tensorrt",
            "TensorrtExecutionProvider",
            "pip install onnxruntime-gpu tensorrt; on a Jetson, NVIDIA's build",
        )
        .with("onnxruntime-gpu tensorrt", IS_PC),
    ),
    (
        ProviderKind::CoreMl,
        about("coreml", "CoreMLExecutionProvider", "pip install onnxruntime, on a Mac")
            .with("onnxruntime", cfg!(target_os = "macos")),
    ),
    (
        ProviderKind::OpenVino,
        about(
            "openvino",
            "OpenVINOExecutionProvider",
            "pip install onnxruntime-openvino; or onnxruntime-ep-openvino, a plugin",
        )
        .with("onnxruntime-openvino", IS_PC),
    ),
    (
        ProviderKind::DirectMl,
        about("directml", "DmlExecutionProvider", "pip install onnxruntime-directml, on Windows")
            .with("onnxruntime-directml", cfg!(windows)),
    ),
    (
        ProviderKind::Qnn,
        about("qnn", "QNNExecutionProvider", "pip install onnxruntime-qnn, on a Snapdragon")
            .with("onnxruntime-qnn", cfg!(all(windows, target_arch = "aarch64"))),
    ),
    (
        ProviderKind::Xnnpack,
        about("xnnpack", "XnnpackExecutionProvider", "build ONNX Runtime with its option use_xnnpack"),
    ),
    (
        ProviderKind::WebGpu,
        about("webgpu", "WebGpuExecutionProvider", "pip install onnxruntime-ep-webgpu, a plugin"),
    ),
];

/// What stands for those that are yet to be chosen.
const AUTOMATIC: &str = "auto";
/// What a provider is called that is a library of its own.
const PLUGIN: &str = "plugin";

const fn about(name: &'static str, canonical: &'static str, source: &'static str) -> About {
    About { name, canonical, source, packages: None }
}

impl About {
    /// The same, with packages where this is a machine for them.
    const fn with(self, packages: &'static str, is_here: bool) -> Self {
        Self { packages: if is_here { Some(packages) } else { None }, ..self }
    }
}

impl ProviderKind {
    /// All but plugins.
    pub fn built_in() -> impl Iterator<Item = (Self, About)> {
        BUILT_IN.into_iter()
    }

    /// The operators that graphs have which it is the first to run.
    pub fn dialect(&self) -> Dialect {
        match self {
            // Of a graph XNNPACK takes convolutions and products; the rest is the CPU's, which is faster in its own dialect.
            Self::Cpu | Self::Xnnpack => Dialect::Cpu,
            Self::Cuda | Self::DirectMl => Dialect::Contrib,
            Self::TensorRt
            | Self::CoreMl
            | Self::OpenVino
            | Self::Qnn
            | Self::WebGpu
            | Self::Plugin { .. } => Dialect::Standard,
        }
    }

    /// What is known of it; nothing of a plugin.
    pub fn about(&self) -> Option<About> {
        BUILT_IN.iter().find(|(kind, _)| kind == self).map(|(_, about)| *about)
    }
}

impl fmt::Display for ProviderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plugin { file, name: None } => write!(f, "{PLUGIN}:{}", file.display()),
            Self::Plugin { file, name: Some(name) } => write!(f, "{PLUGIN}:{}:{name}", file.display()),
            kind => f.write_str(kind.about().expect("all but plugins are listed").name),
        }
    }
}

/// A provider and its options.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Provider {
    /// Which it is.
    pub kind: ProviderKind,
    /// What it is told, in its own words.
    pub options: Vec<(String, String)>,
}

impl Provider {
    /// The CPU.
    pub const CPU: Self = Self { kind: ProviderKind::Cpu, options: Vec::new() };

    /// Whether it is the CPU.
    pub fn is_cpu(&self) -> bool {
        self.kind == ProviderKind::Cpu
    }

    /// Some of one session, as they are typed: `cuda,cpu`.
    pub fn join(providers: &[Self]) -> String {
        providers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    /// The value of an option.
    pub(crate) fn option(&self, key: &str) -> Option<&str> {
        self.options.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }
}

impl FromStr for Provider {
    type Err = Error;

    /// `cuda`, `cuda:device_id=1`, `plugin:FILE:NAME:key=value`: options begin where a colon is followed by a word and
    /// `=`; other colons are part of what is before them.
    fn from_str(text: &str) -> Result<Self, Error> {
        let starts: Vec<usize> = text
            .match_indices(':')
            .map(|(at, _)| at)
            .filter(|at| text[at + 1..].split_once('=').is_some_and(|(key, _)| is_word(key)))
            .collect();
        let named = &text[..starts.first().copied().unwrap_or(text.len())];
        let kind = kind(named)?;
        let mut options: Vec<(String, String)> = Vec::new();
        let ends = starts.iter().skip(1).copied().chain([text.len()]);
        for (start, end) in starts.iter().zip(ends) {
            let (key, value) = text[start + 1..end].split_once('=').expect("options were found by it");
            if value.is_empty() {
                return Err(refused(format!("{named}: {key}: expected a value, got none")));
            }
            if options.iter().any(|(known, _)| known == key) {
                return Err(refused(format!("{named}: {key}: expected once, got twice")));
            }
            options.push((key.to_owned(), value.to_owned()));
        }
        if kind == ProviderKind::Cpu && !options.is_empty() {
            return Err(refused(format!("cpu: expected no options, got {}", options[0].0)));
        }
        Ok(Self { kind, options })
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)?;
        self.options.iter().try_for_each(|(key, value)| write!(f, ":{key}={value}"))
    }
}

fn kind(named: &str) -> Result<ProviderKind, Error> {
    if let Some(("plugin", rest)) = named.split_once(':') {
        let (file, name) = match rest.rsplit_once(':') {
            Some((file, name)) if is_word(name) => (file, Some(name.to_owned())),
            _ => (rest, None),
        };
        if file.is_empty() {
            return Err(refused("plugin: expected a library's file, got none".into()));
        }
        return Ok(ProviderKind::Plugin { file: file.into(), name });
    }
    let asked = bare(named);
    let found =
        BUILT_IN.iter().find(|(_, about)| asked == bare(about.name) || asked == bare(about.canonical));
    let names = BUILT_IN.iter().map(|(_, about)| about.name).chain(["plugin:FILE"]);
    found.map(|(kind, _)| kind.clone()).ok_or_else(|| unknown("provider", names, named))
}

/// Whether it can be an option's or a provider's name, and is no end of a file's.
fn is_word(text: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.chars().all(is_part) && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

/// The names under which components are chosen for, and the components that each means.
const GROUPS: [(&str, &[&str]); 6] = [
    ("text_encoder", &["text_encoder", "text_encoder_2"]),
    ("unet", &["unet"]),
    ("controlnet", &["controlnet", "controlnet_2", "controlnet_3", "controlnet_4"]),
    ("vae", &["vae_encoder", "vae_decoder"]),
    ("vae_encoder", &["vae_encoder"]),
    ("vae_decoder", &["vae_decoder"]),
];

/// Which providers each component may run on, in order: the first that can be had is it, and of the rest each runs what
/// those before it cannot.
///
/// ```
/// use calotype::engine::Providers;
/// let providers: Providers = "unet=cuda:device_id=1,unet=cpu,vae=cpu".parse()?;
/// assert_eq!(providers.of("unet")[0].to_string(), "cuda:device_id=1");
/// assert_eq!(providers.of("vae_decoder").len(), 1);
/// assert_eq!(providers.of("text_encoder")[0].to_string(), "cpu");
/// # Ok::<(), calotype::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Providers {
    /// Of what is not named.
    others: Vec<Provider>,
    /// By the names of [`GROUPS`].
    named: Vec<(&'static str, Vec<Provider>)>,
    /// Whether they are yet to be chosen, and how exactly they are to compute then.
    automatic: Option<Option<Intent>>,
}

impl Providers {
    /// `auto`: the fastest that compute right, which [`crate::certify::choose`] finds. Until then all is the CPU's.
    pub fn is_automatic(&self) -> bool {
        self.automatic.is_some()
    }

    /// How exactly those are to compute that are yet to be chosen, where anyone said so.
    pub(crate) fn intent(&self) -> Option<Intent> {
        self.automatic.flatten()
    }

    /// The name under which a component is chosen for: text encoders are chosen for together, and so are control networks.
    pub(crate) fn group_of(component: &str) -> &str {
        let group = GROUPS.iter().find(|(name, members)| *name != "vae" && members.contains(&component));
        group.map_or(component, |(name, _)| name)
    }

    /// The same, with this list for the components of a name.
    pub(crate) fn with(mut self, group: &str, list: Vec<Provider>) -> Self {
        if let Some((name, _)) = GROUPS.iter().find(|(name, _)| *name == group) {
            self.named.push((name, list));
        }
        self
    }

    /// Of a component, `unet`: never none, for where nothing is chosen it is the CPU.
    pub fn of(&self, component: &str) -> &[Provider] {
        static CPU: [Provider; 1] = [Provider::CPU];
        let named = self.named.iter().find(|(group, _)| members(group).contains(&component));
        match named.map_or(&self.others, |(_, providers)| providers) {
            none if none.is_empty() => &CPU,
            providers => providers,
        }
    }

    /// Whether a component may run on the CPU alone.
    pub fn is_cpu(&self, component: &str) -> bool {
        self.of(component).iter().all(Provider::is_cpu)
    }

    /// Every provider that some component may run on, each once.
    pub fn all(&self) -> impl Iterator<Item = &Provider> {
        let mut seen = BTreeSet::new();
        let all = self.others.iter().chain(self.named.iter().flat_map(|(_, providers)| providers));
        all.filter(move |provider| seen.insert(provider.to_string()))
    }

    /// The same, told to compute so; options that are given already stay. What a provider is told is part of how it is written,
    /// and so of receipts.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for [`Intent::Exact`] and a provider that cannot be told to compute so.
    pub fn with_precision(mut self, intent: Intent) -> Result<Self, Error> {
        if self.is_automatic() {
            self.automatic = Some(Some(intent));
        }
        let named = self.named.iter_mut().flat_map(|(_, list)| list);
        for provider in self.others.iter_mut().chain(named) {
            for (key, value) in intent.options(provider) {
                if provider.option(key).is_none() {
                    provider.options.push((key.to_owned(), value));
                }
            }
            let canonical = provider.kind.about().map_or("", |about| about.canonical);
            if intent == Intent::Exact && Precision::of(canonical, provider) == Precision::Reduced {
                let problem =
                    format!("precision: expected a provider that computes in 32-bit floats, got {provider}");
                return Err(Error::new(ErrorKind::Usage, problem).help("use balanced"));
            }
        }
        Ok(self)
    }

    /// The same list for every component.
    pub fn everywhere(providers: Vec<Provider>) -> Self {
        Self { others: providers, ..Self::default() }
    }
}

impl FromStr for Providers {
    type Err = Error;

    /// Entries with commas between: `PROVIDER` for all components that none names, `COMPONENT=PROVIDER` for one. Those of
    /// one component are its order. A comma between brackets is part of an option's value. `auto` stands alone.
    fn from_str(text: &str) -> Result<Self, Error> {
        let mut providers = Self::default();
        let entries = entries(text)?;
        if bare(entries[0]) == AUTOMATIC && entries.len() == 1 {
            return Ok(Self { automatic: Some(None), ..providers });
        }
        for entry in entries {
            let (group, typed) = match entry.split_once('=') {
                Some((component, provider)) if !component.contains(':') => {
                    let component = component.trim();
                    let group = GROUPS.iter().find(|(name, _)| *name == component);
                    let names = GROUPS.iter().map(|(name, _)| *name);
                    let (name, _) = group.ok_or_else(|| unknown("provider: component", names, component))?;
                    (Some(*name), provider.trim())
                }
                _ => (None, entry),
            };
            if bare(typed) == AUTOMATIC {
                return Err(refused(format!("auto: expected as the only provider, got {text:?}")));
            }
            let provider: Provider = typed.parse()?;
            providers.list(group)?.push(provider);
        }
        let lists = providers.named.iter().map(|(group, list)| (format!("{group}: "), list));
        for (place, list) in [(String::new(), &providers.others)].into_iter().chain(lists) {
            for (index, provider) in list.iter().enumerate() {
                if list[..index].iter().any(|known| known.kind == provider.kind) {
                    return Err(refused(format!("{place}{}: expected once, got twice", provider.kind)));
                }
                if provider.is_cpu() && index + 1 < list.len() {
                    let after = &list[index + 1];
                    return Err(refused(format!(
                        "{place}cpu: expected as the last provider, got {after} after it"
                    ))
                    .help("providers after cpu would never be used"));
                }
            }
        }
        Ok(providers)
    }
}

impl Providers {
    /// The list of a group, which must not share components with another that is named.
    fn list(&mut self, group: Option<&'static str>) -> Result<&mut Vec<Provider>, Error> {
        let Some(group) = group else { return Ok(&mut self.others) };
        let shares = |other: &str| members(other).iter().any(|component| members(group).contains(component));
        let at = self.named.iter().position(|(other, _)| shares(other)).unwrap_or(self.named.len());
        match self.named.get(at) {
            Some((other, _)) if *other != group => {
                return Err(refused(format!("expected {other} or {group}, got both")));
            }
            Some(_) => {}
            None => self.named.push((group, Vec::new())),
        }
        Ok(&mut self.named[at].1)
    }
}

impl fmt::Display for Providers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        if self.is_automatic() {
            return f.write_str(AUTOMATIC);
        }
        for provider in &self.others {
            write!(text, ",{provider}")?;
        }
        for (group, list) in &self.named {
            list.iter().try_for_each(|provider| write!(text, ",{group}={provider}"))?;
        }
        f.write_str(if text.is_empty() { "cpu" } else { &text[1..] })
    }
}

fn members(group: &str) -> &'static [&'static str] {
    GROUPS.iter().find(|(name, _)| *name == group).map_or(&[], |(_, members)| members)
}

/// What is between commas that are in no brackets.
fn entries(text: &str) -> Result<Vec<&str>, Error> {
    let (mut found, mut start, mut open) = (Vec::new(), 0, 0usize);
    for (at, c) in text.char_indices() {
        match c {
            '{' | '[' => open += 1,
            '}' | ']' if open == 0 => {
                return Err(refused(format!("expected balanced brackets, got an unmatched {c} in {text:?}")));
            }
            '}' | ']' => open -= 1,
            ',' if open == 0 => {
                found.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    if open > 0 {
        return Err(refused(format!("expected balanced brackets, got {open} unclosed in {text:?}")));
    }
    found.push(text[start..].trim());
    if found.contains(&"") {
        return Err(refused(format!("expected a provider between commas, got none in {text:?}")));
    }
    Ok(found)
}

fn refused(problem: String) -> Error {
    Error::new(ErrorKind::Usage, format!("provider: {problem}"))
}

/// The name in ONNX Runtime of a provider that treats graphs in its own way, see below.
const OPENVINO: &str = "OpenVINOExecutionProvider";

/// Whether a provider, by its name in ONNX Runtime, takes graphs as they are and reads their weights from the files. Of weights
/// in memory OpenVINO makes copies, and ONNX Runtime's optimisations would make others.
pub(super) fn reads_files(canonical: &str) -> bool {
    canonical == OPENVINO
}

/// Whether a provider, by its name in ONNX Runtime, compiles a graph for so long that it is worth telling and keeping.
/// OpenVINO does for every device but the CPU, where it takes longer to read back what was kept.
pub(super) fn compiles(canonical: &str, provider: &Provider) -> bool {
    match canonical {
        OPENVINO => {
            let device = provider.option("device_type");
            device.is_some_and(|device| !device.to_ascii_uppercase().starts_with("CPU"))
        }
        other => {
            ["TensorrtExecutionProvider", "CoreMLExecutionProvider", "QNNExecutionProvider"].contains(&other)
        }
    }
}

/// The options by which a provider that [compiles], by its name in ONNX Runtime, keeps in a folder what it compiles.
pub(super) fn cache_options(canonical: &str, folder: &Path) -> Vec<(&'static str, String)> {
    let folder = folder.display().to_string();
    match canonical {
        "TensorrtExecutionProvider" => vec![
            ("trt_engine_cache_enable", "1".into()),
            ("trt_engine_cache_path", folder.clone()),
            ("trt_timing_cache_enable", "1".into()),
            ("trt_timing_cache_path", folder),
        ],
        "CoreMLExecutionProvider" => vec![("ModelCacheDirectory", folder)],
        OPENVINO => vec![("cache_dir", folder)],
        _ => Vec::new(),
    }
}

/// How many binary digits a provider, by its name in ONNX Runtime, computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 24, of 32-bit floats.
    Full,
    /// 11, of 16-bit floats or of tensor cores that round 32-bit ones, or 8, of bfloat16.
    Reduced,
    /// 8, of integers to which a graph rounds what layers read.
    Integers,
}

impl Precision {
    /// What a provider computes floats of 32 bits in, unless it is told otherwise.
    pub(super) fn of(canonical: &str, provider: &Provider) -> Self {
        match canonical {
            // TF32 unless told otherwise.
            "CUDAExecutionProvider" if provider.option("use_tf32") == Some("0") => Self::Full,
            OPENVINO if provider.option("load_config").is_some_and(is_f32) => Self::Full,
            "CPUExecutionProvider"
            | "XnnpackExecutionProvider"
            | "DmlExecutionProvider"
            | "WebGpuExecutionProvider" => Self::Full,
            _ => Self::Reduced,
        }
    }
}

/// Whether an OpenVINO configuration asks for 32-bit floats, on all devices that it names.
fn is_f32(config: &str) -> bool {
    let Ok(serde_json::Value::Object(devices)) = serde_json::from_str(config) else { return false };
    !devices.is_empty() && devices.values().all(|device| device["INFERENCE_PRECISION_HINT"] == "f32")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_stands_alone_and_is_the_cpu_until_it_is_chosen() {
        for typed in ["auto", " Auto "] {
            let providers: Providers = typed.parse().unwrap();
            assert!(providers.is_automatic() && providers.is_cpu("unet") && providers.intent().is_none());
            let told = providers.with_precision(Intent::Exact).unwrap();
            assert_eq!((told.to_string().as_str(), told.intent()), ("auto", Some(Intent::Exact)));
        }
        for typed in ["auto,cpu", "cuda,auto", "unet=auto", "auto,auto"] {
            let error = typed.parse::<Providers>().unwrap_err();
            let expected = format!("provider: auto: expected as the only provider, got {typed:?}");
            assert_eq!((error.kind(), error.to_string()), (ErrorKind::Usage, expected));
        }
        assert!(!"cpu".parse::<Providers>().unwrap().is_automatic());
        for (component, group) in [
            ("text_encoder_2", "text_encoder"),
            ("controlnet_3", "controlnet"),
            ("vae_encoder", "vae_encoder"),
            ("unet", "unet"),
        ] {
            assert_eq!(Providers::group_of(component), group);
            let chosen = Providers::default().with(group, vec!["cuda".parse().unwrap()]);
            assert!(!chosen.is_cpu(component) && chosen.is_cpu("vae_decoder"));
            assert_eq!(chosen.to_string().parse::<Providers>().unwrap(), chosen);
        }
    }

    #[test]
    fn openvino_compiles_for_devices_only() {
        let compiles = |typed: &str| {
            let provider: Provider = typed.parse().unwrap();
            compiles(provider.kind.about().unwrap().canonical, &provider)
        };
        assert!(compiles("tensorrt") && compiles("coreml") && compiles("qnn"));
        assert!(compiles("openvino:device_type=GPU") && compiles("openvino:device_type=NPU"));
        for typed in ["openvino", "openvino:device_type=CPU", "openvino:device_type=cpu", "cpu", "cuda"] {
            assert!(!compiles(typed), "{typed}");
        }
    }

    #[test]
    fn precision_is_what_providers_are_told() {
        let told = |typed: &str, intent: &str| {
            let providers: Providers = typed.parse().unwrap();
            providers.with_precision(intent.parse().unwrap()).unwrap().to_string()
        };
        let openvino = |device: &str, hint: &str| {
            format!(r#"load_config={{"{device}":{{"INFERENCE_PRECISION_HINT":"{hint}"}}}}"#)
        };
        for (intent, cpu, gpu, flag) in
            [("exact", "f32", "f32", "0"), ("balanced", "f32", "f16", "1"), ("fast", "bf16", "f16", "1")]
        {
            let expected = format!("unet=openvino:{},vae=cuda:use_tf32={flag},vae=cpu", openvino("CPU", cpu));
            assert_eq!(told("unet=openvino,vae=cuda,vae=cpu", intent), expected);
            let expected = format!("openvino:device_type=GPU.1:{}", openvino("GPU", gpu));
            assert_eq!(told("openvino:device_type=GPU.1", intent), expected);
            // What is typed is meant, and others have no choice.
            let typed = format!("cuda:use_tf32={flag},cpu");
            for typed in [typed.as_str(), "cpu", "webgpu,xnnpack"] {
                assert_eq!(told(typed, intent), typed);
            }
            for (typed, expected) in [
                ("tensorrt,cpu", "tensorrt:trt_fp16_enable=1,cpu"),
                ("coreml", "coreml:AllowLowPrecisionAccumulationOnGPU=1"),
                ("qnn", "qnn"),
                ("openvino:load_config={}", "openvino:load_config={}"),
                ("cuda:use_tf32=1", "cuda:use_tf32=1"),
                ("plugin:/a/libx.so", "plugin:/a/libx.so"),
            ] {
                let providers: Providers = typed.parse().unwrap();
                match providers.with_precision(intent.parse().unwrap()) {
                    Ok(told) => assert_eq!((told.to_string().as_str(), intent != "exact"), (expected, true)),
                    Err(error) => assert!(intent == "exact" && error.kind() == ErrorKind::Usage, "{error}"),
                }
            }
            // It is read back as it is written.
            let written = told("openvino,cpu", intent);
            assert_eq!(written.parse::<Providers>().unwrap().to_string(), written);
            let precision = Precision::of(OPENVINO, &written.parse::<Providers>().unwrap().others[0]);
            let limit = if cpu == "f32" { Precision::Full } else { Precision::Reduced };
            assert_eq!(precision, limit, "{intent}");
        }
        let error = "exakt".parse::<Intent>().unwrap_err().to_string();
        assert!(error.contains("expected one of exact, balanced, fast"), "{error}");
        for config in ["", "{}", "f32", r#"{"CPU":{}}"#, r#"{"CPU":{"INFERENCE_PRECISION_HINT":"bf16"}}"#] {
            assert!(!is_f32(config), "{config}");
        }
    }
}
