//! A graph without the bytes of its weights.

use std::collections::BTreeMap;
use std::ops::Range;

use super::tensor::Tensor;
use super::wire::{Message as Reader, Parsed};
use crate::checkpoint::protobuf::{Message, entry};

/// The `ModelProto` in `file`, each tensor of `moved`, by its first byte there, turned into external data at what `location` says.
pub(super) fn without(
    file: &[u8],
    moved: &BTreeMap<usize, &Tensor>,
    location: impl Fn(&Tensor) -> (String, Range<usize>),
) -> Parsed<Vec<u8>> {
    let mut model = Message::default();
    for field in Reader::new(file).fields() {
        let field = field?;
        if field.number != 7 {
            model.raw(&file[field.range]);
            continue;
        }
        let mut graph = Message::default();
        for field in field.message()?.fields() {
            let field = field?;
            match moved.get(&field.range.start) {
                Some(tensor) => graph.message(5, outside(tensor, location(tensor))),
                None => graph.raw(&file[field.range]),
            }
        }
        model.message(7, graph);
    }
    let mut bytes = Vec::with_capacity(model.len());
    model.write(&[], &mut bytes).map_err(|error| format!("it cannot be written anew: {error}"))?;
    Ok(bytes)
}

/// A `TensorProto` whose numbers lie outside.
fn outside(tensor: &Tensor, (location, range): (String, Range<usize>)) -> Message {
    let mut message = Message::default();
    // Dimensions were integers with a sign when they were read.
    tensor.dims.iter().for_each(|&dim| message.int(1, dim as i64));
    message.int(2, i64::from(tensor.element.0));
    message.text(8, &tensor.name);
    for (key, value) in [("location", location), ("offset", range.start.to_string()), ("length", range.len().to_string())] {
        message.message(13, entry(key, &value));
    }
    // TensorProto.EXTERNAL.
    message.int(14, 1);
    message
}
