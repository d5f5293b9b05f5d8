//! The rules of the house that can be checked by reading the source as text: layers, homes of the unsafe, heads of files.
//! Each rule is shown a line that breaks it, too, because a rule that cannot fail is none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The layers from the top down, and in them the modules: each may name those after it, and none before it.
const LAYERS: [(&str, &[&str]); 5] = [
    ("faces", &["main", "cli", "server", "capi", "python"]),
    (
        "diffusion",
        &[
            "binding",
            "pack",
            "provenance",
            "upscaler",
            "deadline",
            "pipeline",
            "run",
            "plan",
            "certify",
            "stage",
            "request",
            "recipe_file",
            "recipe",
        ],
    ),
    ("runtime", &["engine"]),
    (
        "untrusted bytes",
        &[
            "slots",
            "model",
            "manifest",
            "signature",
            "checkpoint",
            "adapter",
            "family",
            "architecture",
            "graph",
            "weights",
            "image_file",
            "journal",
            "memory",
            "whole_file",
        ],
    ),
    ("pure", &PURE),
];
const PURE: [&str; 16] = [
    "tokenizer",
    "prompt",
    "scheduler",
    "sampler",
    "control",
    "guidance",
    "prediction",
    "noise_model",
    "schedule",
    "noise",
    "state",
    "tile",
    "tensor",
    "name",
    "json",
    "error",
];

/// The crate's table of contents, and its prose.
const OUTSIDE_THE_LAYERS: [&str; 2] = ["lib", "manual"];

/// What `lib.rs` lends the whole crate under its own name.
const ROOT_ITEMS: [(&str, &str); 2] = [("Error", "error"), ("ErrorKind", "error")];

/// The only files with unsafe code, and the folder of the C library, whose callers pass pointers.
const UNSAFE_HOMES: [&str; 5] = ["weights/map.rs", "engine/sys.rs", "binding/held.rs", "capi.rs", "capi/"];
/// The only file that knows the `ort` crate.
const ORT_HOME: &str = "engine/sys.rs";
/// Crates that few may know, and the files or folders that do.
const CRATE_HOMES: [(&str, &[&str]); 29] = [
    ("axum", &["server.rs", "server/"]),
    ("base64", &["server.rs", "server/"]),
    ("clap", &["cli.rs", "cli/"]),
    ("ctrlc", &["cli/"]),
    ("embedded_graphics", &["cli/"]),
    ("hyper", &["server/"]),
    ("hyper_util", &["server/"]),
    ("image_webp", &["image_file/"]),
    ("indicatif", &["cli/"]),
    ("jpeg_encoder", &["image_file/"]),
    ("libloading", &["engine/sys.rs"]),
    ("memmap2", &["engine/", "weights/map.rs"]),
    ("minisign_verify", &["model/signed.rs"]),
    ("ndarray", &["adapter/"]),
    ("png", &["image_file.rs", "image_file/"]),
    // Messages are declared in `graph/`; who writes them needs the trait that encodes them.
    ("prost", &["graph.rs", "graph/", "architecture/builder.rs", "pack/tensor.rs", "stage/tile.rs"]),
    ("pulp", &["noise/"]),
    ("pyo3", &["python.rs", "python/"]),
    ("rustix", &["cli/", "main.rs", "weights/map.rs", "engine/", "whole_file.rs"]),
    ("serde_path_to_error", &["architecture.rs", "manifest.rs", "model/", "recipe/", "scheduler.rs"]),
    ("signal_hook", &["cli/", "main.rs"]),
    ("tiff", &["image_file/"]),
    ("tokio", &["server.rs", "server/"]),
    ("tokio_stream", &["server/"]),
    ("tower_http", &["server.rs", "server/"]),
    ("tokenizers", &["tokenizer.rs", "tokenizer/"]),
    ("rusty_jpeg", &["image_file/"]),
    ("weezl", &["image_file/"]),
    ("zune_jpeg", &["image_file/"]),
];
/// Phrases that users met once, and the field's words for them. None comes back in the help, in messages, or in texts for users.
const REPLACED: [(&str, &str); 51] = [
    (" a picture ", "image"),
    ("at work on it", "in use by another `calotype pack`"),
    ("averages of a training", "EMA weights"),
    ("begins anew", "starts over"),
    ("begins with a picture", "takes an image embedding"),
    ("behind commas", "comma-separated, in fallback order"),
    ("called as their", "named after their"),
    ("computes wrongly", "computes wrong results"),
    ("control group", "cgroup"),
    ("drawn anew", "repainted"),
    ("everybody's names", "diffusers, A1111, ComfyUI names"),
    ("expected to be alone", "destination is in use"),
    ("for what they are", "disable prompt syntax"),
    ("foresee", "predict"),
    ("foretell", "predict"),
    ("given several times", "repeatable"),
    ("goes back to noise", "denoising strength"),
    ("how much of it, 1 when absent", "with optional strength (default 1)"),
    ("in a file of its own", "in a separate file"),
    ("in silence", "silently"),
    ("is cut short", "is truncated"),
    ("is squeezed", "with reduced memory"),
    ("keeps to that", "stays within the limit"),
    ("laid on white", "composited onto white"),
    ("made shorter in use", "truncated while in use"),
    ("marks included", "special tokens included"),
    ("memory runs short", "memory pressure"),
    ("mistake of ours", "internal error (a bug in calotype)"),
    ("no word of where", "no path"),
    ("not of one model", "does not match"),
    ("nothing bent", "nothing is silently adjusted"),
    ("painted black", "a black image"),
    (" pictures ", "images"),
    ("programs of one's own", "your own programs"),
    ("prompt pulls", "guidance scale"),
    ("refused with what would", "rejected with the nearest valid value"),
    ("says no before", "is refused before loading"),
    ("size ids", "time ids"),
    ("spelled out", "unfused"),
    ("starts anew", "starts over"),
    ("steer away from", "negative prompt"),
    ("tables of words", "token embedding"),
    (" the picture ", "image"),
    ("the processor", "the CPU"),
    ("this kind of network", "unsupported architecture"),
    ("this library lacks", "not in this ONNX Runtime build"),
    ("to draw from", "init image"),
    ("to live on", "memory available to this process"),
    ("told ln(sigma)", "takes ln(sigma)"),
    ("who may ask", "access"),
    ("whose noise", "random generator to reproduce"),
];

