//! `calotype resume`: a run that was interrupted goes on from its journal to the same images.

use std::env;
use std::path::PathBuf;

use calotype::journal::Journal;
use calotype::{Error, ErrorKind};
use clap::FromArgMatches;

use super::job::Job;
use super::{Cli, Command, Common, Report, command, generate};

#[derive(clap::Args)]
pub(super) struct Flags {
    /// The folder given to `generate --journal`.
    folder: PathBuf,
    #[command(flatten)]
    pub(super) common: Common,
}

pub(super) fn run(flags: &Flags) -> Result<Report, Error> {
    let (journal, job) = Journal::open(&flags.folder)?;
    let refuse = |problem: &str| {
        Error::new(ErrorKind::Input, format!("journal: {}: {problem}", flags.folder.display()))
            .in_file(&flags.folder)
    };
    let job: Job = serde_json::from_slice(&job)
        .map_err(|error| refuse("expected the arguments of a run").source(error))?;
    env::set_current_dir(&job.folder).map_err(|error| refuse("the folder of the run").source(error))?;
    let arguments = [env!("CARGO_PKG_NAME").to_owned()].into_iter().chain(job.arguments);
    let parsed =
        command().try_get_matches_from(arguments).and_then(|matches| Cli::from_arg_matches(&matches));
    let parsed = parsed.map_err(|error| refuse("expected the arguments of this version").source(error))?;
    let Command::Generate(mut generate) = parsed.command else {
        return Err(refuse("expected the arguments of `generate`"));
    };
    generate.resume(job.seed, &flags.common);
    generate::work(&generate, Some(journal))
}
