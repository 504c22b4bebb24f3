//! Graphs and sidecars that are refused, each with a sentence, and what is read of those that are not.

use std::path::{Path, PathBuf};

use super::*;
use crate::checkpoint::protobuf::{Message, entry};

/// A tensor: name, number type, dimensions, and its bytes or the entries that say where they are.
fn tensor(name: &str, element: i64, dims: &[i64], place: Result<&[u8], &[(&str, &str)]>) -> Message {
    let mut tensor = Message::default();
    dims.iter().for_each(|&dim| tensor.int(1, dim));
    tensor.int(2, element);
    tensor.text(8, name);
    match place {
        Ok(bytes) => tensor.bytes(9, bytes),
        Err(entries) => {
            entries.iter().for_each(|(key, value)| tensor.message(13, entry(key, value)));
            tensor.int(14, 1);
        }
    }
    tensor
}

/// An input or output; a dimension of -1 is open.
fn slot(name: &str, element: i64, dims: &[i64]) -> Message {
    let mut shape = Message::default();
    for &dim in dims {
        let mut message = Message::default();
        if dim == -1 {
            message.text(2, "batch");
        } else {
            message.int(1, dim);
        }
        shape.message(1, message);
    }
    let (mut kind, mut typed, mut info) = (Message::default(), Message::default(), Message::default());
    kind.int(1, element);
    kind.message(2, shape);
    typed.message(1, kind);
    info.text(1, name);
    info.message(2, typed);
    info
}

fn node(operator: &str, inputs: &[&str], output: &str, attribute: Option<Message>) -> Message {
    let mut node = Message::default();
    inputs.iter().for_each(|input| node.text(1, input));
    node.text(2, output);
    node.text(4, operator);
    if let Some(attribute) = attribute {
        node.message(5, attribute);
    }
    node
}

/// Fields of a graph by their numbers.
type Fields = Vec<(u32, Message)>;

/// A file of a graph: one product with the weight `w`, and what else is given.
fn model(weight: Option<Message>, more: Fields) -> Vec<u8> {
    let mut graph = Message::default();
    graph.message(1, node("MatMul", &["x", "w"], "y", None));
    if let Some(weight) = weight {
        graph.message(5, weight);
    }
    more.into_iter().for_each(|(field, message)| graph.message(field, message));
    let (mut model, mut opset) = (Message::default(), Message::default());
    opset.text(1, "");
    opset.int(2, 17);
    model.int(1, 8);
    model.text(2, "a test");
    model.message(7, graph);
    model.message(8, opset);
    bytes_of(model)
}

fn bytes_of(message: Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.write(&[], &mut bytes).unwrap();
    bytes
}

/// Inputs and outputs of a classifier of windows of 4 samples into 3 classes.
fn ends() -> Fields {
    vec![(11, slot("x", 1, &[-1, 4])), (12, slot("y", 1, &[-1, 3]))]
}

fn ends_and(more: Fields) -> Fields {
    ends().into_iter().chain(more).collect()
}

const SIDECAR: &str = r#"{"input": {"kind": "window", "name": "x", "window": 4, "sample_rate_hz": 100, "normalisation": "none"},
    "output": {"kind": "logits", "name": "y", "classes": ["a", "b", "c"]}}"#;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

/// What is wrong with a refusal.
fn fault<T>(name: &str, result: Result<T>, words: &[&str]) -> Option<String> {
    match result {
        Ok(_) => Some(format!("{name}: taken")),
        Err(error) => {
            let text = error.to_string();
            let missing: Vec<&&str> = words.iter().filter(|word| !text.contains(**word)).collect();
            (!missing.is_empty() || text.contains('\n')).then(|| format!("{name}: without {missing:?}: {text}"))
        }
    }
}