/// The only file of the library that reads the environment.
const ENVIRONMENT_HOME: &str = "engine/library.rs";

#[test]
fn every_module_has_its_place_in_the_layers() {
    let listed: BTreeSet<String> =
        LAYERS.iter().flat_map(|(_, modules)| *modules).map(ToString::to_string).collect();
    let is_code = |module: &String| !OUTSIDE_THE_LAYERS.contains(&module.as_str());
    let found = sources().iter().map(Source::module).filter(is_code).collect();
    assert_eq!(listed, found, "the table of layers and the modules in src differ");
}

/// The manual's table of the layers is this one.
#[test]
fn the_manual_has_the_layers() {
    let page = text("src/manual/architecture.md");
    for (layer, modules) in LAYERS {
        let row = format!("\n| {layer} | `{}` |", modules.join("`, `"));
        assert!(page.contains(&row), "src/manual/architecture.md: expected {row}");
    }
}

/// The header of the C library is that of the source.
// What writes it is not built for the tests under emulation.
#[cfg(not(all(target_arch = "aarch64", target_os = "linux")))]
#[test]
fn the_header_is_that_of_the_source() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("include/cbindgen.toml")).unwrap();
    let files = ["capi", "capi/status", "capi/option", "capi/image", "capi/pipeline"];
    let builder = cbindgen::Builder::new().with_config(config);
    let builder =
        files.iter().fold(builder, |builder, file| builder.with_src(root.join(format!("src/{file}.rs"))));
    let mut written = Vec::new();
    builder.generate().unwrap().write(&mut written);
    let written = String::from_utf8(written).unwrap();
    let header = root.join("include/calotype.h");
    if std::env::var_os("WRITE_HEADER").is_some() {
        fs::write(&header, &written).unwrap();
    }
    let committed = fs::read_to_string(&header).unwrap_or_default();
    let is_same = committed == written;
    assert!(
        is_same,
        "include/calotype.h: expected that of src/capi; WRITE_HEADER=1 cargo test --test architecture header"
    );

    let functions = written.matches("(").count();
    assert!(functions > 20 && !written.contains("Safety"), "{written}");
}

/// Every function of the C library catches panics, and has a name of its form.
#[test]
fn no_panic_reaches_c() {
    none_breaks(unguarded);
    breaks(unguarded, "capi/image.rs", "pub extern \"C\" fn calotype_image_x(\n) -> c_int {\n    0\n}");
    breaks(
        unguarded,
        "capi/image.rs",
        "pub unsafe extern \"C\" fn image_free() {\n    guard(error, || {})\n}",
    );
}

/// An entry point of the C library with a name of another form, or that a panic could leave.
fn unguarded(source: &Source) -> Option<String> {
    const ENTRY: &str = "extern \"C\" fn ";
    let code: Vec<String> = source.code().collect();
    let starts = (0..code.len()).filter(|&line| code[line].starts_with("pub ") && code[line].contains(ENTRY));
    starts.into_iter().find_map(|start| {
        let body = code[start..].iter().take_while(|line| *line != "}");
        let is_guarded = body.clone().any(|line| line.trim_start().starts_with("guard("));
        let is_constant = code[start].contains("fn calotype_version()");
        let is_named = code[start].split_once(ENTRY).is_some_and(|(_, name)| name.starts_with("calotype_"));
        (!is_named || !is_guarded && !is_constant).then(|| code[start].clone())
    })
}

