//! The one error type: what went wrong, where, what would have been right, and the way out.
//! It knows nothing of the layers that raise it; the faces turn its kind into exit codes.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

/// The longest number that a message shows whole, in digits.
const MAX_DIGITS: usize = 24;
/// The longest word that a message shows whole, in characters; paths are such words.
const MAX_WORD: usize = 240;
/// The longest message, in characters.
const MAX_MESSAGE: usize = 4000;

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
    /// A NaN or an infinity appeared while an image was generated.
    Numeric,
    /// The result could not be written where it was asked for.
    Output,
    /// An internal error: a bug in calotype.
    Internal,
}

/// Shortens a message: long numbers and words, and long texts from the input, keep their beginning and get their length.
///
/// ```
/// use calotype::error::shortened;
/// assert_eq!(shortened("got 12"), "got 12");
/// assert_eq!(shortened(&format!("got {}!", "1234567890".repeat(30))), "got 123456789012...(300 digits)!");
/// ```
pub fn shortened(message: &str) -> Cow<'_, str> {
    let by_digits = cut_runs(message, |c| c.is_ascii_digit(), MAX_DIGITS, "digits");
    let by_words = match cut_runs(&by_digits, |c| !c.is_whitespace(), MAX_WORD, "characters") {
        Cow::Borrowed(_) => by_digits,
        Cow::Owned(shorter) => Cow::Owned(shorter),
    };
    let Some((middle, _)) = by_words.char_indices().nth(MAX_MESSAGE / 2) else { return by_words };
    let count = by_words.chars().count();
    if count <= MAX_MESSAGE {
        return by_words;
    }
    // The end has the way out.
    let (last, _) = by_words.char_indices().nth(count - MAX_MESSAGE / 2).expect("more characters than that");
    Cow::Owned(format!("{}...({count} characters)...{}", &by_words[..middle], &by_words[last..]))
}

/// Cuts runs of such characters that are longer than `most` to half of that.
fn cut_runs<'a>(text: &'a str, is_part: fn(char) -> bool, most: usize, what: &str) -> Cow<'a, str> {
    let mut cut = String::new();
    let mut done = 0;
    let mut rest = text;
    while let Some(start) = rest.find(is_part) {
        let run = &rest[start..];
        let run = &run[..run.find(|c| !is_part(c)).unwrap_or(run.len())];
        let at = text.len() - rest.len() + start;
        let count = if run.len() > most { run.chars().count() } else { 0 };
        if count > most {
            let (end, _) = run.char_indices().nth(most / 2).expect("a run that is longer");
            cut += &text[done..at + end];
            cut += &format!("...({count} {what})");
            done = at + run.len();
        }
        rest = &text[at + run.len()..];
    }
    if done == 0 {
        return Cow::Borrowed(text);
    }
    cut += &text[done..];
    Cow::Owned(cut)
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

/// The settings that help may speak of, which faces have their own names for.
const SETTINGS: [&str; 23] = [
    "control",
    "control_model",
    "embedding",
    "guidance",
    "init",
    "lora",
    "mask",
    "mask_fit",
    "memory",
    "model",
    "ort",
    "prediction",
    "sampler",
    "schedule",
    "size",
    "steps",
    "text_encoder",
    "thresholding",
    "threads",
    "unet",
    "vae",
    "variant",
    "weights",
];

/// An error with its evidence. `Display` gives one line: "place: expected X, got Y", what caused it, each cause once, and the
/// way out where one is known.
///
/// ```
/// use calotype::{Error, ErrorKind};
/// let error = Error::new(ErrorKind::Usage, "steps: expected 1 to 1000, got 0").help("give {steps} of 20");
/// assert_eq!(error.kind().exit_code(), 2);
/// assert_eq!(error.to_string(), "steps: expected 1 to 1000, got 0; give `steps` of 20");
/// assert_eq!((error.place(), error.expected(), error.got()), (Some("steps"), Some("1 to 1000"), Some("0")));
/// // A face has its own name for a setting.
/// let told = error.message_with(|setting| format!("--{setting}"));
/// assert_eq!(told, "steps: expected 1 to 1000, got 0; give --steps of 20");
/// ```
pub struct Error(Box<Detail>);

