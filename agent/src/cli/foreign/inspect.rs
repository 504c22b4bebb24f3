//! `espalier inspect` with a graph of another program.

use std::sync::Arc;

use espalier_models::foreign::{ForeignGraph, ForeignModel, Slot, sidecar_beside, template};
#[cfg(feature = "ort")]
use espalier_runtime::foreign_plan;

use crate::cli::inspect::Args;
use crate::cli::{print, print_json};
use crate::error::{AgentError, Result};
use crate::table::{self, Table};

#[derive(serde::Serialize)]
struct Inspection<'a> {
    producer: &'a str,
    ir_version: i64,
    opsets: Vec<(&'a str, i64)>,
    file_bytes: u64,
    nodes: usize,
    operators: &'a std::collections::BTreeMap<String, usize>,
    parameters: u64,
    inputs: Vec<SlotLine<'a>>,
    outputs: Vec<SlotLine<'a>>,
    external: Vec<(&'a str, u64)>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    plan: Vec<(String, u64)>,
    sidecar_fits: bool,
    /// Where the sidecar is, or why it does not fit.
    sidecar: String,
}

#[derive(serde::Serialize)]
struct SlotLine<'a> {
    name: &'a str,
    shape: String,
}

/// Shows a graph, or with `--template` a first draft of its sidecar.
pub(in crate::cli) fn run(args: &Args) -> Result<()> {
    if args.verify {
        let path = args.model.display();
        return Err(AgentError::Usage(format!("{path} is an ONNX graph, which has no checksums to verify; leave --verify out")));
    }
    let graph = Arc::new(ForeignGraph::open(&args.model)?);
    if args.template {
        return print(&template(&graph));
    }
    let path = args.sidecar.sidecar.clone().unwrap_or_else(|| sidecar_beside(&args.model));
    let sidecar = match ForeignModel::of(graph.clone(), args.sidecar.sidecar.as_deref()) {
        Ok(model) => Ok(format!("{} fits, id {:016x}", path.display(), model.id())),
        Err(error) => Err(error.to_string()),
    };
    match args.json {
        true => print_json(&inspection(&graph, sidecar)),
        false => print(&describe(&graph, sidecar)),
    }
}

fn inspection(graph: &ForeignGraph, sidecar: std::result::Result<String, String>) -> Inspection<'_> {
    Inspection {
        producer: &graph.producer,
        ir_version: graph.ir_version,
        opsets: graph.opsets.iter().map(|(domain, version)| (domain.as_str(), *version)).collect(),
        file_bytes: graph.bytes().len() as u64,
        nodes: graph.nodes,
        operators: &graph.operators,
        parameters: graph.parameters(),
        inputs: lines(&graph.inputs),
        outputs: lines(&graph.outputs),
        external: graph.external().iter().map(|file| (file.location.as_str(), file.bytes().len() as u64)).collect(),
        plan: plan(graph),
        sidecar_fits: sidecar.is_ok(),
        sidecar: sidecar.unwrap_or_else(|problem| problem),
    }
}

fn lines(slots: &[Slot]) -> Vec<SlotLine<'_>> {
    slots.iter().map(|slot| SlotLine { name: &slot.name, shape: slot.shape() }).collect()
}

/// What serving it holds, as far as it is known before the first run.
#[cfg(feature = "ort")]
fn plan(graph: &ForeignGraph) -> Vec<(String, u64)> {
    foreign_plan(graph).lines.into_iter().map(|line| (line.purpose, line.bytes)).collect()
}

#[cfg(not(feature = "ort"))]
fn plan(_: &ForeignGraph) -> Vec<(String, u64)> {
    Vec::new()
}

fn describe(graph: &ForeignGraph, sidecar: std::result::Result<String, String>) -> String {
    let path = graph.path().display();
    let opsets: Vec<String> = graph
        .opsets
        .iter()
        .map(|(domain, version)| if domain.is_empty() { version.to_string() } else { format!("{domain} {version}") })
        .collect();
    let mut text = format!(
        "{path}: an ONNX graph by {}, {} nodes, {} parameters, {}\nformat   version {}, operator sets {}\n",
        if graph.producer.is_empty() { "an unknown program" } else { &graph.producer },
        graph.nodes,
        table::count(graph.parameters()),
        table::bytes(graph.bytes().len() as u64),
        graph.ir_version,
        opsets.join(", "),
    );
    for (what, slots) in [("input ", &graph.inputs), ("output", &graph.outputs)] {
        for slot in slots {
            text += &format!("{what}   {}: {}\n", slot.name, slot.shape());
        }
    }
    for file in graph.external() {
        text += &format!("file     {}, {}\n", file.location, table::bytes(file.bytes().len() as u64));
    }
    let operators: Vec<String> = graph.operators.iter().map(|(name, count)| format!("{count} {name}")).collect();
    text += &format!("nodes    {}\n", operators.join(", "));
    match &sidecar {
        Ok(fits) => text += &format!("sidecar  {fits}\n"),
        Err(problem) => text += &format!("sidecar  {problem}\n"),
    }
    let plan = plan(graph);
    if !plan.is_empty() {
        let mut rows = Table::new(["serving holds, and what a run takes", "bytes", ""]);
        let total: u64 = plan.iter().map(|(_, bytes)| *bytes).sum();
        for (purpose, bytes) in plan.into_iter().chain([("together".to_string(), total)]) {
            rows.row([purpose, bytes.to_string(), table::bytes(bytes)]);
        }
        text += &format!("\n{rows}\n");
    }
    if sidecar.is_err() {
        text += &format!(
            "\na draft of the sidecar, whose zeros and class names want replacing (espalier inspect {path} --template > {}):\n{}",
            sidecar_beside(graph.path()).display(),
            template(graph)
        );
    }
    text
}
