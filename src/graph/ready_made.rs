//! Ready-made ONNX files: a graph, and the weights in it and in the files beside it, where they lie.
//! It knows what exporters do to names, and trusts no location.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Component, Path, PathBuf};

use super::file::Skeleton;
use super::node::entry;
use super::parameter::{Parameter, declared};
use super::proto::{self, GraphProto, NodeProto, TensorProto};
use super::{Graph, OPEN_LOCATION, decode};
use crate::weights::{Stored, Weights};
use crate::{Error, ErrorKind};

/// The longest constant of a node that is taken into the graph.
const MAX_CONSTANT_BYTES: usize = 64 << 20;

impl Graph {
    /// Opens a ready-made ONNX file: its graph, and the weights in it and in the files beside it that it names, where
    /// they lie.
    ///
    /// Matrices that an exporter turned and renamed (`onnx::MatMul_1234`) get the name back under which the reference
    /// implementation keeps them, where the node that multiplies by them tells it.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when the file is not an ONNX model, or data is missing or lies outside the file's folder.
    pub fn open(name: impl Into<String>, path: &Path) -> Result<(Self, Weights), Error> {
        let name = name.into();
        let place = path.display();
        let refuse = |problem: String| Error::new(ErrorKind::Model, format!("{place}: {problem}"));
        let skeleton = Skeleton::read(path)
            .map_err(|error| Error::new(ErrorKind::Model, place.to_string()).source(error))?;
        let (model, mut graph) = decode(&place.to_string(), &skeleton.bytes)?;
        let mut weights = Weights::default();
        let mut files: HashMap<PathBuf, usize> = HashMap::new();
        for (tensor, data) in graph.initializer.iter_mut().zip(skeleton.data) {
            let (file, offset_bytes) = match data {
                Some((offset_bytes, len_bytes)) => {
                    check_len(tensor, Some(len_bytes)).map_err(refuse)?;
                    (path.to_owned(), offset_bytes)
                }
                None if tensor.data_location() == proto::EXTERNAL => {
                    let (location, offset_bytes) = external(tensor).map_err(refuse)?;
                    (path.with_file_name(location), offset_bytes)
                }
                None => continue,
            };
            let index = match files.get(&file) {
                Some(index) => *index,
                None => {
                    let index = weights.map(&file)?;
                    files.insert(file, index);
                    index
                }
            };
            let Parameter { name, dtype, shape, .. } = declared(0, tensor).map_err(refuse)?;
            weights.insert(&name, dtype, &shape, index, offset_bytes)?;
            tensor.data_location = Some(proto::EXTERNAL);
            tensor.external_data = vec![entry("location", OPEN_LOCATION.into())];
        }
        for node in &mut graph.node {
            bring_in(node, path).map_err(refuse)?;
        }
        let (weights, turned) = recover_names(&mut graph, weights)?;
        let mut graph = Self::of(name, model, graph)?;
        for parameter in &mut graph.parameters {
            parameter.transposed = turned.contains(&parameter.name);
        }
        Ok((graph, weights))
    }
}

/// Whether data of this many bytes (unless that is left open) is what a tensor's type and shape need.
fn check_len(tensor: &TensorProto, len_bytes: Option<u64>) -> Result<(), String> {
    let Parameter { name, dtype, shape, .. } = declared(0, tensor)?;
    let needed = shape.iter().try_fold(dtype.size_bytes(), |bytes, &dim| bytes.checked_mul(dim));
    match (needed, len_bytes) {
        (Some(_), None) => Ok(()),
        (Some(needed), Some(got)) if needed as u64 == got => Ok(()),
        (needed, got) => Err(format!(
            "weight {name}: {dtype} {shape:?}: expected {} bytes of data, got {}",
            needed.map_or("countable".into(), |needed| needed.to_string()),
            got.unwrap_or_default()
        )),
    }
}

/// The file beside the graph in which a tensor's data lies, and the offset in it.
fn external(tensor: &TensorProto) -> Result<(&str, u64), String> {
    let name = tensor.name();
    let value =
        |key: &str| tensor.external_data.iter().find(|entry| entry.key() == key).map(|entry| entry.value());
    let number = |key: &str| match value(key) {
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| format!("weight {name}: {key}: expected a number, got {text:?}")),
        None => Ok(None),
    };
    let location = value("location").unwrap_or_default();
    // A graph could name any file on the device.
    let mut parts = Path::new(location).components();
    if location.is_empty() || !parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(format!("weight {name}: expected data in a file beside the graph, got {location:?}"));
    }
    check_len(tensor, number("length")?)?;
    Ok((location, number("offset")?.unwrap_or(0)))
}

