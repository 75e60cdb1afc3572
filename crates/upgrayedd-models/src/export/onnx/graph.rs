//! A graph of operators in the making (opset 17).

use super::proto;

/// What there is of an axis: so many entries, or as many as the caller gives.
pub(super) enum Axis {
    Fixed(usize),
    Named(&'static str),
}

/// Nodes and the numbers that they read; each value has a name.
#[derive(Default)]
pub(super) struct Graph {
    nodes: Vec<proto::Node>,
    numbers: Vec<proto::Tensor>,
    inputs: Vec<proto::ValueInfo>,
    /// Before names: where in the model it is.
    pub(super) place: String,
}

impl Graph {
    /// Something that the caller gives: whole numbers.
    pub(super) fn input(&mut self, name: &str, axes: &[Axis]) -> String {
        self.inputs.push(info(name, proto::INT64, axes));
        name.to_owned()
    }

    /// The result of an operator.
    pub(super) fn node(&mut self, op: &str, inputs: &[&str], attributes: Vec<proto::Attribute>) -> String {
        let output = format!("{}{op}_{}", self.place, self.nodes.len());
        self.named(op, inputs, attributes, output)
    }

    /// The same under a name of its own.
    pub(super) fn named(
        &mut self,
        op: &str,
        inputs: &[&str],
        attributes: Vec<proto::Attribute>,
        output: String,
    ) -> String {
        self.nodes.push(proto::Node {
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![output.clone()],
            name: Some(format!("node_{}", self.nodes.len())),
            op_type: Some(op.to_owned()),
            attribute: attributes,
        });
        output
    }

    /// An operator without attributes.
    pub(super) fn op(&mut self, op: &str, inputs: &[&str]) -> String {
        self.node(op, inputs, Vec::new())
    }

    /// Numbers of the model; those in 16 bits are computed with in 32.
    pub(super) fn weight(&mut self, name: &str, shape: &[usize], values: &[f32], half: bool) -> String {
        let raw = match half {
            true => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
            false => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        let kind = if half { proto::FLOAT16 } else { proto::FLOAT };
        let name = self.number(name.to_owned(), shape, kind, raw);
        if half { self.node("Cast", &[&name], vec![int("to", i64::from(proto::FLOAT))]) } else { name }
    }

    /// One number.
    pub(super) fn float(&mut self, value: f32) -> String {
        let name = format!("number_{}", self.numbers.len());
        self.number(name, &[], proto::FLOAT, value.to_le_bytes().to_vec())
    }

    /// Whole numbers, along one axis.
    pub(super) fn ints(&mut self, values: &[i64]) -> String {
        let name = format!("numbers_{}", self.numbers.len());
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.number(name, &[values.len()], proto::INT64, raw)
    }

    /// One whole number.
    pub(super) fn int(&mut self, value: i64) -> String {
        let name = format!("number_{}", self.numbers.len());
        self.number(name, &[], proto::INT64, value.to_le_bytes().to_vec())
    }

    fn number(&mut self, name: String, shape: &[usize], kind: i32, raw: Vec<u8>) -> String {
        self.numbers.push(proto::Tensor {
            dims: shape.iter().map(|size| *size as i64).collect(),
            data_type: Some(kind),
            name: Some(name.clone()),
            raw_data: Some(raw),
        });
        name
    }

    /// The file: `output` is what a caller asks for.
    pub(super) fn finish(self, output: &str, axes: &[Axis]) -> proto::Model {
        proto::Model {
            ir_version: Some(8),
            producer_name: Some("upgrayedd".to_owned()),
            producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            graph: Some(proto::Graph {
                node: self.nodes,
                name: Some("model".to_owned()),
                initializer: self.numbers,
                input: self.inputs,
                output: vec![info(output, proto::FLOAT, axes)],
            }),
            opset_import: vec![proto::OperatorSet { domain: Some(String::new()), version: Some(17) }],
        }
    }
}

fn info(name: &str, kind: i32, axes: &[Axis]) -> proto::ValueInfo {
    let dimension = |axis: &Axis| match axis {
        Axis::Fixed(size) => proto::Dimension { dim_value: Some(*size as i64), dim_param: None },
        Axis::Named(name) => proto::Dimension { dim_value: None, dim_param: Some((*name).to_owned()) },
    };
    let shape = proto::Shape { dim: axes.iter().map(dimension).collect() };
    let tensor = proto::TensorType { elem_type: Some(kind), shape: Some(shape) };
    proto::ValueInfo { name: Some(name.to_owned()), r#type: Some(proto::Type { tensor_type: Some(tensor) }) }
}

/// An attribute that is a whole number.
pub(super) fn int(name: &str, value: i64) -> proto::Attribute {
    proto::Attribute {
        name: Some(name.to_owned()),
        i: Some(value),
        r#type: Some(proto::AN_INT),
        ..proto::Attribute::default()
    }
}

/// An attribute that is a number.
pub(super) fn float(name: &str, value: f32) -> proto::Attribute {
    proto::Attribute {
        name: Some(name.to_owned()),
        f: Some(value),
        r#type: Some(proto::A_FLOAT),
        ..proto::Attribute::default()
    }
}

/// An attribute of whole numbers.
pub(super) fn ints(name: &str, values: &[i64]) -> proto::Attribute {
    proto::Attribute {
        name: Some(name.to_owned()),
        ints: values.to_vec(),
        r#type: Some(proto::INTS),
        ..proto::Attribute::default()
    }
}
