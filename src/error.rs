//! The one error type: what went wrong, where, what would have been right, and the way out.
//! It knows nothing of the layers that raise it; the faces turn its kind into exit codes.

use std::fmt;

/// What kind of thing went wrong; stable, so that callers can branch on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A request that no model could fulfil, or that this model cannot.
    Usage,
    /// A file given as input (an image, a prompt file) cannot be used.
    Input,
    /// The model's files are missing, damaged or not understood.
    Model,
    /// The memory budget is too small for the request.
    Memory,
    /// ONNX Runtime or one of its providers is missing or unfit.
    Runtime,
    /// The caller stopped the work; nothing was written.
    Cancelled,
    /// A number that is not finite appeared where a picture was being made.
    Numeric,
    /// The result could not be written where it was asked for.
    Output,
    /// A mistake of ours.
    Internal,
}

impl ErrorKind {
    /// The process exit code of this kind.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Usage => 2,
            Self::Input => 3,
            Self::Model => 4,
            Self::Memory => 5,
            Self::Runtime => 6,
            Self::Cancelled => 7,
            Self::Numeric => 8,
            Self::Output => 9,
            Self::Internal => 70,
        }
    }
}

/// An error with its evidence. `Display` gives one line, "what: expected X, got Y", then the way out
/// where one is known.
///
/// ```
/// use calotype::{Error, ErrorKind};
/// let error = Error::new(ErrorKind::Usage, "--steps: expected 1 to 1000, got 0").help("try --steps 20");
/// assert_eq!(error.kind().exit_code(), 2);
/// assert_eq!(error.to_string(), "--steps: expected 1 to 1000, got 0; try --steps 20");
/// ```
pub struct Error(Box<Detail>);

struct Detail {
    kind: ErrorKind,
    message: String,
    help: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A new error; `message` names the place, what was expected and what was found.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Detail { kind, message: message.into(), help: None, source: None }))
    }

    /// Adds the way out.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.0.help = Some(help.into());
        self
    }

    /// Keeps the error that caused this one; its text is part of `Display`.
    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The stable kind.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        if let Some(help) = &self.0.help {
            write!(f, "; {help}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
