//! Settings of samplers: the values that each may have, its default and its help, and those of one method.
//! It knows no sampler: a setting is declared by the sampler that has it; those that several have are here.

use std::fmt;

use crate::name::Setting as Typed;
use crate::{Error, ErrorKind};

/// A setting that samplers may have, with values of one type.
///
/// ```
/// use calotype::sampler::{ETA, Method, SamplerKind};
/// let method = Method::from(SamplerKind::Ddim).with(&ETA, 0.5)?;
/// assert_eq!((method.get(&ETA), method.to_string().as_str()), (0.5, "ddim:eta=0.5"));
/// assert!(method.with(&ETA, 1.5).is_err());
/// # Ok::<(), calotype::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Setting<T: SettingValue> {
    /// Its name in texts.
    pub name: &'static str,
    /// The value where none is given.
    pub default: T,
    /// The values that it may have.
    pub range: T::Range,
    /// What it does, in a sentence for users.
    pub help: &'static str,
}

/// The type of a setting: a number, a whole number or one of a few words.
pub trait SettingValue: Copy + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// What says which values a setting may have.
    type Range: Copy + fmt::Debug + Send + Sync + 'static;

    /// The value as settings of every type are kept.
    fn to_value(self) -> Value;

    /// The value of a setting of this type; `None` for one of another type.
    fn from_value(value: Value) -> Option<Self>;

    /// Reads a value; `None` for a text that is none.
    fn read(text: &str) -> Option<Self>;

    /// Whether a setting of this range may have it.
    fn is_within(self, range: &Self::Range) -> bool;

    /// The values of this range, for messages and tables.
    fn expected(range: &Self::Range) -> String;
}

/// The numbers that a setting may have.
#[derive(Clone, Copy, Debug)]
pub struct NumberRange {
    /// The lowest.
    pub low: f64,
    /// The highest.
    pub high: f64,
    /// These, in words.
    pub words: &'static str,
}

impl SettingValue for f64 {
    type Range = NumberRange;

    fn to_value(self) -> Value {
        Value::Number(self)
    }

    fn from_value(value: Value) -> Option<Self> {
        if let Value::Number(number) = value { Some(number) } else { None }
    }

    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn is_within(self, range: &NumberRange) -> bool {
        (range.low..=range.high).contains(&self)
    }

    fn expected(range: &NumberRange) -> String {
        range.words.into()
    }
}

/// From 1 up to the range.
impl SettingValue for usize {
    type Range = usize;

    fn to_value(self) -> Value {
        Value::Count(self)
    }

    fn from_value(value: Value) -> Option<Self> {
        if let Value::Count(count) = value { Some(count) } else { None }
    }

    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn is_within(self, highest: &usize) -> bool {
        (1..=*highest).contains(&self)
    }

    fn expected(highest: &usize) -> String {
        format!("1 to {highest}")
    }
}

/// A type with one word for each of its values.
pub trait Choice: Copy + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// Every value and its word.
    const WORDS: &'static [(&'static str, Self)];
}

impl<T: Choice> SettingValue for T {
    type Range = ();

    fn to_value(self) -> Value {
        let word = T::WORDS.iter().find(|(_, value)| *value == self);
        Value::Word(word.map(|(word, _)| *word).unwrap_or_default())
    }

    fn from_value(value: Value) -> Option<Self> {
        if let Value::Word(word) = value { Self::read(word) } else { None }
    }

    fn read(text: &str) -> Option<Self> {
        T::WORDS.iter().find(|(word, _)| *word == text).map(|(_, value)| *value)
    }

    fn is_within(self, (): &()) -> bool {
        true
    }

    fn expected((): &()) -> String {
        T::WORDS.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(" or ")
    }
}

impl Choice for bool {
    const WORDS: &'static [(&'static str, Self)] = &[("on", true), ("off", false)];
}

/// A value of a setting of any type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// A number.
    Number(f64),
    /// A whole number.
    Count(usize),
    /// One of a few words.
    Word(&'static str),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Count(count) => count.fmt(f),
            Self::Word(word) => f.pad(word),
        }
    }
}

/// A setting of any type.
pub trait AnySetting: Send + Sync + 'static {
    /// Its name.
    fn name(&self) -> &'static str;

    /// Its default.
    fn default(&self) -> Value;

    /// The values that it may have, in words.
    fn expected(&self) -> String;

    /// What it does.
    fn help(&self) -> &'static str;

    /// Reads a value that it may have; `None` for any other text.
    fn read(&self, text: &str) -> Option<Value>;

    /// Whether it may have this value.
    fn accepts(&self, value: Value) -> bool;
}

impl<T: SettingValue> AnySetting for Setting<T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn default(&self) -> Value {
        self.default.to_value()
    }

    fn expected(&self) -> String {
        T::expected(&self.range)
    }

    fn help(&self) -> &'static str {
        self.help
    }

    fn read(&self, text: &str) -> Option<Value> {
        T::read(text).filter(|value| value.is_within(&self.range)).map(T::to_value)
    }

    fn accepts(&self, value: Value) -> bool {
        T::from_value(value).is_some_and(|value| value.is_within(&self.range))
    }
}

/// The settings that a row declares.
pub(super) type Declared = &'static [&'static dyn AnySetting];

/// The most settings that a sampler may have: room for all of them is in every [`Settings`], which is `Copy`.
const MAX_SETTINGS: usize = 8;

/// The settings of a method, all with a value.
#[derive(Clone, Copy)]
pub(super) struct Settings {
    /// Those that users may set.
    declared: Declared,
    /// Those with a value that belongs to the sampler.
    fixed: Declared,
    /// Of each that is declared, in this order.
    values: [Value; MAX_SETTINGS],
}