/// Every feature says what it adds, and every crate of the bare library has its reason in the manual.
#[test]
fn features_and_bare_crates_are_explained() {
    // In a packed crate, whose Cargo.toml has no comments, the one that was written lies beside it.
    let written = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml.orig").exists();
    let cargo = text(if written { "Cargo.toml.orig" } else { "Cargo.toml" });
    assert_eq!(unexplained(&cargo, &text("src/manual/architecture.md")), Vec::<String>::new());
    let cargo = "[features]\ndefault = []\n# Adds a.\na = []\nb = []\n[dependencies]\nx = \"1\"\ny = { version = \"1\", optional = true }\n";
    assert_eq!(unexplained(cargo, "| `a` | `z` |"), ["b: no comment", "a, b or x: not in the manual"]);
    assert_eq!(unexplained(cargo, "| `a` | `b` | `x` |"), ["b: no comment"]);
}

fn unexplained(cargo: &str, page: &str) -> Vec<String> {
    let section = |name: &str| {
        let rest = cargo.split_once(&format!("[{name}]\n")).map_or("", |(_, rest)| rest);
        rest.split("\n[").next().unwrap_or_default().lines()
    };
    let is_named = |line: &&str| line.starts_with(|c: char| c.is_ascii_lowercase()) && line.contains(" = ");
    let name = |line: &str| line.split(" = ").next().unwrap_or_default().to_owned();
    let mut problems = Vec::new();
    let mut before = "";
    let mut named = Vec::new();
    for line in section("features") {
        if is_named(&line) && !line.starts_with("default") {
            named.push(name(line));
            if !before.starts_with('#') {
                problems.push(format!("{}: no comment", name(line)));
            }
        }
        before = line;
    }
    let bare = section("dependencies").filter(is_named).filter(|line| !line.contains("optional = true"));
    named.extend(bare.map(name));
    if named.iter().any(|name| !page.contains(&format!("`{name}`"))) {
        let (last, others) = named.split_last().expect("a feature or a crate");
        problems.push(format!("{} or {last}: not in the manual", others.join(", ")));
    }
    problems
}

/// What texts for contributors name is there.
#[test]
fn named_files_exist() {
    let is_path = |word: &&str| {
        let starts = ["src/", "tests/", "export/", "cross/", "benches/", "examples/", ".ci/"];
        starts.iter().any(|start| word.starts_with(start))
            && !word.contains(['*', ' ', '<'])
            && !word.contains("NAME")
    };
    let missing = |text: &str| -> Vec<String> {
        let quoted = text.split('`').skip(1).step_by(2).filter(is_path);
        let linked = text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).filter(is_path);
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let there = |path: &&str| root.join(path.split('#').next().unwrap()).exists();
        quoted.chain(linked).filter(|path| !there(path)).map(Into::into).collect()
    };
    for file in ["CONTRIBUTING.md", "README.md", "src/manual/architecture.md"] {
        assert_eq!(missing(&text(file)), Vec::<String>::new(), "{file}");
    }
    assert_eq!(
        missing("`src/lib.rs`, `src/none.rs` and [it](src/nothing.md)"),
        ["src/none.rs", "src/nothing.md"]
    );
}

#[test]
fn imports_point_down() {
    none_breaks(upward_import);
    breaks(upward_import, "sampler/euler.rs", "use crate::pipeline::Pipeline;");
    breaks(upward_import, "graph.rs", "use crate::{Error, manifest::Manifest};");
    breaks(upward_import, "graph.rs", "use crate::{\n    Error,\n    manifest::Manifest,\n};");
    breaks(upward_import, "schedule.rs", "fn f() -> crate::sampler::SamplerKind {");
    breaks(upward_import, "schedule.rs", "use super::sampler::SamplerKind;");
    breaks(upward_import, "engine/sys.rs", "use super::super::request::Request;");
}

#[test]
fn pure_modules_touch_nothing_outside() {
    none_breaks(impurity);
    breaks(impurity, "tokenizer.rs", "use std::fs;");
    breaks(impurity, "noise/mersenne.rs", "use std::{env, fmt};");
}

#[test]
fn unsafe_code_stays_in_its_homes() {
    none_breaks(homeless_unsafe);
    breaks(homeless_unsafe, "weights.rs", "#![allow(unsafe_code)]");
    breaks(homeless_unsafe, "engine.rs", "    let x = unsafe { *p };");
    let manifest = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
    assert!(manifest.contains("\nunsafe_code = \"deny\"\n"), "Cargo.toml no longer denies unsafe code");
}

