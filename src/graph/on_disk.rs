//! A bound graph whose weights are read from their files by whoever opens it. It knows nothing of what opens it.

use std::path::{Path, PathBuf};

use prost::Message;

use super::bound::BoundGraph;
use super::node::entry;
use super::proto::{self, TensorProto};

/// The most bytes of weights that are written into a model: protobuf messages end at 2 GiB.
const MAX_INLINE_BYTES: usize = 1 << 30;

/// A model, and the folder that the locations of its external data start from.
pub(crate) struct OnDisk {
    pub(crate) model: Vec<u8>,
    /// None where all of it is part of the model.
    pub(crate) folder: Option<PathBuf>,
}

impl BoundGraph {
    /// The model with its weights where they lie on the disk; those that lie nowhere, such as what an adapter has changed,
    /// are part of it. Nothing where that is too much, or the files have no folder in common that can be written as text.
    pub(crate) fn on_disk(&self) -> Option<OnDisk> {
        let mut model = self.model.clone();
        let graph = model.graph.as_mut()?;
        let mut found: Vec<(usize, Option<PathBuf>)> = Vec::new();
        let mut inline_bytes = 0;
        for tensor in &mut graph.initializer {
            let Some((file, start, len)) = place(tensor) else { continue };
            if !found.iter().any(|(known, _)| *known == file) {
                // Links lead out of the folder, which ONNX Runtime refuses.
                let path = self.weights.path(file).and_then(|path| path.canonicalize().ok());
                found.push((file, path));
            }
            if found.iter().any(|(known, path)| *known == file && path.is_none()) {
                inline_bytes += len;
                if inline_bytes > MAX_INLINE_BYTES {
                    return None;
                }
                tensor.raw_data = Some(self.weights.bytes(file, start..start + len));
                tensor.external_data.clear();
                tensor.data_location = None;
            }
        }
        let paths: Vec<(usize, PathBuf)> =
            found.into_iter().filter_map(|(file, path)| Some((file, path?))).collect();
        if paths.is_empty() {
            return Some(OnDisk { model: model.encode_to_vec(), folder: None });
        }
        let folder = common_folder(paths.iter().map(|(_, path)| path.as_path()))?;
        for tensor in &mut graph.initializer {
            let Some((file, ..)) = place(tensor) else { continue };
            let (_, path) = paths.iter().find(|(known, _)| *known == file)?;
            let relative = path.strip_prefix(&folder).ok()?.to_str()?;
            tensor.external_data.retain(|entry| entry.key() != "location");
            tensor.external_data.push(entry("location", relative.to_owned()));
        }
        Some(OnDisk { model: model.encode_to_vec(), folder: Some(folder) })
    }
}

/// The file, start and length of an initializer that is not part of the model.
fn place(tensor: &TensorProto) -> Option<(usize, usize, usize)> {
    let external = tensor.data_location() == proto::EXTERNAL;
    let value =
        |key: &str| tensor.external_data.iter().find(|entry| entry.key() == key).map(|entry| entry.value());
    let number = |key: &str| value(key)?.parse().ok();
    let file = value("location")?.strip_prefix("weights-")?.parse().ok()?;
    external.then_some((file, number("offset")?, number("length")?))
}

/// The deepest folder that all of these files are below.
fn common_folder<'a>(paths: impl Iterator<Item = &'a Path>) -> Option<PathBuf> {
    let mut common: Option<PathBuf> = None;
    for path in paths {
        let folder = path.parent()?;
        common = match common {
            None => Some(folder.to_owned()),
            Some(known) => known.ancestors().find(|known| folder.starts_with(known)).map(Path::to_owned),
        };
        common.as_ref()?;
    }
    common
}

#[cfg(test)]
#[cfg(feature = "builtin")]
mod tests {
    use std::collections::HashMap;
    use std::fs;
    use std::sync::Arc;

    use super::*;
    use crate::graph::proto::ModelProto;
    use crate::model::Model;
    use crate::weights::Weights;

    /// Half of a component's weights each in a separate file, `down/one` and `two`.
    fn save(weights: &Weights, folder: &Path) -> [PathBuf; 2] {
        let paths = [folder.join("down/one.safetensors"), folder.join("two.safetensors")];
        fs::create_dir_all(folder.join("down")).unwrap();
        for (half, path) in paths.iter().enumerate() {
            let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
            for (_, (name, tensor)) in weights.iter().enumerate().filter(|(index, _)| index % 2 == half) {
                let start = data.len();
                data.extend(tensor.to_bytes());
                header.insert(
                    name.to_owned(),
                    serde_json::json!({
                        "dtype": tensor.dtype().name().to_uppercase(),
                        "shape": tensor.shape(),
                        "data_offsets": [start, data.len()],
                    }),
                );
            }
            let mut header = serde_json::to_vec(&header).unwrap();
            // Of tensors at odd addresses there are copies in memory.
            header.resize(header.len().next_multiple_of(8), b' ');
            let file = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
            fs::write(path, file).unwrap();
        }
        paths
    }