/// Puts data that a node's own constants have in other files into the graph: exporters move small ones out, too.
fn bring_in(node: &mut NodeProto, path: &Path) -> Result<(), String> {
    let mut nodes = Vec::new();
    let mut tensors = Vec::new();
    for attribute in &mut node.attribute {
        tensors.extend(attribute.t.as_mut());
        tensors.extend(&mut attribute.tensors);
        for graph in attribute.g.as_mut().into_iter().chain(&mut attribute.graphs) {
            tensors.extend(&mut graph.initializer);
            nodes.extend(&mut graph.node);
        }
    }
    for tensor in tensors.into_iter().filter(|tensor| tensor.data_location() == proto::EXTERNAL) {
        let (location, offset_bytes) = external(tensor)?;
        let Parameter { name, dtype, shape, .. } = declared(0, tensor)?;
        let len_bytes = shape.iter().product::<usize>() * dtype.size_bytes();
        if len_bytes > MAX_CONSTANT_BYTES {
            return Err(format!(
                "constant {name}: expected at most {MAX_CONSTANT_BYTES} bytes, got {len_bytes}"
            ));
        }
        let file = path.with_file_name(location);
        // Opening a named pipe would wait for ever.
        if file.metadata().is_ok_and(|metadata| !metadata.is_file()) {
            return Err(format!(
                "constant {name}: {}: expected a regular file, got another kind",
                file.display()
            ));
        }
        let mut bytes = vec![0; len_bytes];
        let read = File::open(&file).and_then(|mut file| {
            file.seek(SeekFrom::Start(offset_bytes))?;
            file.read_exact(&mut bytes)
        });
        read.map_err(|error| format!("constant {name}: {}: {error}", file.display()))?;
        tensor.raw_data = Some(bytes);
        tensor.data_location = None;
        tensor.external_data.clear();
    }
    nodes.into_iter().try_for_each(|node| bring_in(node, path))
}

