//! Where the files of the built-in model are: in the repository, or in the folder that `CALOTYPE_BUILTIN` names, because
//! they are too large for a packed crate. It knows nothing of what is in them.

use std::path::Path;

use super::{required, variable};

/// Tells the crate the folder, from which it takes the files.
pub fn find() -> Result<(), String> {
    let named = variable("CALOTYPE_BUILTIN");
    let folder = match &named {
        Some(named) => std::path::absolute(named).map_err(|error| format!("{named}: {error}"))?,
        None => Path::new(&required("CARGO_MANIFEST_DIR")?).join("models/builtin"),
    };
    // The packed crate has the manifest and the graphs, which tests read, and no weights.
    let weights = folder.join("weights/unet.safetensors");
    println!("cargo:rerun-if-changed={}", weights.display());
    if weights.is_file() {
        println!("cargo:rustc-env=CALOTYPE_BUILTIN_FOLDER={}", folder.display());
        return Ok(());
    }
    let got = if named.is_some() { "none in the folder that CALOTYPE_BUILTIN names" } else { "none" };
    Err(format!(
        "feature builtin: expected the built-in model's {}, got {got}. The packed crate leaves the model out: take models/builtin \
         from calotype's repository and build with CALOTYPE_BUILTIN=FOLDER, or build without the feature \
         (--no-default-features --features cli), and give the program models with --model.",
        weights.display()
    ))
}