#[test]
fn one_file_knows_ort() {
    none_breaks(homeless_ort);
    breaks(homeless_ort, "engine.rs", "use ort::session::Session;");
    breaks(homeless_ort, "engine/library.rs", "    Err(error) => ::ort::Error::from(error),");
}

#[test]
fn crates_have_their_homes() {
    none_breaks(homeless_crate);
    breaks(homeless_crate, "pipeline.rs", "use clap::Parser;");
    breaks(homeless_crate, "engine/library.rs", "let library = ::libloading::Library::new(path);");
    breaks(homeless_crate, "stage/vae.rs", "    memmap2::Mmap::map(&file)?;");
    breaks(homeless_crate, "sampler/euler.rs", "use prost::Message;");
    let homes: BTreeSet<&str> = CRATE_HOMES.iter().map(|(name, _)| *name).collect();
    assert_eq!(homes.len(), CRATE_HOMES.len(), "a crate is listed twice");
}

#[test]
fn modules_have_no_circles() {
    let found = circles(&sources());
    assert!(found.is_empty(), "these import each other: {found:?}");

    // Planted: two files, three files, and one that is reached through a group of imports.
    let planted = |files: &[(&str, &str)]| -> Vec<Vec<String>> {
        let source = |(path, text): &(&str, &str)| Source { path: (*path).into(), text: (*text).into() };
        circles(&files.iter().map(source).collect::<Vec<_>>())
    };
    let two = [("a/b.rs", "use super::c::C;"), ("a/c.rs", "fn f() -> crate::a::b::B {")];
    assert_eq!(planted(&two), [["a/b", "a/c"]]);
    let three = [
        ("a/b.rs", "use super::{\n    c::C,\n};"),
        ("a/c.rs", "use crate::a::d::D;"),
        ("a/d.rs", "use crate::{Error, a::b::{B, O}};"),
    ];
    assert_eq!(planted(&three), [["a/b", "a/c", "a/d"]]);
    let by_another_name = [
        ("a.rs", "mod b;\nmod c;\npub use b::B;\npub(crate) use self::c::{C, O};"),
        ("a/b.rs", "use super::C;"),
        ("a/c.rs", "use super::B;"),
    ];
    assert_eq!(planted(&by_another_name), [["a/b", "a/c"]]);
    // A parent and its child may name each other, and what is of another module is no part of a circle in this one.
    let none = [
        ("a.rs", "use self::b::B;"),
        ("a/b.rs", "use super::A;\nuse super::c::C;"),
        ("a/c.rs", "use crate::d::D; // use super::b::B;"),
    ];
    assert_eq!(planted(&none), Vec::<Vec<String>>::new());
}

#[test]
fn the_library_never_prints() {
    none_breaks(printing);
    for line in ["println!();", "eprintln!(\"x\");", "print!(\"x\");", "dbg!(x);", "io::stderr().write(b)"] {
        breaks(printing, "pipeline.rs", line);
    }
}

#[test]
fn one_file_reads_the_environment() {
    none_breaks(reading_the_environment);
    breaks(reading_the_environment, "pipeline.rs", "let home = std::env::var(\"HOME\");");
    breaks(reading_the_environment, "stage/vae.rs", "use std::{env, fs};");
    breaks(reading_the_environment, "engine/sys.rs", "let home = std::env::var(\"HOME\");");
}

#[test]
fn there_is_one_denoising_loop() {
    none_breaks(second_loop);
    breaks(second_loop, "stage/denoiser.rs", "    sampler.step(&mut x, step, denoiser, noise)?;");
}

#[test]
fn functions_can_be_read_whole() {
    none_breaks(long_function);
    let lines = |count: usize| format!("    pub(super) fn f() {{\n{}    }}", "        g();\n".repeat(count));
    breaks(long_function, "tensor.rs", &lines(99));
    assert_eq!(long_function(&Source { path: "tensor.rs".into(), text: lines(98) }), None);
    let declared = format!("trait T {{\n    fn f();\n{}}}", "    fn g();\n".repeat(100));
    assert_eq!(long_function(&Source { path: "tensor.rs".into(), text: declared }), None);
}

#[test]
fn every_file_says_what_it_owns() {
    none_breaks(headless);
    breaks(headless, "tensor.rs", "use std::fmt;");
    breaks(headless, "tensor.rs", "//! Tensors");
    breaks(headless, "tensor.rs", "// Sizes of pictures and latents, in units that cannot be confused.");
}

#[test]
fn there_are_no_cupboards() {
    none_breaks(cupboard);
    breaks(cupboard, "sampler/utils.rs", "");
    breaks(cupboard, "common/mod.rs", "");
    breaks(cupboard, "graph.rs", "mod helpers {");
}

