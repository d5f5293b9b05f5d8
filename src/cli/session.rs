//! How sessions are opened: the flags of memory, threads and providers that `generate`, `plan` and `serve` share.

use std::num::NonZeroUsize;

use calotype::engine::SessionOptions;
use calotype::model::Signer;
use calotype::plan::Budget;
use calotype::recipe::Recipe;
use calotype::{Error, ErrorKind};
use clap::value_parser;

use super::provider;

/// More threads than any one device has cores.
const MAX_THREADS: i64 = 1024;

#[derive(clap::Args, Clone, Default)]
pub(super) struct Session {
    /// Memory limit of the process, as in `300MiB`; the available memory, less a reserve, when absent. CPU only.
    #[arg(long, value_name = "SIZE")]
    pub(super) memory: Option<Budget>,
    /// Number of threads per operator.
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=MAX_THREADS))]
    threads: Option<u16>,
    /// Accept only bundles signed by KEY, minisign's public key or its file: the bundle has calotype.json.minisig, which
    /// `minisign -Sm calotype.json` makes, and every file is compared with its hash. LoRA files, embeddings and replaced
    /// components are refused.
    #[arg(long, value_name = "KEY")]
    require_signed: Option<String>,
    #[command(flatten)]
    provider: provider::Choice,
}

impl Session {
    /// Whether providers are yet to be chosen.
    pub(super) fn is_automatic(&self) -> bool {
        self.provider.is_automatic()
    }

    /// Whether threads or providers were typed.
    pub(super) fn says_how_to_compute(&self) -> bool {
        self.threads.is_some() || self.provider.is_typed()
    }

    /// Who must have signed what is opened, if that was asked for.
    pub(super) fn signer(&self) -> Result<Option<Signer>, Error> {
        self.require_signed.as_deref().map(Signer::open).transpose()
    }

    /// Refuses the model of a recipe that is not signed, if that was asked for.
    pub(super) fn check_signed(&self, recipe: &Recipe) -> Result<(), Error> {
        let Some(signer) = self.signer()? else { return Ok(()) };
        let Recipe { unet, vae, text_encoder, lora, embedding, control_model, .. } = recipe;
        let others = unet.is_some() as usize + vae.is_some() as usize + text_encoder.len() + lora.len();
        let others = others + embedding.len() + control_model.len();
        if others > 0 {
            let problem = format!("signature: expected a signed bundle alone, got {others} files beside it");
            return Err(Error::new(ErrorKind::Usage, problem)
                .help("merge them with `calotype pack`, and sign the bundle"));
        }
        match recipe.model.as_ref().and_then(|file| file.path.as_deref()) {
            Some(path) => signer.check(path),
            // The built-in model is a part of this program.
            None => Ok(()),
        }
    }

    /// What was typed of how sessions are opened.
    pub(super) fn options(&self) -> Result<SessionOptions, Error> {
        let mut options = self.provider.options()?;
        if let Some(threads) = self.threads.map(usize::from).and_then(NonZeroUsize::new) {
            options.threads = threads;
        }
        Ok(options)
    }
}
