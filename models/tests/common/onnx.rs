//! Reads ONNX files: as much of protobuf and of onnx.proto as the exporter writes, and by other code than the exporter's.

use std::collections::BTreeMap;

/// A field's value.
enum Value<'a> {
    Int(u64),
    Fixed,
    Bytes(&'a [u8]),
}

/// A message: its fields by number, in order.
struct Message<'a>(Vec<(u64, Value<'a>)>);

impl<'a> Message<'a> {
    fn parse(mut bytes: &'a [u8]) -> Self {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let tag = varint(&mut bytes);
            let value = match tag & 7 {
                0 => Value::Int(varint(&mut bytes)),
                2 => {
                    let len = varint(&mut bytes) as usize;
                    Value::Bytes(bytes.split_off(..len).expect("a field inside its message"))
                }
                5 => {
                    bytes.split_off(..4).expect("four bytes");
                    Value::Fixed
                }
                kind => panic!("wire type {kind}"),
            };
            fields.push((tag >> 3, value));
        }
        Self(fields)
    }

    fn bytes(&self, field: u64) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter_map(move |(number, value)| match value {
            Value::Bytes(bytes) if *number == field => Some(*bytes),
            _ => None,
        })
    }

    fn texts(&self, field: u64) -> Vec<String> {
        self.bytes(field).map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()).collect()
    }

    fn text(&self, field: u64) -> String {
        self.texts(field).into_iter().next().unwrap_or_default()
    }

    fn messages(&self, field: u64) -> impl Iterator<Item = Message<'a>> {
        self.bytes(field).map(Message::parse)
    }

    fn message(&self, field: u64) -> Message<'a> {
        self.messages(field).next().expect("a message")
    }

    fn ints(&self, field: u64) -> Vec<i64> {
        let int = |(number, value): &(u64, Value)| match value {
            Value::Int(int) if *number == field => Some(*int as i64),
            _ => None,
        };
        self.0.iter().filter_map(int).collect()
    }

    fn int(&self, field: u64) -> i64 {
        self.ints(field).into_iter().next().unwrap_or_default()
    }

    /// Entries of key and value.
    fn entries(&self, field: u64) -> BTreeMap<String, String> {
        self.messages(field).map(|entry| (entry.text(1), entry.text(2))).collect()
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes.split_off_first().expect("a whole number");
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return value;
        }
    }
    panic!("a number of more than 64 bits");
}

/// A node.
pub struct Node {
    pub name: String,
    pub operator: String,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
}

/// An initializer.
pub struct Initializer {
    pub name: String,
    pub dims: Vec<i64>,
    pub element: i64,
    /// `location`, `offset`, `length`.
    pub external: BTreeMap<String, String>,
    pub raw: Vec<u8>,
}

/// An ONNX file.
pub struct Model {
    pub ir_version: i64,
    pub opset: i64,
    pub nodes: Vec<Node>,
    pub initializers: Vec<Initializer>,
    /// As `input_ids i7[batch, sequence]`: name, number of the element type, dimensions.
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    pub properties: BTreeMap<String, String>,
}

impl Model {
    pub fn parse(bytes: &[u8]) -> Self {
        let model = Message::parse(bytes);
        let graph = model.message(7);
        let node = |node: Message| Node { name: node.text(3), operator: node.text(4), inputs: node.texts(1), outputs: node.texts(2) };
        let initializer = |tensor: Message| Initializer {
            name: tensor.text(8),
            dims: tensor.ints(1),
            element: tensor.int(2),
            external: if tensor.int(14) == 1 { tensor.entries(13) } else { BTreeMap::new() },
            raw: tensor.bytes(9).next().unwrap_or_default().to_vec(),
        };
        Self {
            ir_version: model.int(1),
            opset: model.message(8).int(2),
            nodes: graph.messages(1).map(node).collect(),
            initializers: graph.messages(5).map(initializer).collect(),
            inputs: graph.messages(11).map(value_info).collect(),
            outputs: graph.messages(12).map(value_info).collect(),
            properties: model.entries(14),
        }
    }

    /// The initializer of that name.
    pub fn initializer(&self, name: &str) -> Option<&Initializer> {
        self.initializers.iter().find(|tensor| tensor.name == name)
    }
}

fn value_info(info: Message) -> String {
    let tensor = info.message(2).message(1);
    let dim = |dim: Message| if dim.text(2).is_empty() { dim.int(1).to_string() } else { dim.text(2) };
    let dims: Vec<String> = tensor.message(2).messages(1).map(dim).collect();
    format!("{} i{}[{}]", info.text(1), tensor.int(1), dims.join(", "))
}
