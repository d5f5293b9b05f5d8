//! The two readers of ONNX graphs: of bytes in memory, and of files whose data is left where it lies. What one encodes
//! it decodes again, and the two agree.

use std::fs;
use std::sync::Arc;

use calotype::graph::Graph;
use tempfile::TempDir;

pub fn run(bytes: &[u8]) {
    let decoded = Graph::decode("graph", bytes);
    if let Ok(graph) = &decoded {
        let encoded = graph.encode();
        let again = Graph::decode("graph", &encoded).expect("what was encoded can be decoded");
        assert_eq!(again.inputs(), graph.inputs());
        assert_eq!(again.outputs(), graph.outputs());
        assert_eq!(again.parameters(), graph.parameters());
        assert_eq!(again.encode(), encoded);
    }

    let folder = TempDir::with_prefix("fuzz").expect("a temporary folder");
    let path = folder.path().join("model.onnx");
    fs::write(&path, bytes).expect("room for it");
    let Ok((opened, weights)) = Graph::open("graph", &path) else { return };
    let decoded = match decoded {
        Ok(decoded) => decoded,
        // Bytes in memory have no files beside them.
        Err(error) if error.to_string().contains("expected no data") => return,
        Err(error) => panic!("read from a file, refused in memory: {error}"),
    };
    assert_eq!(opened.inputs(), decoded.inputs());
    assert_eq!(opened.outputs(), decoded.outputs());
    for parameter in decoded.parameters() {
        assert!(weights.get(&parameter.name).is_some(), "{}: in memory only", parameter.name);
    }
    for (name, view) in weights.iter() {
        assert_eq!(view.to_bytes().len(), view.len_bytes(), "{name}");
    }
    opened.bind(Arc::new(weights)).expect("a file's weights fit its graph");
}