#[test]
fn graphs_that_reach_out_or_lie_about_their_size_are_refused() {
    let place = Place::new();
    place.write("weights.bin", &[0; 100]);
    std::fs::write(place.0.path().with_extension("outside"), [0; 48]).unwrap();
    let outside = place.0.path().with_extension("outside");
    std::os::unix::fs::symlink(&outside, place.0.path().join("link.bin")).unwrap();
    // Files where ONNX Runtime would not look for files.
    for name in ["*/_ORT_MEM_ADDR_", "_ORT_MEM_ADDR_"] {
        std::fs::create_dir_all(place.0.path().join(name)).unwrap();
        place.write(&format!("{name}/*"), &[0; 5000]);
    }
    place.write("*_ORT_MEM_ADDR_*", &[0; 5000]);
    let address = "ONNX Runtime's mark of an address in memory; only files are read";
    let absolute = outside.display().to_string();
    let above = format!("../{}", outside.file_name().unwrap().to_string_lossy());
    fn weight(dims: &[i64], place: Result<&[u8], &[(&str, &str)]>) -> Vec<u8> {
        model(Some(tensor("w", 1, dims, place)), ends())
    }
    let at = |location: &str, offset: &str, length: &str| {
        weight(&[4, 3], Err(&[("location", location), ("offset", offset), ("length", length)]))
    };
    let constant = |inner: Message| {
        let mut attribute = Message::default();
        attribute.text(1, "value");
        attribute.message(5, inner);
        model(None, ends_and(vec![(1, node("Constant", &[], "w", Some(attribute)))]))
    };
    let branch = |depth: usize| {
        let mut inner = Message::default();
        inner.message(5, tensor("deep", 1, &[12], Err(&[("location", "../x")])));
        for _ in 0..depth {
            let (mut attribute, mut outer) = (Message::default(), Message::default());
            attribute.message(6, inner);
            outer.message(1, node("If", &[], "z", Some(attribute)));
            inner = outer;
        }
        let mut attribute = Message::default();
        attribute.message(6, inner);
        model(None, ends_and(vec![(1, node("If", &[], "w", Some(attribute)))]))
    };
    let whole = weight(&[4, 3], Ok(&[0; 48]));
    let cases: Vec<(&str, Vec<u8>, Vec<&str>)> = vec![
        ("..", at(&above, "0", "48"), vec!["`w`", "../", "not in the graph's folder"]),
        (".. inside", at("a/../../x", "0", "48"), vec!["not in the graph's folder"]),
        ("absolute", at(&absolute, "0", "48"), vec!["not in the graph's folder"]),
        ("link", at("link.bin", "0", "48"), vec!["link out of the graph's folder"]),
        ("memory address", at("*/_ORT_MEM_ADDR_/*", "4096", "48"), vec!["`*/_ORT_MEM_ADDR_/*`", address]),
        ("memory address in a folder", at("./*/./_ORT_MEM_ADDR_/*", "4096", "48"), vec![address]),
        ("memory address without stars", at("_ORT_MEM_ADDR_/*", "4096", "48"), vec![address]),
        ("memory address without folders", at("*_ORT_MEM_ADDR_*", "4096", "48"), vec![address]),
        ("no name", weight(&[4, 3], Err(&[("offset", "0")])), vec!["does not name"]),
        ("missing", at("gone.bin", "0", "48"), vec!["gone.bin", "cannot be opened"]),
        ("beyond", at("weights.bin", "64", "48"), vec!["48 bytes at byte 64 of the file `weights.bin`, which has 100"]),
        ("overflow", at("weights.bin", "18446744073709551615", "48"), vec!["which has 100"]),
        ("negative", at("weights.bin", "-4", "48"), vec!["offset `-4`"]),
        ("other length", at("weights.bin", "0", "44"), vec!["44 bytes", "expected 48"]),
        ("in a constant", constant(tensor("c", 1, &[12], Err(&[("location", "/etc/passwd")]))), vec!["`c`", "not in the graph's folder"]),
        ("in a branch", branch(2), vec!["`deep`", "not in the graph's folder"]),
        ("too deep", branch(40), vec!["deep"]),
        ("negative dimension", weight(&[-4, 3], Ok(&[0; 48])), vec!["[-4, 3]", "negative"]),
        ("many dimensions", weight(&[1; 100], Ok(&[0; 4])), vec!["dimensions"]),
        ("huge", weight(&[1 << 40, 1 << 40], Ok(&[0; 48])), vec!["more numbers than any file holds"]),
        ("huge and nothing", weight(&[i64::MAX, 0], Ok(&[])), vec!["more numbers than any file holds"]),
        ("fewer bytes", weight(&[4, 4], Ok(&[0; 48])), vec!["48 bytes", "expected 64"]),
        ("no bytes", model(Some(tensor("w", 1, &[1 << 30], Err(&[]))), ends()), vec!["does not name"]),
        ("odd type", model(Some(tensor("w", 99, &[12], Ok(&[0; 48]))), ends()), vec!["type 99"]),
        ("input", model(None, vec![(11, slot("x", 1, &[-1, -7]))]), vec!["`x`", "dimension of -7"]),
        ("wide input", model(None, vec![(11, slot("x", 1, &[i64::MAX]))]), vec!["`x`", "9223372036854775807"]),
        ("cut", whole[..whole.len() / 2].to_vec(), vec!["pass the end"]),
        ("text", b"this is no graph at all".to_vec(), vec!["no ONNX model"]),
        ("no graph", vec![8, 8], vec!["it has no graph"]),
        ("empty", Vec::new(), vec!["it is empty"]),
        ("twice", [whole.clone(), whole.clone()].concat(), vec!["second graph"]),
        ("name", model(Some(tensor("w\n", 1, &[12], Ok(&[0; 48]))), ends()), vec!["control characters"]),
    ];
    let faults: Vec<String> = cases
        .into_iter()
        .filter_map(|(name, bytes, words)| fault(name, ForeignGraph::open(&place.write("other.onnx", &bytes)), &words))
        .collect();
    std::fs::remove_file(&outside).unwrap();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let long = place.write("long.onnx", b"");
    std::fs::File::options().write(true).open(&long).unwrap().set_len(MAX_GRAPH_BYTES + 1).unwrap();
    let faults = [
        fault("long", ForeignGraph::open(&long), &["2147483648 bytes", "external data"]),
        fault("folder", ForeignGraph::open(place.0.path()), &["not a file"]),
        fault("missing", ForeignGraph::open(&place.0.path().join("gone.onnx")), &["check the path"]),
    ];
    assert!(faults.iter().all(Option::is_none), "{faults:?}");
}