#[test]
fn nothing_is_left_undone() {
    none_breaks(undone);
    breaks(undone, "graph.rs", "    todo!()");
    breaks(undone, "graph.rs", "        _ => unimplemented!(\"later\"),");
}

#[test]
fn replaced_words_stay_away() {
    none_breaks(replaced_words);
    none_breaks(replaced_name);
    breaks(replaced_name, "plan.rs", "    let ways: Vec<Way> = Vec::new();");
    breaks(replaced_name, "server/jobs.rs", "    let desk = Desk::new();");
    breaks(replaced_words, "plan.rs", "    // What the processor\n    // does.");
    breaks(replaced_words, "run.rs", "    /// The size of a\n    /// picture in pixels.");
    breaks(replaced_words, "engine.rs", "    Err(refuse(\"this library lacks it\"))");
    breaks(replaced_words, "engine.rs", "    \"expected a file, got one that is \\\n        cut short\"");
    breaks(
        replaced_words,
        "cli/draft.rs",
        "    /// How strongly the\n    /// prompt pulls.\n    guidance: f64,",
    );
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml.orig").exists();
    // The packed crate has no fuzz targets.
    for path in texts_for_users().into_iter().filter(|path| !(packed && path.starts_with("tests/fuzz/"))) {
        assert_eq!(replaced(&text(&path)), None, "{path}");
    }
    assert!(replaced("What it takes is drawn\nanew.").is_some());
}

/// The library knows settings; their flags are the command line's.
#[test]
fn no_library_file_names_a_flag() {
    none_breaks(flag);
    breaks(flag, "request.rs", "        error.help(\"--size resizes it\")");
    breaks(flag, "plan.rs", "    .help(\"leave out --memory\")");
    breaks(flag, "checkpoint/foreign.rs", "    \"give its base model with -m, and this file\",");
    breaks(flag, "model.rs", "    \"give what is missing (\\\n     --vae FILE)\",");
    assert_eq!(flag(&Source { path: "cli/open.rs".into(), text: "\"--init\"".into() }), None);
}

type Rule = fn(&Source) -> Option<String>;

fn upward_import(source: &Source) -> Option<String> {
    let order: Vec<&str> = LAYERS.iter().flat_map(|(_, modules)| *modules).copied().collect();
    let place = |module: &str| order.iter().position(|listed| *listed == module);
    let here = place(&source.module())?;
    let is_top = !source.path.contains('/');
    // A module's own tests may use what it is made for.
    let mut code = source.code().take_while(|line| line != "#[cfg(test)]");
    code.find_map(|line| {
        let line = line.as_str();
        // These would be other ways to the root; `super::*` in a file's own test module is none.
        if line.contains("super::super") || is_top && line.starts_with("use super::") {
            return Some(format!("{line} (say crate:: instead)"));
        }
        let above = first_names(line, "crate::").into_iter().find(|name| {
            let lent = ROOT_ITEMS.iter().find(|(item, _)| item == name).map(|(_, module)| *module);
            place(lent.unwrap_or(name)).is_none_or(|there| there < here)
        });
        above.map(|name| format!("{line} (names {name}, which is above it)"))
    })
}

fn impurity(source: &Source) -> Option<String> {
    let outside = ["env", "fs", "io", "net", "process", "thread", "time"];
    let is_pure = PURE.contains(&source.module().as_str());
    // Tests may make up errors of other layers.
    let mut code = source.code().take_while(|line| line != "#[cfg(test)]");
    code.find(|line| is_pure && first_names(line, "std::").iter().any(|name| outside.contains(name)))
}

fn homeless_unsafe(source: &Source) -> Option<String> {
    let is_home = UNSAFE_HOMES.iter().any(|home| source.path.starts_with(home));
    source.code().find(|line| !is_home && line.contains("unsafe"))
}

fn homeless_ort(source: &Source) -> Option<String> {
    let is_home = source.path == ORT_HOME;
    source.code().find(|line| !is_home && !first_names(line, "ort::").is_empty())
}

fn homeless_crate(source: &Source) -> Option<String> {
    let code: Vec<String> = source.code().take_while(|line| line != "#[cfg(test)]").collect();
    CRATE_HOMES.iter().find_map(|(name, homes)| {
        let is_home = homes.iter().any(|home| source.path.starts_with(home));
        let word = format!("{name}::");
        code.iter().find(|line| !is_home && !first_names(line, &word).is_empty()).cloned()
    })
}

