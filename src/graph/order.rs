//! The order of a graph's nodes: ONNX asks that each follows those whose values it reads, and some exporters do not keep to
//! it. ONNX Runtime does not mind; whoever cuts a graph does.

use std::collections::HashMap;

use super::proto::{GraphProto, NodeProto};

/// How far a node is.
#[derive(Clone, Copy, PartialEq)]
enum State {
    New,
    Waits,
    Placed,
}

impl GraphProto {
    /// By value, the index of the node that makes it.
    pub(super) fn makers(&self) -> HashMap<&str, usize> {
        let nodes = self.node.iter().enumerate();
        nodes.flat_map(|(index, node)| node.output.iter().map(move |output| (&output[..], index))).collect()
    }

    /// Puts nodes behind those whose values they read; where all are already, the order stays. Nodes that wait for one
    /// another, which no graph may have, stay in some order, for ONNX Runtime to refuse.
    pub(super) fn sort(&mut self) {
        let makers = self.makers();
        let mut states = vec![State::New; self.node.len()];
        let mut order = Vec::with_capacity(self.node.len());
        let mut stack = Vec::new();
        for start in 0..self.node.len() {
            stack.push(start);
            while let Some(&index) = stack.last() {
                if states[index] == State::New {
                    states[index] = State::Waits;
                    let mut read = Vec::new();
                    reads(&self.node[index], &mut read);
                    let first = read.iter().filter_map(|value| makers.get(value)).copied();
                    stack.extend(first.filter(|&maker| states[maker] == State::New));
                } else {
                    stack.pop();
                    if states[index] == State::Waits {
                        states[index] = State::Placed;
                        order.push(index);
                    }
                }
            }
        }
        if !order.is_sorted() {
            self.node = order.into_iter().map(|index| self.node[index].clone()).collect();
        }
    }
}

/// The values that a node reads, and the graphs within it.
fn reads<'a>(node: &'a NodeProto, into: &mut Vec<&'a str>) {
    into.extend(node.input.iter().map(String::as_str));
    let graphs = node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs));
    graphs.flat_map(|graph| &graph.node).for_each(|node| reads(node, into));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::proto::AttributeProto;
    use crate::graph::shape::tests::node;

    fn sorted(nodes: &[NodeProto]) -> String {
        let mut graph = GraphProto { node: nodes.to_vec(), ..Default::default() };
        graph.sort();
        graph.node.iter().map(|node| node.output[0].as_str()).collect()
    }

    #[test]
    fn nodes_follow_those_that_they_read() {
        let [a, b, c, d] = [
            node("Relu", &["x"], "a", vec![]),
            node("Add", &["a", "a"], "b", vec![]),
            node("Relu", &["x"], "c", vec![]),
            node("Add", &["c", "b"], "d", vec![]),
        ];
        let nodes = |all: [&NodeProto; 4]| all.map(Clone::clone);
        assert_eq!(sorted(&nodes([&a, &b, &c, &d])), "abcd");
        assert_eq!(sorted(&nodes([&c, &a, &b, &d])), "cabd", "what is in order stays");
        assert_eq!(sorted(&nodes([&b, &a, &c, &d])), "abcd");
        let backwards = sorted(&nodes([&d, &c, &b, &a]));
        assert!(["abcd", "cabd"].contains(&backwards.as_str()), "{backwards}");
    }

    #[test]
    fn graphs_within_nodes_read_what_is_around_them() {
        let inner = GraphProto { node: vec![node("Relu", &["a"], "i", vec![])], ..Default::default() };
        let body = AttributeProto { g: Some(inner), ..Default::default() };
        assert_eq!(sorted(&[node("If", &["x"], "b", vec![body]), node("Relu", &["x"], "a", vec![])]), "ab");
    }

    #[test]
    fn nodes_that_wait_for_one_another_stay() {
        assert_eq!(sorted(&[node("Relu", &["b"], "a", vec![]), node("Relu", &["a"], "b", vec![])]).len(), 2);
    }
}