    /// What each initializer holds, read as whoever opens the model would, and how many are part of it.
    fn read(model: &[u8], folder: Option<&Path>) -> (HashMap<String, Vec<u8>>, usize) {
        let graph = ModelProto::decode(model).unwrap().graph.unwrap();
        let mut inline = 0;
        let read = graph.initializer.into_iter().map(|tensor| {
            let value = |key: &str| {
                tensor.external_data.iter().find(|entry| entry.key() == key).map(|entry| entry.value())
            };
            let bytes = match value("location") {
                Some(location) => {
                    let [start, len] = ["offset", "length"].map(|key| value(key).unwrap().parse().unwrap());
                    let start: usize = start;
                    assert_eq!(tensor.data_location(), proto::EXTERNAL);
                    fs::read(folder.unwrap().join(location)).unwrap()[start..start + len].to_vec()
                }
                None => {
                    inline += 1;
                    assert_ne!(tensor.data_location(), proto::EXTERNAL);
                    tensor.raw_data.clone().unwrap_or_default()
                }
            };
            (tensor.name().to_owned(), bytes)
        });
        let read = read.collect();
        (read, inline)
    }

    #[test]
    fn weights_are_read_where_they_lie() {
        let model = Model::built_in().unwrap();
        let part = model.vae_decoder();
        // Of a program there is no file, so that all of them are part of the model.
        let OnDisk { model: bytes, folder } = part.bind().unwrap().on_disk().unwrap();
        let (expected, all) = read(&bytes, folder.as_deref());
        assert!(folder.is_none() && all > 40 && expected.len() == all);

        let root = tempfile::tempdir().unwrap();
        let paths = save(part.weights(), root.path());
        let bound = |weights| part.graph().clone().bind(Arc::new(weights)).unwrap();
        let own = {
            let constants = part.graph().clone().bind(Arc::clone(part.weights())).unwrap();
            let graph = constants.model.graph.unwrap();
            graph.initializer.iter().filter(|tensor| place(tensor).is_none()).count()
        };
        let on_disk = bound(Weights::open(&paths).unwrap()).on_disk().unwrap();
        assert_eq!(on_disk.folder, Some(root.path().canonicalize().unwrap()));
        let (got, inline) = read(&on_disk.model, on_disk.folder.as_deref());
        assert!(inline == own && got == expected, "{inline} inline");

        // What a link leads to, and what was changed in memory.
        #[cfg(unix)]
        {
            let other = tempfile::tempdir().unwrap();
            let links = [other.path().join("a.safetensors"), other.path().join("b.safetensors")];
            for (link, path) in links.iter().zip(&paths) {
                std::os::unix::fs::symlink(path, link).unwrap();
            }
            let mut weights = Weights::open(&links).unwrap();
            let (name, changed) = {
                let (name, tensor) = weights.iter().next().unwrap();
                (name.to_owned(), (tensor.dtype(), tensor.shape().to_vec(), vec![0; tensor.len_bytes()]))
            };
            weights.replace(&name, changed.0, &changed.1, &changed.2).unwrap();
            let on_disk = bound(weights).on_disk().unwrap();
            assert_eq!(on_disk.folder, Some(root.path().canonicalize().unwrap()));
            let (got, inline) = read(&on_disk.model, on_disk.folder.as_deref());
            assert_eq!(inline, own + 1);
            let differing: Vec<_> = got.iter().filter(|(name, bytes)| expected[*name] != **bytes).collect();
            assert_eq!(differing.len(), 1);
        }

        // A file that is another by now is not read: what is mapped counts.
        let weights = Weights::open(&paths).unwrap();
        let replaced = root.path().join("new");
        fs::copy(&paths[1], &replaced).unwrap();
        fs::rename(&replaced, &paths[1]).unwrap();
        let on_disk = bound(weights).on_disk().unwrap();
        assert_eq!(on_disk.folder, Some(paths[0].parent().unwrap().canonicalize().unwrap()));
        let (got, inline) = read(&on_disk.model, on_disk.folder.as_deref());
        assert!(inline > own && got == expected);
    }
}