/// The files of one module that import each other, directly or through others, by their paths without `.rs`.
fn circles(sources: &[Source]) -> Vec<Vec<String>> {
    let modules: BTreeSet<&str> = sources.iter().map(Source::stem).collect();
    let exported: BTreeMap<String, &str> =
        sources.iter().flat_map(|source| source.exported(&modules)).collect();
    let imports: BTreeMap<&str, BTreeSet<&str>> =
        sources.iter().map(|source| (source.stem(), source.siblings(&modules, &exported))).collect();
    let reached: BTreeMap<&str, BTreeSet<&str>> = modules
        .iter()
        .map(|module| {
            let (mut reached, mut open) = (BTreeSet::new(), vec![*module]);
            while let Some(module) = open.pop() {
                open.extend(imports[module].iter().filter(|next| reached.insert(**next)));
            }
            (*module, reached)
        })
        .collect();
    let mut circles: BTreeSet<Vec<String>> = BTreeSet::new();
    for (module, from_it) in reached.iter().filter(|(module, from_it)| from_it.contains(*module)) {
        let members = from_it.iter().filter(|other| reached[**other].contains(module));
        circles.insert(members.map(ToString::to_string).collect());
    }
    circles.into_iter().collect()
}

/// The head of a function of more than a hundred lines.
fn long_function(source: &Source) -> Option<String> {
    const MOST: usize = 100;
    let lines: Vec<&str> = source.text.lines().take_while(|line| *line != "#[cfg(test)]").collect();
    let is_head = |line: &str| {
        let words = line.trim_start().split("fn ").next().unwrap_or_default();
        line.contains("fn ")
            && words.split(' ').all(|word| ["", "const", "unsafe"].contains(&word) || word.starts_with("pub"))
    };
    lines.iter().enumerate().filter(|(_, line)| is_head(line)).find_map(|(at, head)| {
        let indent = &head[..head.len() - head.trim_start().len()];
        let ends = |line: &&str| {
            line.strip_prefix(indent)
                .is_some_and(|rest| rest == "}" || rest.ends_with(';') && !rest.starts_with(' '))
        };
        let count = lines[at..].iter().position(ends)? + 1;
        (count > MOST).then(|| format!("{} ({count} lines)", head.trim()))
    })
}

fn printing(source: &Source) -> Option<String> {
    let prints = ["print!", "println!", "eprint!", "eprintln!", "dbg!", "stdout()", "stderr()"];
    let is_face = LAYERS[0].1.contains(&source.module().as_str());
    source.code().find(|line| !is_face && prints.iter().any(|print| line.contains(print)))
}

fn reading_the_environment(source: &Source) -> Option<String> {
    let is_free = source.path == ENVIRONMENT_HOME || LAYERS[0].1.contains(&source.module().as_str());
    // Written only where ONNX Runtime is told to keep no record of its user.
    let is_opt_out =
        |line: &str| source.path == "engine/sys.rs" && line.contains("set_var(\"ORT_DISABLE_TELEMETRY\"");
    source.code().find(|line| !is_free && !is_opt_out(line) && first_names(line, "std::").contains(&"env"))
}

fn second_loop(source: &Source) -> Option<String> {
    let mut code = source.code().take_while(|line| line != "#[cfg(test)]");
    code.find(|line| source.path != "run.rs" && line.contains(".step("))
}

fn headless(source: &Source) -> Option<String> {
    let head: Vec<&str> = source.text.lines().map_while(|line| line.strip_prefix("//! ")).collect();
    let is_sentence = head.join(" ").split_once('.').is_some_and(|(sentence, _)| sentence.contains(' '));
    (!is_sentence).then(|| "expected a `//!` head of a sentence or two".into())
}

fn cupboard(source: &Source) -> Option<String> {
    let names = ["util", "utils", "common", "helper", "helpers", "misc"];
    let in_path = source.path.split(['/', '.']).find(|part| names.contains(part)).map(Into::into);
    let named = |line: &str| first_names(line, "mod ").iter().any(|name| names.contains(name));
    in_path.or_else(|| source.code().find(|line| named(line)))
}

fn undone(source: &Source) -> Option<String> {
    let marks = ["todo!", "unimplemented!"];
    source.code().find(|line| marks.iter().any(|mark| line.contains(mark)))
}

/// Names of items that were replaced by the field's, as whole words of the code.
const REPLACED_NAMES: [(&str, &str); 19] = [
    ("Ahead", "Prefetcher"),
    ("Desk", "Scratch"),
    ("Kept", "InpaintBlend"),
    ("NegativeWithoutPicture", "NegativeWithoutImage"),
    ("Picture", "Image or Output"),
    ("SizeIds", "TimeIds"),
    ("Told", "Conditioning"),
    ("Way", "Candidate"),
    ("check_pictures", "check_images"),
    ("desk", "scratch"),
    ("draws_from_picture", "draws_from_image"),
    ("grain_bytes", "segment_bytes"),
    ("grain_mib", "segment_mib"),
    ("size_ids", "time_ids"),
    ("spelled_out", "unfused"),
    ("squeeze_memory", "reduce_memory"),
    ("takes_apart", "needs_uncond"),
    ("told_logarithms", "with_log_times"),
    ("without_mark", "without_bom"),
];

