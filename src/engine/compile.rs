//! What providers compile before they run a graph: the folders where it is kept, and how long it takes.
//! It knows nothing of what is compiled.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::{Error, ErrorKind};

/// A component that is being compiled, or is.
#[derive(Clone, Copy, Debug)]
pub struct Compiling<'a> {
    /// Its name.
    pub component: &'a str,
    /// Its provider's name in ONNX Runtime.
    pub provider: &'a str,
    /// How long the last one took, where one is remembered.
    pub estimate: Option<Duration>,
    /// How long it took; nothing while it goes on.
    pub took: Option<Duration>,
}

/// Who is told when a component begins to be compiled, and when it is.
#[derive(Clone)]
pub struct Watch(Arc<dyn Fn(Compiling<'_>) + Send + Sync>);

impl Watch {
    /// Calls this.
    pub fn new(watch: impl Fn(Compiling<'_>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(watch))
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}

/// The folder for what a provider compiles of one graph with its weights.
pub(super) struct Cache {
    /// Empty, or there would be nothing to wait for.
    is_empty: bool,
    folder: PathBuf,
}

impl Cache {
    /// Makes it, `key` being the same for the same graph and weights only: providers themselves look at names and shapes,
    /// and would take one model's weights for those of another.
    pub(super) fn open(root: &Path, provider: &str, key: &str) -> Result<Self, Error> {
        let folder = root.join(provider).join(key);
        let made = fs::create_dir_all(&folder).and_then(|()| fs::read_dir(&folder));
        let mut files = made.map_err(|error| {
            let shown = folder.display();
            Error::new(ErrorKind::Output, format!("{shown}: expected a folder for a cache")).source(error)
        })?;
        Ok(Self { is_empty: files.next().is_none(), folder })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

/// A compilation that goes on until it is [`Compilation::finish`]ed.
pub(super) struct Compilation {
    started: Instant,
    component: String,
    provider: String,
    estimate: Option<Duration>,
    /// Where the time is remembered.
    memory: Option<PathBuf>,
    watch: Option<Watch>,
}

impl Compilation {
    /// Begins one, unless the provider has compiled this graph before. `root` is of all caches.
    pub(super) fn begin(
        component: &str,
        provider: &str,
        cache: Option<&Cache>,
        root: Option<&Path>,
        watch: Option<&Watch>,
    ) -> Option<Self> {
        if cache.is_some_and(|cache| !cache.is_empty) {
            return None;
        }
        let memory = root.map(|root| root.join(provider).join(format!("{component}.seconds")));
        let text = memory.as_deref().and_then(|memory| fs::read_to_string(memory).ok());
        let seconds = text.and_then(|text| text.trim().parse().ok());
        let estimate = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let (component, provider, watch) = (component.to_owned(), provider.to_owned(), watch.cloned());
        let begun = Self { started: Instant::now(), component, provider, estimate, memory, watch };
        begun.tell(None);
        Some(begun)
    }

    /// Remembers how long it took. That it cannot be is no reason to fail: it is an estimate less.
    pub(super) fn finish(self) {
        let took = self.started.elapsed();
        if let Some(memory) = &self.memory
            && let Err(error) = fs::write(memory, format!("{}\n", took.as_secs_f64()))
        {
            tracing::warn!(file = %memory.display(), %error, "the time of a compilation was not saved");
        }
        self.tell(Some(took));
    }

    fn tell(&self, took: Option<Duration>) {
        let Self { component, provider, estimate, .. } = self;
        if let Some(Watch(tell)) = &self.watch {
            tell(Compiling { component, provider, estimate: *estimate, took });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn a_compilation_is_told_and_the_next_has_an_estimate() {
        let root = tempfile::tempdir().unwrap();
        let told: Arc<Mutex<Vec<(bool, bool)>>> = Arc::default();
        let heard = Arc::clone(&told);
        let watch = Watch::new(move |it| {
            assert_eq!((it.component, it.provider), ("unet", "TensorrtExecutionProvider"));
            heard.lock().unwrap().push((it.estimate.is_some(), it.took.is_some()));
        });
        let begin = |key| {
            let cache = Cache::open(root.path(), "TensorrtExecutionProvider", key).unwrap();
            let begun = Compilation::begin(
                "unet",
                "TensorrtExecutionProvider",
                Some(&cache),
                Some(root.path()),
                Some(&watch),
            );
            (cache, begun)
        };
        let (cache, first) = begin("one");
        first.expect("nothing was compiled yet").finish();
        fs::write(cache.folder().join("engine"), "").unwrap();
        assert!(begin("one").1.is_none(), "what is in the cache is not compiled again");
        begin("two").1.expect("another model's engine is none of this one's").finish();
        assert_eq!(*told.lock().unwrap(), [(false, false), (false, true), (true, false), (true, true)]);
    }

    #[test]
    fn nonsense_is_no_estimate() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("QNNExecutionProvider")).unwrap();
        for text in ["", "soon", "-1", "NaN", "1e300"] {
            fs::write(root.path().join("QNNExecutionProvider/unet.seconds"), text).unwrap();
            let begun =
                Compilation::begin("unet", "QNNExecutionProvider", None, Some(root.path()), None).unwrap();
            assert_eq!(begun.estimate, None, "{text:?}");
        }
    }

    #[test]
    fn a_file_in_place_of_the_cache() {
        let root = tempfile::NamedTempFile::new().unwrap();
        let refusal = Cache::open(root.path(), "x", "y").err().expect("a file is no folder");
        assert_eq!(refusal.kind(), ErrorKind::Output);
        assert!(refusal.to_string().contains("expected a folder for a cache"), "{refusal}");
    }
}