impl Settings {
    /// The defaults.
    pub(super) fn new(declared: Declared, fixed: Declared) -> Self {
        assert!(declared.len() <= MAX_SETTINGS, "a sampler has {} settings", declared.len());
        let value = |at: usize| declared.get(at).map_or(Value::Count(0), |setting| setting.default());
        Self { declared, fixed, values: std::array::from_fn(value) }
    }

    /// The value of a setting; where the sampler does not have it, the setting's own default.
    pub(super) fn get<T: SettingValue>(&self, setting: &Setting<T>) -> T {
        let is_asked = |any: &&dyn AnySetting| any.name() == setting.name;
        let set = self.declared.iter().position(is_asked).map(|at| self.values[at]);
        let value = set.or_else(|| self.fixed.iter().find(|any| is_asked(any)).map(|any| any.default()));
        value.and_then(T::from_value).unwrap_or(setting.default)
    }

    /// Sets one; [`ErrorKind::Usage`], of `what` they are the settings, where it is not declared or cannot have this value.
    pub(super) fn set<T: SettingValue>(
        &mut self,
        what: &str,
        setting: &Setting<T>,
        value: T,
    ) -> Result<(), Error> {
        let value = value.to_value();
        let at = self.place(what, setting.name)?;
        if !self.declared[at].accepts(value) {
            let value = value.to_string();
            let typed = Typed { name: setting.name, value: &value };
            return Err(typed.refused(what, &self.declared[at].expected()));
        }
        self.values[at] = value;
        Ok(())
    }

    /// Sets one as it was typed; the errors are those of [`Settings::set`].
    pub(super) fn read(&mut self, what: &str, typed: Typed<'_>) -> Result<(), Error> {
        let at = self.place(what, typed.name)?;
        let setting = self.declared[at];
        self.values[at] =
            setting.read(typed.value).ok_or_else(|| typed.refused(what, &setting.expected()))?;
        Ok(())
    }

    fn place(&self, what: &str, name: &str) -> Result<usize, Error> {
        let place = self.declared.iter().position(|setting| setting.name() == name);
        place.ok_or_else(|| {
            let names = self.declared.iter().map(|setting| setting.name()).collect::<Vec<_>>().join(", ");
            let expected =
                if names.is_empty() { "no settings".into() } else { format!("settings of {names}") };
            Error::new(ErrorKind::Usage, format!("{what}: expected {expected}, got {name:?}"))
        })
    }

    /// Those that are not at their default, as text.
    pub(super) fn changed(&self) -> Vec<(&'static str, String)> {
        let all = self.declared.iter().zip(self.values);
        let changed = all.filter(|(setting, value)| setting.default() != *value);
        changed.map(|(setting, value)| (setting.name(), value.to_string())).collect()
    }
}

/// Settings are compared within one sampler.
impl PartialEq for Settings {
    fn eq(&self, other: &Self) -> bool {
        self.values == other.values
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.declared.iter().zip(&self.values);
        f.debug_map().entries(all.map(|(setting, value)| (setting.name(), value))).finish()
    }
}

/// The share of the noise that a step takes away that is replaced by fresh noise: 0 none, 1 all. TCD's gamma.
pub const ETA: Setting<f64> = Setting {
    name: "eta",
    default: 0.0,
    range: NumberRange { low: 0.0, high: 1.0, words: "a number from 0 to 1" },
    help: "fraction of the removed noise that is replaced by new noise",
};

/// The factor of all fresh noise; 1 is right, and a little more, 1.003, makes up for detail that models lose.
pub const S_NOISE: Setting<f64> = Setting {
    name: "s_noise",
    default: 1.0,
    range: NumberRange { low: 0.0, high: 10.0, words: "a number from 0 up, at most 10" },
    help: "multiplier of the added noise; 1 is exact",
};

/// The order, where a sampler has several. Its range is the highest.
pub const ORDER: Setting<usize> = Setting {
    name: "order",
    default: 1,
    range: 1,
    help: "order of the method: number of model outputs used, including the current step's",
};

/// Whether in runs of fewer than 15 steps the last step is of first order and the one before of second at most; UniPC's
/// are in runs of any length.
pub const LOWER_FINAL: Setting<bool> = Setting {
    name: "lower_final",
    default: true,
    range: (),
    help: "in runs of fewer than 15 steps (UniPC: of any length) the last step is of first order and the one before of second at most",
};

/// Where the fresh noise of steps comes from.
pub const STEP_NOISE: Setting<StepNoiseKind> = Setting {
    name: "noise",
    default: StepNoiseKind::Stream,
    range: (),
    help: "stream: next values of the seed's generator, as in diffusers; tree: a Brownian tree, as in k-diffusion, the same for any number of steps",
};

/// Where the fresh noise of steps comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StepNoiseKind {
    /// The next values of the generator that the run started from, as in diffusers.
    Stream,
    /// A Brownian tree of the run's seed, which is the same for any number of steps, as in k-diffusion.
    Tree,
}

impl Choice for StepNoiseKind {
    const WORDS: &'static [(&'static str, Self)] = &[("stream", Self::Stream), ("tree", Self::Tree)];
}

/// [`ETA`] of ancestral methods, which replace all of the noise.
pub(super) const ALL_ETA: Setting<f64> = Setting { default: 1.0, ..ETA };
/// [`STEP_NOISE`] of k-diffusion's stochastic solvers.
pub(super) const TREE: Setting<StepNoiseKind> = Setting { default: StepNoiseKind::Tree, ..STEP_NOISE };
/// Those of ancestral methods.
pub(super) const ANCESTRAL: Declared = &[&ALL_ETA, &S_NOISE, &STEP_NOISE];