fn replaced_name(source: &Source) -> Option<String> {
    source.code().find_map(|line| {
        let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
        let (name, instead) =
            REPLACED_NAMES.iter().find(|(name, _)| words.clone().any(|word| word == *name))?;
        Some(format!("{name}: write {instead}"))
    })
}

/// The comments, of which clap takes help, and the texts in the code.
fn replaced_words(source: &Source) -> Option<String> {
    let lines = source.text.lines().map(str::trim).take_while(|line| *line != "#[cfg(test)]");
    let shown = lines.map(|line| match line.strip_prefix("//") {
        Some(comment) => comment.trim_start_matches(['/', '!']),
        None => line.trim_end_matches('\\'),
    });
    replaced(&shown.collect::<Vec<_>>().join(" "))
}

/// The first flag in a text of the library.
fn flag(source: &Source) -> Option<String> {
    if LAYERS[0].1.contains(&source.module().as_str()) {
        return None;
    }
    let code = source.code().take_while(|line| line != "#[cfg(test)]");
    code.filter(|line| line.contains('"') || line.trim_start().starts_with("--")).find(|line| {
        line.match_indices('-').any(|(at, _)| {
            let (before, rest) = (line[..at].chars().next_back(), line[at + 1..].trim_start_matches('-'));
            let begins = before.is_none_or(|before| " \"(".contains(before));
            let is_long = line[at..].starts_with("--") && rest.starts_with(|c: char| c.is_ascii_lowercase());
            // `ulimit -v` is a shell's.
            let is_short = rest.len() + 1 == line.len() - at
                && rest.starts_with(|c: char| c.is_ascii_lowercase())
                && !rest[1..].starts_with(|c: char| c.is_alphanumeric())
                && !line[..at].ends_with("ulimit ");
            begins && (is_long || is_short)
        })
    })
}

/// The first of the replaced phrases in a text, wherever its lines break.
fn replaced(text: &str) -> Option<String> {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    let (phrase, instead) = REPLACED.iter().find(|(phrase, _)| text.contains(phrase))?;
    Some(format!("{phrase:?}: write {instead}"))
}

/// What users read besides the help and messages.
fn texts_for_users() -> Vec<String> {
    let manual = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/manual")).unwrap();
    let names = manual.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let pages: Vec<String> =
        names.filter(|name| name.ends_with(".md")).map(|name| format!("src/manual/{name}")).collect();
    assert!(pages.len() > 5, "only {} pages were found", pages.len());
    [
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "export/README.md",
        "benches/README.md",
        "models/builtin/MODEL_CARD.md",
        "tests/fuzz/README.md",
        "cross/README.md",
    ]
    .map(String::from)
    .into_iter()
    .chain(pages)
    .collect()
}