/// Gives matrices back the names that PyTorch's exporter took from them when it turned them: a node
/// `/mid_block/attentions.0/to_q/MatMul` multiplies by `mid_block.attentions.0.to_q.weight`. Gives the names found.
fn recover_names(graph: &mut GraphProto, weights: Weights) -> Result<(Weights, HashSet<String>), Error> {
    let mut uses: HashMap<&str, usize> = HashMap::new();
    for input in graph.node.iter().flat_map(|node| &node.input) {
        *uses.entry(input).or_default() += 1;
    }
    let mut names: HashMap<String, String> = HashMap::new();
    for node in graph
        .node
        .iter()
        .filter(|node| node.op_type() == "MatMul" && node.input.len() == 2 && !node.output.is_empty())
    {
        // Tools that optimise graphs drop the names of nodes, but not those of what they give.
        let scope = [(node.name(), "/MatMul"), (&node.output[0], "/MatMul_output_0")]
            .into_iter()
            .find_map(|(name, end)| name.strip_prefix('/')?.strip_suffix(end));
        let (matrix, Some(scope)) = (&node.input[1], scope) else { continue };
        let is_matrix = weights.get(matrix).is_some_and(|weight| weight.shape().len() == 2);
        let name = format!("{}.weight", scope.replace('/', "."));
        if is_matrix && uses[matrix.as_str()] == 1 && weights.get(&name).is_none() {
            names.insert(matrix.clone(), name);
        }
    }
    // Two nodes of one name would make two weights of one name.
    let turned: HashSet<String> = names.values().cloned().collect();
    if turned.len() < names.len() {
        return Ok((weights, HashSet::new()));
    }
    let renamed = |name: &str| names.get(name).cloned();
    for tensor in &mut graph.initializer {
        if let Some(name) = renamed(tensor.name()) {
            tensor.name = Some(name);
        }
    }
    for input in graph.node.iter_mut().flat_map(|node| &mut node.input) {
        if let Some(name) = renamed(input) {
            *input = name;
        }
    }
    let table = weights.iter().map(|(name, _)| match renamed(name) {
        Some(canonical) => (canonical, Stored { name: name.to_owned(), rows: None, transposed: true }),
        None => (name.to_owned(), Stored::whole(name)),
    });
    Ok((weights.select(table.collect::<Vec<_>>())?, turned))
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::graph::proto::{AttributeProto, ModelProto};
    use crate::graph::tests::{model, value};

    /// Writes a model and a file `data` beside it, and opens it.
    fn open(model: &ModelProto, data: &[u8]) -> Result<(Graph, Weights), Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, model.encode_to_vec()).unwrap();
        std::fs::write(folder.path().join("data"), data).unwrap();
        Graph::open("unet", &path)
    }

    /// A tensor of four floats, at an offset in a file.
    fn outside(name: &str, location: &str, offset: &str) -> TensorProto {
        TensorProto {
            name: Some(name.into()),
            dims: vec![4],
            data_type: Some(1),
            data_location: Some(proto::EXTERNAL),
            external_data: vec![entry("location", location.into()), entry("offset", offset.into())],
            ..Default::default()
        }
    }

    /// `w` multiplied by a constant of a node's own.
    fn with_data(weight: TensorProto, constant: TensorProto) -> ModelProto {
        let attribute =
            AttributeProto { name: Some("value".into()), t: Some(constant), ..Default::default() };
        let constant = NodeProto {
            op_type: Some("Constant".into()),
            output: vec!["c".into()],
            attribute: vec![attribute],
            ..Default::default()
        };
        let graph = GraphProto {
            node: vec![constant],
            initializer: vec![weight],
            output: vec![value("c", 1, &[4])],
            ..Default::default()
        };
        ModelProto { graph: Some(graph), ..Default::default() }
    }

    #[test]
    fn data_outside_is_found_for_weights_and_for_constants_of_nodes() {
        let data: Vec<u8> = (0..48).collect();
        let (graph, weights) =
            open(&with_data(outside("w", "data", "16"), outside("k", "./data", "32")), &data).unwrap();
        assert_eq!(weights.get("w").unwrap().to_bytes(), data[16..32]);
        let constant = graph.graph.node[0].attribute[0].t.as_ref().unwrap();
        assert_eq!(constant.raw_data.as_deref(), Some(&data[32..]));
        assert!(constant.external_data.is_empty() && constant.data_location != Some(proto::EXTERNAL));
    }

    /// Caches of model hubs keep every file elsewhere and link to it: a link beside the graph is the user's own, a path that
    /// leads out is the graph's.
    #[cfg(unix)]
    #[test]
    fn data_outside_may_be_a_link_that_leads_out_of_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (blobs, snapshot) = (folder.path().join("blobs"), folder.path().join("snapshot"));
        [&blobs, &snapshot].iter().for_each(|folder| std::fs::create_dir(folder).unwrap());
        let data: Vec<u8> = (0..48).collect();
        let model = |location: &str| with_data(outside("w", location, "16"), outside("k", location, "32"));
        std::fs::write(blobs.join("0"), model("data").encode_to_vec()).unwrap();
        std::fs::write(blobs.join("1"), &data).unwrap();
        let path = snapshot.join("model.onnx");
        for (blob, name) in [("0", "model.onnx"), ("1", "data")] {
            std::os::unix::fs::symlink(format!("../blobs/{blob}"), snapshot.join(name)).unwrap();
        }
        let (_, weights) = Graph::open("unet", &path).unwrap();
        assert_eq!(weights.get("w").unwrap().to_bytes(), data[16..32]);
        // A link whose file is gone names the link.
        std::fs::remove_file(blobs.join("1")).unwrap();
        assert!(Graph::open("unet", &path).unwrap_err().to_string().contains("snapshot/data"));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, model("../blobs/1").encode_to_vec()).unwrap();
        let error = Graph::open("unet", &path).unwrap_err().to_string();
        assert!(error.contains("expected data in a file beside the graph"), "{error}");
    }

    #[test]
    fn data_inside_stays_where_it_lies() {
        for len in [4usize, 4096] {
            let bytes: Vec<u8> = (0..len).map(|at| at as u8).collect();
            let inside = TensorProto {
                dims: vec![(len / 4) as i64],
                raw_data: Some(bytes.clone()),
                data_location: None,
                external_data: Vec::new(),
                ..outside("w", "", "")
            };
            let (graph, weights) = open(&with_data(inside, outside("k", "data", "0")), &[0; 16]).unwrap();
            let is_long = len >= 1024;
            assert_eq!(weights.get("w").map(|weight| weight.to_bytes()), is_long.then_some(bytes));
            assert_eq!(graph.parameters().len(), usize::from(is_long));
        }
    }

    #[test]
    fn data_outside_the_folder() {
        for location in ["../data", "/etc/passwd", "", "a/../../data"] {
            for model in [
                with_data(outside("w", location, "0"), outside("k", "data", "0")),
                with_data(outside("w", "data", "0"), outside("k", location, "0")),
            ] {
                let error = open(&model, &[0; 16]).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Model);
                assert!(error.to_string().contains("expected data in a file beside the graph"), "{error}");
            }
        }
    }

    #[test]
    fn data_cut_short() {
        for offset in ["4", "18446744073709551615"] {
            for model in [
                with_data(outside("w", "data", offset), outside("k", "data", "0")),
                with_data(outside("w", "data", "0"), outside("k", "data", offset)),
            ] {
                assert_eq!(open(&model, &[0; 16]).unwrap_err().kind(), ErrorKind::Model);
            }
        }
        let error = open(&with_data(outside("w", "nowhere", "0"), outside("k", "data", "0")), &[0; 16]);
        assert!(error.unwrap_err().to_string().contains("nowhere"));
    }

    #[test]
    fn file_cut_anywhere() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        let whole = model().encode_to_vec();
        for len in 0..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            assert!(Graph::open("unet", &path).is_err(), "{len} of {} bytes", whole.len());
        }
    }
}