#[test]
fn sidecars_that_are_wrong_are_refused() {
    let place = Place::new();
    let weight = || Some(tensor("w", 1, &[4, 3], Ok(&[0; 48])));
    let graph = place.write("other.onnx", &model(weight(), ends()));
    let with = |from: &str, to: &str| {
        assert!(SIDECAR.contains(from), "{from}");
        SIDECAR.replacen(from, to, 1)
    };
    let padded = |bytes: usize| SIDECAR.to_string() + &" ".repeat(bytes - SIDECAR.len());
    let tokens = r#"{"input": {"kind": "tokens", "ids": "x", "tokenizer": "t.json", "max_tokens": 8},
        "output": {"kind": "embedding", "name": "y", "pooling": "mean"}}"#;
    let cases: Vec<(&str, String, Vec<&str>)> = vec![
        ("no JSON", "window: 4".into(), vec!["other.onnx.json", "no sidecar", "line 1", "--template"]),
        ("a list", "[]".into(), vec!["no sidecar"]),
        ("no output", r#"{"input": {}}"#.into(), vec!["no sidecar"]),
        ("unknown field", with(r#""window": 4"#, r#""window": 4, "widnow": 4"#), vec!["unknown field `widnow`"]),
        ("unknown output field", with(r#""name": "y""#, r#""name": "y", "labels": []"#), vec!["unknown field `labels`"]),
        ("unknown top", with(r#"{"input""#, r#"{"inputs": 1, "input""#), vec!["unknown field `inputs`"]),
        ("unknown kind", with(r#""window", "name""#, r#""spectrum", "name""#), vec!["unknown variant `spectrum`", "`patches`"]),
        ("unknown normalisation", with(r#""none""#, r#""log""#), vec!["unknown variant `log`"]),
        ("bad deviation", with(r#""none""#, r#"{"fixed": {"mean": 0, "deviation": 0}}"#), vec!["`normalisation`", "above 0"]),
        ("no rate", with(r#""sample_rate_hz": 100"#, r#""sample_rate_hz": 0"#), vec!["`sample_rate_hz` is 0"]),
        ("no window", with(r#""window": 4"#, r#""window": 0"#), vec!["`window` is 0"]),
        ("other window", with(r#""window": 4"#, r#""window": 5"#), vec!["does not fit", "float [batch, 4]", "[any, 5]"]),
        ("hop", with(r#""window": 4"#, r#""window": 4, "hop": 9"#), vec!["`hop` is 9"]),
        ("patch", with(r#""window": 4"#, r#""window": 4, "patch": 2"#), vec!["`patch`"]),
        (
            "patches that overlap too much",
            SIDECAR.replacen(r#""kind": "window""#, r#""kind": "patches""#, 1).replacen(
                r#""window": 4"#,
                r#""window": 1048576, "patch": 524288, "stride": 1"#,
                1,
            ),
            vec!["samples", "larger `stride`"],
        ),
        ("labels", with(r#""a", "b", "c""#, r#""a", "b""#), vec!["3 numbers a window", "2 classes"]),
        ("one label", with(r#""a", "b", "c""#, r#""a""#), vec!["takes two"]),
        ("labels alike", with(r#""a", "b", "c""#, r#""a", "b", "a""#), vec!["`a`", "twice"]),
        ("other input", with(r#""name": "x""#, r#""name": "signal""#), vec!["no input `signal`; it has `x`"]),
        ("other output", with(r#""name": "y""#, r#""name": "z""#), vec!["no output `z`; it has `y`"]),
        ("tokens of a signal", tokens.into(), vec!["`x` has numbers of type float", "expected int64"]),
        (
            "classes of tokens",
            with(
                r#"{"kind": "window", "name": "x", "window": 4, "sample_rate_hz": 100, "normalisation": "none"}"#,
                r#"{"kind": "tokens", "ids": "x", "tokenizer": "t.json", "max_tokens": 8}"#,
            ),
            vec!["belongs to the output kind embedding"],
        ),
        ("empty", String::new(), vec!["no sidecar"]),
        ("too long", padded(1_048_577), vec!["more than the 1048576 bytes that a sidecar may have"]),
    ];
    let mut faults: Vec<String> = Vec::new();
    for (name, text, words) in cases {
        place.write("other.onnx.json", text.as_bytes());
        faults.extend(fault(name, ForeignModel::open(&graph, None), &words));
    }
    place.write("other.onnx.json", padded(1_048_576).as_bytes());
    faults.extend(ForeignModel::open(&graph, None).err().map(|error| format!("as long as it may be: {error}")));
    std::fs::remove_file(place.0.path().join("other.onnx.json")).unwrap();
    faults.extend(fault("missing", ForeignModel::open(&graph, None), &["other.onnx.json", "missing", "--template"]));
    let sidecar = place.write("sidecar.json", SIDECAR.as_bytes());
    let shapes: Vec<(&str, Fields, Vec<&str>)> = vec![
        ("second input", ends_and(vec![(11, slot("h", 1, &[2]))]), vec!["`h` (float [2])", "does not name"]),
        ("fixed batch", vec![(11, slot("x", 1, &[8, 4])), (12, slot("y", 1, &[8, 3]))], vec!["8 windows", "dynamic"]),
        ("two channels", vec![(11, slot("x", 1, &[-1, 2, 4])), (12, slot("y", 1, &[-1, 3]))], vec!["[batch, 2, 4]", "[any, 1, 4]"]),
        ("half precision", vec![(11, slot("x", 10, &[-1, 4])), (12, slot("y", 1, &[-1, 3]))], vec!["float16; expected float"]),
        ("a map", vec![(11, slot("x", 1, &[-1, 4])), (12, slot("y", 1, &[-1, 3, 2]))], vec!["[batch, 3, 2]"]),
        ("names twice", ends_and(vec![(11, slot("x", 1, &[-1, 4]))]), vec!["`x` twice"]),
    ];
    for (name, ends, words) in shapes {
        let graph = place.write("shapes.onnx", &model(weight(), ends));
        faults.extend(fault(name, ForeignModel::open(&graph, Some(&sidecar)), &words));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_graph_is_read_and_its_weights_are_named_where_they_lie() {
    let place = Place::new();
    let numbers: Vec<u8> = (0..4 * 512).map(|index| (index % 251) as u8).collect();
    place.write("weights.bin", &[&[7; 64][..], &numbers].concat());
    let entries = [("location", "weights.bin"), ("offset", "64")];
    let more = vec![
        (5, tensor("far", 1, &[4, 128], Err(&entries))),
        (5, tensor("axes", 7, &[1], Ok(&1i64.to_le_bytes()))),
        (11, slot("near", 1, &[4, 128])),
        (11, slot("x", 1, &[-1, 1, 4])),
        (12, slot("y", 1, &[-1, 3])),
    ];
    let path = place.write("other.onnx", &model(Some(tensor("near", 1, &[4, 128], Ok(&numbers))), more));
    let sidecar = place.write("other.onnx.json", SIDECAR.as_bytes());
    let model = ForeignModel::open(&path, None).unwrap();
    let graph = &model.graph;
    assert_eq!((graph.nodes, graph.parameters(), graph.inline_bytes()), (1, 512 + 512 + 1, 8));
    assert_eq!(graph.inputs.iter().map(|slot| slot.name.as_str()).collect::<Vec<_>>(), ["x"], "what has a value need not be given");
    assert_eq!((graph.opsets.clone(), graph.producer.as_str()), (vec![(String::new(), 17)], "a test"));
    assert_eq!(model.binding, Binding { layout: Layout::Channel, batches: true });
    let weights: Vec<_> = graph.weights().map(|weight| (weight.name, weight.bytes == numbers, weight.dims.to_vec())).collect();
    assert_eq!(weights, [("near", true, vec![4, 128]), ("far", true, vec![4, 128])]);
    let light = graph.light().unwrap();
    assert!(light.len() < 600, "{} bytes without the weights", light.len());
    let light_path = place.write("light.onnx", &light);
    // Its weights are where the file that it was made of has them.
    let again = ForeignGraph::open(&light_path).unwrap();
    let found: Vec<_> = again.weights().map(|weight| (weight.name, weight.bytes == numbers)).collect();
    assert_eq!((found, again.external().len()), (vec![("near", true), ("far", true)], 2));
    let id = model.id();
    std::fs::write(&sidecar, SIDECAR.replace("\"c\"", "\"d\"")).unwrap();
    assert_ne!(ForeignModel::open(&path, None).unwrap().id(), id, "the sidecar is part of what the model is");
}

#[test]
fn a_draft_of_a_sidecar_says_what_the_graph_says_and_is_refused_until_the_rest_is_there() {
    let place = Place::new();
    let path = place.write("other.onnx", &model(Some(tensor("w", 1, &[4, 3], Ok(&[0; 48]))), ends()));
    let draft = template(&ForeignGraph::open(&path).unwrap());
    let sidecar = place.write("draft.json", draft.as_bytes());
    assert_eq!(fault("draft", ForeignModel::open(&path, Some(&sidecar)), &["`sample_rate_hz` is 0"]), None);
    place.write("draft.json", draft.replace("\"sample_rate_hz\": 0", "\"sample_rate_hz\": 50").as_bytes());
    let model = ForeignModel::open(&path, Some(&sidecar)).unwrap();
    assert_eq!(model.classes(), ["class 0", "class 1", "class 2"]);
    assert_eq!(model.sidecar.signal().unwrap().window, 4);
    assert!(is_onnx(Path::new("a/Other.ONNX")) && !is_onnx(Path::new("other.esp")));
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), at in 0usize..400, cut in 0usize..400) {
        let place = Place::new();
        let _ = ForeignGraph::open(&place.write("random.onnx", &bytes));
        let mut mutated = model(Some(tensor("w", 1, &[4, 3], Ok(&[0; 48]))), ends());
        let start = at.min(mutated.len());
        let end = (start + bytes.len() % 9).min(mutated.len());
        mutated.splice(start..end, bytes.iter().copied().take(8));
        mutated.truncate(cut.max(1));
        if let Ok(graph) = ForeignGraph::open(&place.write("mutated.onnx", &mutated)) {
            let _ = (graph.light(), template(&graph), graph.weights().count());
        }
    }
}