#[track_caller]
fn none_breaks(rule: Rule) {
    let broken: Vec<String> = sources()
        .iter()
        .filter_map(|source| rule(source).map(|what| format!("src/{}: {}", source.path, what.trim())))
        .collect();
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

/// Checks that a rule sees that this line breaks it.
#[track_caller]
fn breaks(rule: Rule, path: &str, line: &str) {
    let source = Source { path: path.into(), text: line.into() };
    assert!(rule(&source).is_some(), "the rule does not see what is wrong with {line:?} in {path}");
}

/// A file of `src`.
struct Source {
    /// From `src` on, with `/` between the parts.
    path: String,
    text: String,
}

impl Source {
    /// The top-level module that the file belongs to.
    fn module(&self) -> String {
        self.path.split('/').next().unwrap().trim_end_matches(".rs").to_owned()
    }

    /// The path without `.rs`.
    fn stem(&self) -> &str {
        self.path.trim_end_matches(".rs")
    }

    /// Those of the modules that its code names and that lie in the same top-level module, but for its parents and
    /// children.
    /// What a module has from its children under its own name, as `a/B` of `a/b` where `a.rs` has `pub use b::B`.
    fn exported<'a>(&self, modules: &BTreeSet<&'a str>) -> Vec<(String, &'a str)> {
        let uses = self.code().filter(|line| line.trim_start().starts_with("pub") && line.contains(" use "));
        let mut found = Vec::new();
        for line in uses {
            let path = line.split_once(" use ").map_or("", |(_, path)| path).trim_start_matches("self::");
            for path in expanded("", path).0 {
                let (child, item) = path.split_once("::").unwrap_or((&path, ""));
                let child = modules.get(&format!("{}/{child}", self.stem())[..]);
                found.extend(child.map(|child| (format!("{}/{item}", self.stem()), *child)));
            }
        }
        found
    }

    fn siblings<'a>(
        &self,
        modules: &BTreeSet<&'a str>,
        exported: &BTreeMap<String, &'a str>,
    ) -> BTreeSet<&'a str> {
        let here: Vec<&str> = self.stem().split('/').collect();
        let code: Vec<String> = self.code().take_while(|line| line != "#[cfg(test)]").collect();
        let code: Vec<&str> = code.iter().map(|line| line.split(" // ").next().unwrap_or(line)).collect();
        let code = code.join(" ");
        let mut found: BTreeSet<&'a str> = BTreeSet::new();
        for (word, base) in [("crate::", &[][..]), ("super::", &here[..here.len() - 1]), ("self::", &here)] {
            for path in paths(&code, word) {
                let full: Vec<&str> = base.iter().copied().chain(path.split("::")).collect();
                // The longest part of the path that is a module; what follows is an item of it.
                let names = (1..=full.len()).rev().find_map(|len| {
                    let path = full[..len].join("/");
                    modules.get(&path[..]).copied().or_else(|| exported.get(&path).copied())
                });
                found.extend(names);
            }
        }
        let is_within =
            |one: &str, other: &str| one.strip_prefix(other).is_some_and(|rest| rest.starts_with('/'));
        let me = self.stem();
        found.retain(|other| {
            let is_near = other.split('/').next() == me.split('/').next();
            is_near && *other != me && !is_within(other, me) && !is_within(me, other)
        });
        found
    }

    /// The lines that are not comments; an import that is spread over several is one of them.
    fn code(&self) -> impl Iterator<Item = String> {
        let mut lines: Vec<String> = Vec::new();
        for line in self.text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            match lines.last_mut() {
                Some(import)
                    if import.contains("use ") && import.contains("::{") && !import.ends_with(';') =>
                {
                    import.push_str(line.trim());
                }
                _ => lines.push(line.into()),
            }
        }
        lines.into_iter()
    }
}

/// The text of a file of the repository.
fn text(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn sources() -> Vec<Source> {
    fn collect(folder: &Path, prefix: &str, into: &mut Vec<Source>) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = format!("{prefix}{}", entry.file_name().into_string().unwrap());
            if entry.file_type().unwrap().is_dir() {
                collect(&entry.path(), &format!("{path}/"), into);
            } else if path.ends_with(".rs") {
                into.push(Source { path, text: fs::read_to_string(entry.path()).unwrap() });
            }
        }
    }
    let mut sources = Vec::new();
    collect(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), "", &mut sources);
    assert!(sources.len() > 20, "only {} files were found", sources.len());
    sources
}

/// The paths that follow a word, groups taken apart: `a::A` and `b::B` after `crate::` in `use crate::{a::A, b::{B}};`.
fn paths(code: &str, word: &str) -> Vec<String> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let starts = code.match_indices(word).filter(|(at, _)| !code[..*at].ends_with(is_part));
    starts.flat_map(|(at, _)| expanded("", &code[at + word.len()..]).0).collect()
}

/// The paths at the start of a text, each with the prefix, and how many bytes they take.
fn expanded(prefix: &str, text: &str) -> (Vec<String>, usize) {
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let len = text.find(|c| !is_part(c)).unwrap_or(text.len());
    let path = format!("{prefix}{}", &text[..len]);
    if !text[len..].starts_with('{') {
        return (vec![path], len);
    }
    let (mut found, mut at) = (Vec::new(), len + 1);
    while let Some(rest) = text.get(at..) {
        let rest = rest.trim_start_matches([' ', ',']);
        at = text.len() - rest.len();
        if rest.is_empty() || rest.starts_with('}') {
            return (found, at + 1);
        }
        let (inner, taken) = expanded(&path, rest);
        found.extend(inner);
        // What is no path, such as `as name`, is stepped over.
        at += taken.max(1);
    }
    (found, text.len())
}

/// The names that follow a word on a line: `a` and `b` after `crate::` in `use crate::{a::A, b};`.
fn first_names<'a>(line: &'a str, word: &str) -> Vec<&'a str> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let name = |text: &'a str| &text[..text.find(|c| !is_part(c)).unwrap_or(text.len())];
    let mut names = Vec::new();
    for (at, _) in line.match_indices(word) {
        if line[..at].ends_with(is_part) {
            continue; // The end of a longer word.
        }
        let rest = &line[at + word.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            names.push(name(rest));
            continue;
        };
        let mut depth = 0;
        let items = group.split(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            c == ',' && depth == 0
        });
        names.extend(items.map(|item| name(item.trim_start())).filter(|name| !name.is_empty()));
    }
    names
}
