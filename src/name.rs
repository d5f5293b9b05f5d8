//! Names that people type, with settings behind a colon: `name:setting=value,setting=value`. Names are read whatever
//! their case, spaces and punctuation, and where unknown the nearest is found. It knows nothing of what is named.

use std::str::FromStr;

use crate::{Error, ErrorKind};

/// How many letters a name may be away to be suggested, at most and for its length: one, and one more for every third letter.
const MAX_DISTANCE: usize = 2;
const LETTERS_PER_EDIT: usize = 3;
/// The longest name that is worth a suggestion.
const MAX_SUGGESTED_LEN: usize = 32;

/// A name without case, spaces and punctuation; `++` reads as `pp`.
pub(crate) fn bare(name: &str) -> String {
    name.to_lowercase().replace("++", "pp").chars().filter(|c| c.is_alphanumeric()).collect()
}

/// Which of some names is nearest to one that was typed, unless that is endless.
pub(crate) fn nearest<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let typed = bare(typed);
    if typed.len() >= MAX_SUGGESTED_LEN {
        return None;
    }
    let near = names
        .map(|name| (strsim::osa_distance(&bare(name), &typed), name))
        .min_by_key(|(distance, _)| *distance);
    let most = (typed.chars().count() / LETTERS_PER_EDIT).clamp(1, MAX_DISTANCE);
    near.filter(|(distance, _)| *distance <= most).map(|(_, name)| name)
}

/// The error for a name that none of these is; `what` they name.
pub(crate) fn unknown<'a>(
    what: &str,
    names: impl IntoIterator<Item = &'a str> + Clone,
    typed: &str,
) -> Error {
    let known = names.clone().into_iter().collect::<Vec<_>>().join(", ");
    let error = Error::new(ErrorKind::Usage, format!("{what}: expected one of {known}, got {typed:?}"));
    match nearest(typed, names.into_iter()) {
        Some(name) => error.help(format!("did you mean {name}?")),
        None => error,
    }
}

/// A name and the settings behind it.
pub(crate) fn settings(text: &str) -> (&str, impl Iterator<Item = Setting<'_>>) {
    let (name, settings) = text.split_once(':').unwrap_or((text, ""));
    (name, each_setting(settings))
}

/// The settings of a text that is no more than these.
pub(crate) fn each_setting(text: &str) -> impl Iterator<Item = Setting<'_>> {
    text.split(',').filter(|setting| !setting.trim().is_empty()).map(|setting| {
        let (name, value) = setting.split_once('=').unwrap_or((setting, ""));
        Setting { name: name.trim(), value: value.trim() }
    })
}

/// The text that [`settings`] takes apart.
pub(crate) fn with_settings(name: &str, settings: &[(&str, String)]) -> String {
    let settings: Vec<String> = settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if settings.is_empty() { name.to_owned() } else { format!("{name}:{}", settings.join(",")) }
}

/// A setting as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setting<'a> {
    pub(crate) name: &'a str,
    pub(crate) value: &'a str,
}

impl Setting<'_> {
    /// Its value, a number; [`ErrorKind::Usage`] for anything else, of `what` it is a setting.
    pub(crate) fn read<T: FromStr>(self, what: &str) -> Result<T, Error> {
        self.value.parse().map_err(|_| self.refused(what, "a number"))
    }

    /// Its value, one of these; [`ErrorKind::Usage`] for any other.
    pub(crate) fn choose<T: Copy, const N: usize>(
        self,
        what: &str,
        choices: [(&str, T); N],
    ) -> Result<T, Error> {
        let chosen = choices.iter().find(|(name, _)| *name == self.value);
        let names = || choices.map(|(name, _)| name).join(" or ");
        chosen.map(|(_, value)| *value).ok_or_else(|| self.refused(what, &names()))
    }

    /// The error for a value that it cannot have.
    pub(crate) fn refused(self, what: &str, expected: &str) -> Error {
        let Self { name, value } = self;
        Error::new(ErrorKind::Usage, format!("{what}: {name}: expected {expected}, got {value:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_they_are_written() {
        let (name, read) = settings("a b: x = 1 ,, y=2=3,z");
        let read: Vec<(&str, &str)> = read.map(|Setting { name, value }| (name, value)).collect();
        assert_eq!((name, &read[..]), ("a b", &[("x", "1"), ("y", "2=3"), ("z", "")][..]));
        assert_eq!(with_settings("a", &[("x", "1".into()), ("y", "2".into())]), "a:x=1,y=2");
        assert_eq!((settings("a").1.count(), with_settings("a", &[])), (0, "a".into()));
    }

    #[test]
    fn values_that_are_none_are_refused_with_their_place() {
        let setting = Setting { name: "x", value: "one" };
        let error = setting.read::<f64>("thing").expect_err("no number");
        assert_eq!(error.to_string(), "thing: x: expected a number, got \"one\"");
        let error = setting.choose("thing", [("a", 1), ("b", 2)]).expect_err("no choice");
        assert_eq!(error.to_string(), "thing: x: expected a or b, got \"one\"");
        assert_eq!(Setting { name: "x", value: "b" }.choose("thing", [("a", 1), ("b", 2)]).unwrap(), 2);
        let error = unknown("thing", ["sitting", "kitten"], "Kitte");
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert_eq!(
            error.to_string(),
            "thing: expected one of sitting, kitten, got \"Kitte\"; did you mean kitten?"
        );
    }

    #[test]
    fn only_near_names_are_suggested() {
        let near = |typed| nearest(typed, ["sitting", "kitten", "cfg"].into_iter());
        for (typed, name) in [("Kitte n", "kitten"), ("kiten", "kitten"), ("cgf", "cfg"), ("cf", "cfg")] {
            assert_eq!(near(typed), Some(name), "{typed}");
        }
        for typed in ["cat", "mitts", "x", ""] {
            assert_eq!(near(typed), None, "{typed}");
        }
        assert_eq!(nearest(&"k".repeat(1 << 20), ["kitten"].into_iter()), None);
    }
}
