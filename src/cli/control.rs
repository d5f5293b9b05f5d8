//! `--control` and `--control-model`: what was typed of control images and networks, as fields of a recipe.

use std::path::PathBuf;

use calotype::control::Steering;
use calotype::recipe::{ControlImage, Image, NamedControlModel, NamedFile, Recipe};
use calotype::{Error, ErrorKind};
use clap::Args;

/// How a control image steers, after its file.
const SETTINGS: [&str; 5] = ["weight", "start", "end", "mode", "annotate"];

/// Control images and the networks that they are for.
#[derive(Args, Clone, Default)]
pub(super) struct Control {
    /// A control image (ControlNet, T2I-Adapter), as in `canny=edges.png:weight=0.8:start=0:end=0.5:mode=balanced`; repeatable. KIND is that of
    /// a --control-model. `start` and `end` are parts of the steps. Modes: balanced (the default), prompt ("My prompt is more
    /// important"), control ("ControlNet is more important"), guess (diffusers' guess mode). `annotate=canny` or
    /// `annotate=canny,100,200` makes the edges of an ordinary image (the thresholds of OpenCV).
    #[arg(long, value_name = "KIND=IMAGE[:..]")]
    control: Vec<String>,
    #[command(flatten)]
    models: ControlModels,
}

/// Control networks.
#[derive(Args, Clone, Default)]
pub(super) struct ControlModels {
    /// A ControlNet or T2I-Adapter, as in `canny=control_v11p_sd15_canny.safetensors`: a diffusers folder or a file; repeatable.
    /// Use one of the model's family.
    #[arg(long, value_name = "KIND=FILE")]
    control_model: Vec<String>,
}

impl ControlModels {
    /// Sets in a recipe what was typed.
    pub(super) fn apply(&self, recipe: &mut Recipe) -> Result<(), Error> {
        if !self.control_model.is_empty() {
            recipe.control_model =
                self.control_model.iter().map(|typed| model(typed)).collect::<Result<_, _>>()?;
        }
        Ok(())
    }
}

impl Control {
    /// Sets in a recipe what was typed.
    pub(super) fn apply(&self, recipe: &mut Recipe) -> Result<(), Error> {
        self.models.apply(recipe)?;
        if !self.control.is_empty() {
            recipe.control = self.control.iter().map(|typed| image(typed)).collect::<Result<_, _>>()?;
        }
        Ok(())
    }
}

/// `KIND=REST`.
fn kind<'t>(flag: &str, form: &str, typed: &'t str) -> Result<(&'t str, &'t str), Error> {
    typed.split_once('=').filter(|(kind, rest)| !kind.is_empty() && !rest.is_empty()).ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("{flag}: expected {form}, got {typed:?}"))
            .help("KIND is a name for what the image shows, as in canny=edges.png")
    })
}

fn model(typed: &str) -> Result<NamedControlModel, Error> {
    let (kind, path) = kind("--control-model", "KIND=FILE", typed)?;
    Ok(NamedControlModel { kind: kind.to_owned(), file: PathBuf::from(path).into() })
}

fn image(typed: &str) -> Result<ControlImage, Error> {
    let (kind, mut path) = kind("--control", "KIND=IMAGE", typed)?;
    let refuse = |message: String| Error::new(ErrorKind::Usage, format!("--control: {message}"));
    let (mut steering, mut annotate) = (Steering::default(), None);
    let mut seen = Vec::new();
    // From the end: a path may have colons of its own.
    let is_word = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphabetic());
    while let Some((rest, (name, value))) = path
        .rsplit_once(':')
        .and_then(|(rest, setting)| Some((rest, setting.split_once('=').filter(|(name, _)| is_word(name))?)))
    {
        if !SETTINGS.contains(&name) {
            if PathBuf::from(path).exists() {
                break;
            }
            return Err(refuse(format!("expected one of {}, got {name:?}", SETTINGS.join(", "))));
        }
        if seen.contains(&name) {
            return Err(refuse(format!("{name}: expected one, got two")));
        }
        seen.push(name);
        let number =
            || value.parse::<f64>().map_err(|_| refuse(format!("{name}: expected a number, got {value:?}")));
        match name {
            "weight" => steering.weight = number()?,
            "start" => steering.start = number()?,
            "end" => steering.end = number()?,
            "annotate" => annotate = Some(value.parse()?),
            _ => steering.mode = value.parse()?,
        }
        path = rest;
    }
    let image = Image::Named(NamedFile::from(PathBuf::from(path)));
    Ok(ControlImage { kind: kind.to_owned(), image, annotate, steering: steering.checked()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(typed: &str) -> (String, String, Steering) {
        let ControlImage { kind, image, steering, .. } = image(typed).expect(typed);
        let path = image.named().and_then(|file| file.path.clone()).expect("a path");
        (kind, path.display().to_string(), steering)
    }

    #[test]
    fn images_and_how_they_steer() {
        let usual = Steering::default();
        assert_eq!(parsed("canny=a.png"), ("canny".into(), "a.png".into(), usual));
        let (_, path, steering) = parsed("depth=C:\\a=b\\c.png:weight=-0.5:mode=guess:start=0.25:end=0.5");
        assert_eq!(path, "C:\\a=b\\c.png");
        let expected =
            Steering { weight: -0.5, start: 0.25, end: 0.5, mode: "guess".parse().expect("a mode") };
        assert_eq!(steering, expected);
    }

    #[test]
    fn what_is_typed_wrong_is_refused() {
        for (typed, expected) in [
            ("a.png", "--control: expected KIND=IMAGE, got \"a.png\""),
            ("=a.png", "--control: expected KIND=IMAGE"),
            ("canny=", "--control: expected KIND=IMAGE"),
            (
                "canny=a.png:wieght=1",
                "--control: expected one of weight, start, end, mode, annotate, got \"wieght\"",
            ),
            ("canny=a.png:weight=1:weight=2", "--control: weight: expected one, got two"),
            ("canny=a.png:weight=much", "--control: weight: expected a number, got \"much\""),
            ("canny=a.png:weight=nan", "control: weight: expected a number from -10 to 10, got NaN"),
            ("canny=a.png:weight=1e9", "control: weight: expected a number from -10 to 10, got 1000000000"),
            ("canny=a.png:start=0.6:end=0.4", "control: start: expected one up to its end, 0.4, got 0.6"),
            ("canny=a.png:annotate=depth", "annotate: expected canny, or canny,LOW,HIGH, got \"depth\""),
            ("canny=a.png:mode=strict", "control mode: expected one of balanced"),
        ] {
            let error = image(typed).expect_err(typed);
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.to_string().starts_with(expected), "{typed}: {error}");
        }
        let error = model("canny").expect_err("no file");
        assert!(
            error.to_string().starts_with("--control-model: expected KIND=FILE, got \"canny\""),
            "{error}"
        );
    }
}
