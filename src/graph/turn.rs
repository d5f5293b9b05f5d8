//! Matrices the other way round: products are made to take them as `[out, in]` or as `[in, out]`. It moves no data.

use super::node::{MICROSOFT, import_microsoft, integer};
use super::proto::{GraphProto, ModelProto, NodeProto};
use super::{Graph, quantize};
use crate::{Error, ErrorKind};

impl Graph {
    /// The same graph with every matrix of a plain product as `[out, in]`, as the reference implementation keeps it.
    ///
    /// A parameter that is turned here takes its weight turned, too.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for a product of other than two factors.
    pub(crate) fn upright(&self) -> Result<Self, Error> {
        let refuse = |problem: String| Error::new(ErrorKind::Model, format!("{}: {problem}", self.name));
        let mut turned = self.clone();
        for parameter in turned.parameters.iter_mut().filter(|parameter| parameter.shape.len() == 2) {
            let is_product = |node: &&NodeProto| {
                node.op_type() == "MatMul" && node.domain().is_empty() && node.input[0] != parameter.name
            };
            let users = quantize::users(&self.graph, &parameter.name);
            if !users.is_empty() && users.iter().all(is_product) {
                transpose(&mut turned.model, &mut turned.graph, &parameter.name).map_err(refuse)?;
                turned.graph.initializer[parameter.initializer].dims.reverse();
                parameter.shape.reverse();
                parameter.transposed = !parameter.transposed;
            }
        }
        Ok(turned)
    }
}

/// Makes the products with a matrix take it the other way round.
pub(super) fn transpose(model: &mut ModelProto, graph: &mut GraphProto, weight: &str) -> Result<(), String> {
    let is_used = |node: &&mut NodeProto| node.input.iter().any(|input| input == weight);
    for node in graph.node.iter_mut().filter(is_used) {
        let is_right = node.input.len() == 2 && node.input[0] != weight;
        let is_product =
            matches!((node.op_type(), node.domain()), ("MatMul", "") | ("FusedMatMul", MICROSOFT));
        if !is_product || !is_right {
            return Err(format!(
                "weight {weight}: expected a matrix as [out, in], got [in, out], which {} cannot use",
                node.op_type()
            ));
        }
        node.op_type = Some("FusedMatMul".into());
        node.domain = Some(MICROSOFT.into());
        match node.attribute.iter_mut().find(|attribute| attribute.name() == "transB") {
            Some(flag) => flag.i = Some(i64::from(flag.i() == 0)),
            None => node.attribute.push(integer("transB", 1)),
        }
    }
    import_microsoft(model);
    Ok(())
}