struct Detail {
    kind: ErrorKind,
    message: String,
    help: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    file: Option<PathBuf>,
}

impl Error {
    /// A new error; `message` names the place, what was expected and what was found: `place: expected X, got Y`, where a
    /// place may have a place in it, `file: tensor NAME: expected X, got Y`. A tensor is `tensor NAME` or `weight NAME`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Detail { kind, message: message.into(), help: None, source: None, file: None }))
    }

    /// Adds the way out. A setting in it stands in braces, `{init}`; the face that shows the error replaces it by its own name.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.0.help = Some(help.into());
        self
    }

    /// Keeps the error that caused this one. Its text, and that of what caused it in turn, is part of `Display`, so that
    /// `std::error::Error::source` has nothing to add; [`Error::cause`] has it.
    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Adds the file that it is about, unless it or its cause names one already: callers know the folder of a model, the functions
    /// that they call know the file in it.
    #[must_use]
    pub fn in_file(mut self, path: impl Into<PathBuf>) -> Self {
        if self.file().is_none() {
            self.0.file = Some(path.into());
        }
        self
    }

    /// The stable kind.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The error that caused this one.
    pub fn cause(&self) -> Option<&(dyn std::error::Error + Send + Sync + 'static)> {
        self.0.source.as_deref()
    }

    /// Where it is: a setting, a file, a component, a tensor, or several of these, the outermost first, with a colon between.
    pub fn place(&self) -> Option<&str> {
        self.parts().map(|(place, ..)| place)
    }

    /// What would have been right.
    pub fn expected(&self) -> Option<&str> {
        self.parts().and_then(|(_, expected, _)| expected)
    }

    /// What was there instead.
    pub fn got(&self) -> Option<&str> {
        self.parts().and_then(|(.., got)| got)
    }

    /// The file, or the folder of a model, that it is about.
    pub fn file(&self) -> Option<&Path> {
        self.0.file.as_deref().or_else(|| self.own_cause()?.file())
    }

    /// The name of the tensor that it is about, as its file has it.
    pub fn tensor(&self) -> Option<&str> {
        const MISSING: &str = "expected a tensor ";
        let of = |part: &'_ str| {
            ["tensor ", "weight "].iter().find_map(|kind| part.strip_prefix(kind).map(str::len))
        };
        let message = &self.0.message;
        let mut parts = message.split(": ");
        let named = parts.find_map(|part| of(part).map(|len| &part[part.len() - len..]));
        let missing = || message.split_once(MISSING)?.1.split(", got ").next();
        named.or_else(missing).or_else(|| self.own_cause()?.tensor())
    }

    /// The component of the model that it is about, by its name in a bundle.
    pub fn component(&self) -> Option<&str> {
        const COMPONENTS: [&str; 9] = [
            "text_encoder",
            "text_encoder_2",
            "unet",
            "controlnet",
            "controlnet_2",
            "controlnet_3",
            "controlnet_4",
            "vae_encoder",
            "vae_decoder",
        ];
        self.place()?.split(": ").find(|part| COMPONENTS.contains(part))
    }

    /// The settings that the way out is about, as fields of a [`Recipe`](crate::recipe::Recipe), or options of a face.
    pub fn settings(&self) -> Vec<&'static str> {
        let mut settings: Vec<&'static str> = Vec::new();
        for setting in self.own_cause().map(Self::settings).unwrap_or_default() {
            settings.push(setting);
        }
        named(self.0.help.as_deref().unwrap_or_default(), |setting| {
            if !settings.contains(&setting) {
                settings.push(setting);
            }
            String::new()
        });
        settings
    }

    /// The way out, with a face's own names for settings.
    pub fn way_out_with(&self, name: impl Fn(&str) -> String) -> Option<String> {
        let own = self.0.help.as_deref().map(|help| shortened(&named(help, &name)).into_owned());
        own.or_else(|| self.own_cause()?.way_out_with(&name as &dyn Fn(&str) -> String))
    }

    /// Its text with a face's own names for settings.
    pub fn message_with(&self, name: impl Fn(&str) -> String) -> String {
        shortened(&self.text(&name)).into_owned()
    }

    /// What caused it, if that is an error of calotype's.
    fn own_cause(&self) -> Option<&Self> {
        self.0.source.as_deref()?.downcast_ref()
    }

    /// The message by its grammar: place, what was expected, what was got.
    fn parts(&self) -> Option<(&str, Option<&str>, Option<&str>)> {
        let Detail { message, source, .. } = &*self.0;
        let Some((place, rest)) = message.split_once(": expected ") else {
            // A place alone, around the error in it.
            return match self.own_cause().and_then(Self::parts) {
                Some((_, expected, got)) => Some((message, expected, got)),
                None if source.is_some() => Some((message, None, None)),
                None => message.split_once(": ").map(|(place, _)| (place, None, None)),
            };
        };
        match rest.split_once(", got ") {
            Some((expected, got)) => Some((place, Some(expected), Some(got))),
            None => Some((place, Some(rest), None)),
        }
    }

    fn text(&self, name: &dyn Fn(&str) -> String) -> String {
        let Detail { message, source, help, .. } = &*self.0;
        let mut text = message.clone();
        let mut next = source.as_deref().map(|source| source as &(dyn std::error::Error + 'static));
        while let Some(cause) = next {
            let ours = cause.downcast_ref::<Self>();
            let said = ours.map_or_else(|| cause.to_string(), |error| error.text(name));
            // Some errors say what caused them, and have it as a cause as well.
            if !said.is_empty() && !text.ends_with(&said) && !text.contains(&format!(": {said}")) {
                text += &format!(": {said}");
            }
            next = if ours.is_some() { None } else { cause.source() };
        }
        if let Some(help) = help {
            text += &format!("; {}", named(help, name));
        }
        text
    }
}

/// Help with names in the place of its settings.
pub(crate) fn named(help: &str, mut name: impl FnMut(&'static str) -> String) -> String {
    let mut text = String::new();
    let mut rest = help;
    while let Some((before, behind)) = rest.split_once('{') {
        text += before;
        let setting = behind.split_once('}').and_then(|(setting, behind)| {
            Some((SETTINGS.into_iter().find(|known| *known == setting)?, behind))
        });
        rest = match setting {
            Some((setting, behind)) => {
                text += &name(setting);
                behind
            }
            None => {
                text.push('{');
                behind
            }
        };
    }
    text + rest
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message_with(|setting| format!("`{setting}`")))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a face that prints an error and all that caused it says.
    fn chain(error: &Error) -> String {
        let mut text = error.to_string();
        let mut next = std::error::Error::source(error);
        while let Some(cause) = next {
            text += &format!(": {cause}");
            next = cause.source();
        }
        text
    }

    #[test]
    fn every_cause_is_said_once() {
        let cause = || std::io::Error::other("the disk is gone");
        let one = Error::new(ErrorKind::Output, "x.png").source(cause());
        assert_eq!(chain(&one), "x.png: the disk is gone");
        let nested = Error::new(ErrorKind::Output, "image").source(one).help("try again");
        assert_eq!(chain(&nested), "image: x.png: the disk is gone; try again");
        // A cause that leaves its own cause to the chain.
        #[derive(Debug)]
        struct Outer(std::io::Error);
        impl fmt::Display for Outer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("outer")
            }
        }
        impl std::error::Error for Outer {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }
        let foreign = Error::new(ErrorKind::Output, "x.png").source(Outer(cause()));
        assert_eq!(chain(&foreign), "x.png: outer: the disk is gone");
        assert_eq!(foreign.to_string(), "x.png: outer: the disk is gone");
        assert!(foreign.cause().is_some_and(|cause| cause.is::<Outer>()));
        // One that says its own cause, which is one as well.
        #[derive(Debug)]
        struct Both(std::io::Error);
        impl fmt::Display for Both {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "both: {}", self.0)
            }
        }
        impl std::error::Error for Both {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }
        let foreign = Error::new(ErrorKind::Output, "x.png").source(Both(cause()));
        assert_eq!(chain(&foreign), "x.png: both: the disk is gone");
    }

    #[test]
    fn the_parts_of_a_message_are_known() {
        type Parts = (Option<&'static str>, Option<&'static str>, Option<&'static str>);
        let cases: [(&str, Parts); 6] = [
            ("steps: expected 1, got 0", (Some("steps"), Some("1"), Some("0"))),
            (
                "x.json: a.b: expected c: d, got e, got f",
                (Some("x.json: a.b"), Some("c: d"), Some("e, got f")),
            ),
            ("x.png: expected a file", (Some("x.png"), Some("a file"), None)),
            ("x.png: the image could not be written", (Some("x.png"), None, None)),
            ("stopped", (None, None, None)),
            ("", (None, None, None)),
        ];
        for (message, parts) in cases {
            let error = Error::new(ErrorKind::Usage, message);
            assert_eq!((error.place(), error.expected(), error.got()), parts, "{message}");
        }
        let tensor = Error::new(ErrorKind::Model, "unet: conv_in.weight: expected f32, got i8");
        assert_eq!(tensor.component(), Some("unet"));
        let outer = Error::new(ErrorKind::Model, "model/unet.onnx").source(tensor);
        assert_eq!((outer.place(), outer.got()), (Some("model/unet.onnx"), Some("i8")));
    }

    #[test]
    fn tensors_and_files_are_known() {
        for (message, tensor) in [
            ("m.gguf: tensor a.b: expected F16, got Q9", Some("a.b")),
            ("unet: weight conv_in.bias: expected shape [4], got [3]", Some("conv_in.bias")),
            ("m.safetensors: expected a tensor a.weight, got none", Some("a.weight")),
            ("m.safetensors: expected a tensor, got none", None),
            ("my tensor file: expected JSON, got text", None),
        ] {
            let error = Error::new(ErrorKind::Model, message);
            assert_eq!((error.tensor(), error.file()), (tensor, None), "{message}");
            let outer =
                Error::new(ErrorKind::Model, "model").source(error.in_file("m/x: y.gguf")).in_file("m");
            assert_eq!((outer.tensor(), outer.file()), (tensor, Some(Path::new("m/x: y.gguf"))), "{message}");
            assert!(!outer.to_string().contains("x: y"), "{outer}");
        }
    }

    #[test]
    fn settings_have_the_names_of_the_face() {
        let inner =
            Error::new(ErrorKind::Usage, "mask: expected one, got none").help("give {mask}, or {init}");
        let error =
            Error::new(ErrorKind::Usage, "request").source(inner).help("not {this} {size {steps}} or {mask}");
        assert_eq!(error.settings(), ["mask", "init", "steps"]);
        assert_eq!(
            error.message_with(|setting| format!("--{setting}")),
            "request: mask: expected one, got none; give --mask, or --init; not {this} {size --steps} or --mask"
        );
        assert!(error.to_string().contains("give `mask`, or `init`;"), "{error}");
    }

    #[test]
    fn what_is_long_is_cut_and_counted() {
        for short in
            ["", "got 1.5", &"9".repeat(MAX_DIGITS), &"a/b".repeat(MAX_WORD / 3), &"a b ".repeat(900)]
        {
            assert_eq!(shortened(short), short);
        }
        let number = format!("expected 1, got {}", 1e300);
        assert_eq!(shortened(&number), "expected 1, got 100000000000...(301 digits)");
        let word = format!("got {:?}; try x", "é".repeat(5000));
        let shown = shortened(&word);
        assert!(shown.starts_with("got \"éé") && shown.ends_with("é...(5003 characters) try x"), "{shown}");
        let text = format!("{} the end", "words and ".repeat(100_000));
        let shown = shortened(&text);
        assert!(shown.chars().count() < MAX_MESSAGE + 40 && shown.ends_with(" the end"), "{shown}");
        let error = Error::new(ErrorKind::Usage, format!("steps: got {}", "7".repeat(400)));
        assert_eq!(error.to_string(), "steps: got 777777777777...(400 digits)");
    }
}
