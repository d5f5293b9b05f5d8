//! What a run was asked for, as its journal keeps it. It knows arguments, and not what they mean.

use std::env;
use std::path::PathBuf;

use calotype::{Error, ErrorKind};
use serde::{Deserialize, Serialize};

/// What a run was asked for.
#[derive(Deserialize, Serialize)]
pub(super) struct Job {
    /// What was typed, without the program's name.
    pub(super) arguments: Vec<String>,
    /// The folder that file names are relative to.
    pub(super) folder: PathBuf,
    /// The first seed, which may have been random.
    pub(super) seed: u64,
}

impl Job {
    /// That of this process. [`ErrorKind::Usage`] for arguments and a folder that are not Unicode.
    pub(super) fn of_this_process(seed: u64) -> Result<Vec<u8>, Error> {
        let refuse = |what: &str| Error::new(ErrorKind::Usage, format!("--journal: expected {what}"));
        let arguments = env::args_os()
            .skip(1)
            .map(|argument| argument.into_string().map_err(|_| refuse("arguments in Unicode, got others")));
        let job = Self {
            arguments: arguments.collect::<Result<_, _>>()?,
            folder: env::current_dir().map_err(|error| refuse("a current directory").source(error))?,
            seed,
        };
        serde_json::to_vec(&job).map_err(|error| refuse("a folder in Unicode").source(error))
    }
}
