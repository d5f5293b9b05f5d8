//! One network's tensors in a file, and the table that gives them the names of diffusers' folders.
//! It knows nothing of which network it is.

use std::collections::BTreeSet;
use std::ops::Bound;

use super::Names;
use crate::weights::{Stored, TensorView, Weights};
use crate::{Error, ErrorKind};

/// How many tensors a message names.
const SHOWN: usize = 3;
/// How much of a tensor's name a message shows.
const SHOWN_CHARS: usize = 100;

/// The tensors of a file whose names have a prefix, which is left out everywhere here.
pub(super) struct Source<'a> {
    weights: &'a Weights,
    /// The file and the network, for messages.
    place: String,
    prefix: &'a str,
    names: BTreeSet<&'a str>,
}

impl<'a> Source<'a> {
    pub(super) fn new(weights: &'a Weights, place: String, prefix: &'a str) -> Self {
        let names = weights.iter().filter_map(|(name, _)| name.strip_prefix(prefix)).collect();
        Self { weights, place, prefix, names }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    pub(super) fn has_any(&self, start: &str) -> bool {
        self.starting(start).next().is_some()
    }

    pub(super) fn get(&self, name: &str) -> Result<TensorView<'a>, Error> {
        let full = format!("{}{name}", self.prefix);
        self.weights.get(&full).ok_or_else(|| match self.unreadable(name) {
            Some(reason) => self.refuse(format!("tensor {name}: {reason}")),
            None => self.refuse(format!("expected a tensor {name}, got none")).help(NOT_WHOLE),
        })
    }

    /// The size of a tensor along one of its axes, of which it must have as many as `ranks` says.
    pub(super) fn size(&self, name: &str, ranks: &[usize], axis: usize) -> Result<usize, Error> {
        let shape = self.get(name)?.shape();
        if ranks.contains(&shape.len()) {
            Ok(shape[axis])
        } else {
            Err(self.refuse(format!("{name}: expected {} dimensions, got shape {shape:?}", ranks[0])))
        }
    }

    /// The length of a list of which each item has tensors: `list` is what stands before the items' numbers.
    pub(super) fn count(&self, list: &str) -> Result<usize, Error> {
        let number = |name: &'a str| name[list.len()..].split('.').next()?.parse::<usize>().ok();
        let numbers: BTreeSet<usize> = self.starting(list).filter_map(number).collect();
        match (0..numbers.len()).find(|number| !numbers.contains(number)) {
            None => Ok(numbers.len()),
            Some(gap) => Err(self
                .refuse(format!(
                    "expected {} of {list}0, {list}1 and so on, got no {list}{gap} but {list}{}",
                    numbers.len(),
                    numbers.last().unwrap_or(&0)
                ))
                .help(NOT_WHOLE)),
        }
    }

    /// The first few names, for a message.
    pub(super) fn described(&self) -> String {
        listed(self.names.iter().copied())
    }

    /// Why a tensor that the file has cannot be used.
    fn unreadable(&self, name: &str) -> Option<&'a str> {
        self.weights.unreadable(&format!("{}{name}", self.prefix))
    }

    pub(super) fn refuse(&self, problem: String) -> Error {
        Error::new(ErrorKind::Model, format!("{}: {problem}", self.place))
    }

    fn starting(&self, start: &str) -> impl Iterator<Item = &'a str> {
        self.names
            .range::<str, _>((Bound::Included(start), Bound::Unbounded))
            .copied()
            .take_while(move |name| name.starts_with(start))
    }
}

const NOT_WHOLE: &str =
    "the file is incomplete or of an unsupported kind: download it again, or use another one";

/// The table of one network in the making.
pub(super) struct Table<'s, 'a> {
    source: &'s Source<'a>,
    names: Names,
    left: BTreeSet<&'a str>,
    missing: Vec<String>,
}

impl<'s, 'a> Table<'s, 'a> {
    pub(super) fn new(source: &'s Source<'a>) -> Self {
        Self { source, names: Names::new(), left: source.names.clone(), missing: Vec::new() }
    }

    /// The weight and the bias of a layer.
    pub(super) fn layer(&mut self, name: &str, original: &str) {
        self.tensor(&format!("{name}.weight"), &format!("{original}.weight"));
        self.tensor(&format!("{name}.bias"), &format!("{original}.bias"));
    }

    /// A tensor as it is stored.
    pub(super) fn tensor(&mut self, name: &str, original: &str) {
        self.add(name, original, |_| {});
    }

    /// A matrix that is stored as `[in, out]`.
    pub(super) fn transposed(&mut self, name: &str, original: &str) {
        self.add(name, original, |stored| stored.transposed = true);
    }

    /// The rows of three tensors of `rows` rows each that are stored one after the other.
    pub(super) fn thirds(&mut self, names: [&str; 3], original: &str, rows: usize) -> Result<(), Error> {
        for (name, third) in names.into_iter().zip(0..) {
            self.add(name, original, |stored| stored.rows = Some(third * rows..(third + 1) * rows));
        }
        if self.source.has(original) {
            let shape = self.source.get(original)?.shape();
            if shape.first() != Some(&(3 * rows)) {
                return Err(self
                    .source
                    .refuse(format!("{original}: expected 3 x {rows} rows, got shape {shape:?}")));
            }
        }
        Ok(())
    }

    /// Tensors with such names may be there and mean nothing.
    pub(super) fn ignore(&mut self, is_ignored: impl Fn(&str) -> bool) {
        self.left.retain(|name| !is_ignored(name));
    }

    /// The table, if all tensors were there, and no others.
    pub(super) fn finish(self) -> Result<Names, Error> {
        if let Some((name, reason)) =
            self.missing.iter().find_map(|name| Some((name, self.source.unreadable(name)?)))
        {
            return Err(self.source.refuse(format!("tensor {name}: {reason}")));
        }
        if !self.missing.is_empty() {
            let count = self.missing.len();
            let names = listed(self.missing.iter().map(String::as_str));
            let expected = self.names.len();
            return Err(self
                .source
                .refuse(format!("expected {expected} tensors, but {count} are missing, such as {names}"))
                .help(NOT_WHOLE));
        }
        if !self.left.is_empty() {
            let names = listed(self.left.iter().copied());
            return Err(self
                .source
                .refuse(format!(
                    "expected {} tensors, got {} others too, such as {names}",
                    self.names.len(),
                    self.left.len()
                ))
                .help("unsupported variant: results without them would be wrong"));
        }
        Ok(self.names)
    }

    fn add(&mut self, name: &str, original: &str, change: impl FnOnce(&mut Stored)) {
        if !self.source.has(original) {
            self.missing.push(original.to_owned());
        }
        self.left.remove(original);
        let mut stored = Stored::whole(format!("{}{original}", self.source.prefix));
        change(&mut stored);
        self.names.insert(name.to_owned(), stored);
    }
}

/// The first few of some names, for a message.
pub(super) fn listed<'n>(names: impl Iterator<Item = &'n str>) -> String {
    names.take(SHOWN).map(shortened).collect::<Vec<_>>().join(", ")
}

/// A name from a file, cut where it is absurdly long.
fn shortened(name: &str) -> String {
    match name.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}
