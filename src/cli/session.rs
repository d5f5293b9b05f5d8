//! How sessions are opened: the flags of memory, threads and providers that `generate`, `plan` and `serve` share.

use std::num::NonZeroUsize;

use calotype::Error;
use calotype::engine::SessionOptions;
use calotype::plan::Budget;
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
    #[command(flatten)]
    provider: provider::Choice,
}

impl Session {
    /// Whether providers are yet to be chosen.
    pub(super) fn is_automatic(&self) -> bool {
        self.provider.is_automatic()
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
