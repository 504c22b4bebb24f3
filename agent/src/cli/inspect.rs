//! `espalier inspect`

use std::path::PathBuf;

use espalier_models::architecture::{Architecture, Input, Output, Positions, Residual, RotaryScaling};
use espalier_models::{Artifact, DType, LayerShape, Manifest};
use espalier_runtime::Plan;

use super::foreign::{self, SidecarArgs};
use super::{print, print_json};
use crate::error::{AgentError, Result};
use crate::prune::pack::matrix_dtype;
use crate::table::{self, Table};

/// Options of `inspect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The artifact, or an ONNX graph of another program.
    pub(super) model: PathBuf,
    /// Read all of it and check every checksum.
    #[arg(long)]
    pub(super) verify: bool,
    #[command(flatten)]
    pub(super) sidecar: SidecarArgs,
    /// Print a first draft of an ONNX graph's sidecar, and nothing else.
    #[arg(long, conflicts_with_all = ["json", "verify", "sidecar"])]
    pub(super) template: bool,
    /// Print as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(serde::Serialize)]
struct Inspection<'a> {
    name: &'a str,
    id: String,
    file_bytes: u64,
    parameters: usize,
    weights: &'static str,
    compression_ratio: f64,
    architecture: &'a espalier_models::Architecture,
    layers: Vec<LayerLine>,
    plan: Vec<(String, u64)>,
    plan_total_bytes: u64,
    history: &'a [String],
    measured: Option<espalier_models::manifest::Measured>,
    verified: bool,
}

#[derive(serde::Serialize)]
struct LayerLine {
    original: u32,
    heads: usize,
    groups: usize,
    channels: usize,
    parameters: usize,
}

pub fn run(args: &Args) -> Result<()> {
    if foreign::is_onnx(&args.model) {
        return foreign::inspect(args);
    }
    args.sidecar.check_none(&args.model)?;
    if args.template {
        let path = args.model.display();
        return Err(AgentError::Usage(format!("--template is of ONNX graphs, and {path} is none by its name; leave it out")));
    }
    let artifact = Artifact::open(&args.model)?;
    if args.verify {
        artifact.verify()?;
    }
    if args.json {
        let manifest = artifact.manifest();
        let plan = Plan::serving(manifest, artifact.file_bytes());
        return print_json(&Inspection {
            name: &manifest.name,
            id: format!("{:016x}", artifact.id()),
            file_bytes: artifact.file_bytes(),
            parameters: manifest.parameters(),
            weights: weights(manifest)[0],
            compression_ratio: manifest.compression_ratio(),
            architecture: &manifest.architecture,
            layers: layer_lines(&artifact),
            plan: plan.lines.iter().map(|line| (line.purpose.clone(), line.bytes)).collect(),
            plan_total_bytes: plan.total(),
            history: &manifest.origin.history,
            measured: manifest.measured,
            verified: args.verify,
        });
    }
    let verified = if args.verify { "\nevery checksum is right\n" } else { "" };
    print(&format!("{}\n{}\n{}{verified}", describe_model(&artifact), layers(&artifact), plan_table(&artifact)))
}

/// What a model is, in a few lines.
pub fn describe_model(artifact: &Artifact) -> String {
    let manifest = artifact.manifest();
    let architecture = &manifest.architecture;
    let input = match &architecture.input {
        Input::Tokens { vocabulary } => format!("tokens, vocabulary {vocabulary}"),
        Input::Patches { window, patch, stride, sample_rate_hz } => {
            format!("windows of {window} samples at {sample_rate_hz} Hz, patches of {patch} every {stride}")
        }
    };
    let output = match &architecture.output {
        Output::NextToken { tied, bias } => {
            format!("next token{}{}", if *tied { ", tied to the token table" } else { "" }, if *bias { ", with a bias" } else { "" })
        }
        Output::Classes { names } => format!("classes {}", names.join(", ")),
    };
    let positions = match architecture.positions {
        Positions::Learned { count, .. } => format!("{count} learned positions"),
        Positions::Rotary { dims, context } => format!("rotary, {dims} dimensions, context {context}"),
    };
    let mut text = format!(
        "{}: {} parameters ({:.2}× smaller than the first network), {}, id {:016x}\n\
         weights  {}{}\ninput    {input}\noutput   {output}\nblocks   width {}, head size {}, {positions}, {:?}, FFN {:?}{}{}\n{}",
        artifact.path().display(),
        table::count(manifest.parameters() as u64),
        manifest.compression_ratio(),
        table::bytes(artifact.file_bytes()),
        artifact.id(),
        weights(manifest)[0],
        weights(manifest)[1],
        architecture.d_model,
        architecture.attention.head_dim,
        architecture.norm.kind,
        architecture.ffn.activation,
        if architecture.ffn.gated { ", gated" } else { "" },
        particulars(architecture),
        spans(artifact),
    );
    if let Some(diagnosis) = &manifest.diagnosis {
        let (classes, window, rate) = (diagnosis.classes.join(", "), diagnosis.window, diagnosis.sample_rate_hz);
        text += &format!("by text: {classes}, of windows of {window} samples at {rate} Hz\n");
    }
    if let Some(measured) = manifest.measured {
        let accuracy = measured.accuracy.map_or(String::new(), |accuracy| format!("accuracy {:.1} %, ", accuracy * 100.0));
        text += &format!("holdout  {accuracy}cross entropy {:.3} nats\n", measured.loss);
    }
    for event in &manifest.origin.history {
        text += &format!("history  {event}\n");
    }
    text
}

/// The number format of a model's matrices by its short name, and what is to be said of it.
fn weights(manifest: &Manifest) -> [&'static str; 2] {
    match matrix_dtype(manifest) {
        DType::F32 => ["f32", ""],
        DType::F16 => ["f16", "; norms and biases f32"],
        DType::Bf16 => ["bf16", "; norms and biases f32"],
        DType::Q8 => ["q8", " (8-bit blocks of 32 with a scale); norms and biases f32"],
        DType::Q4 => ["q4", " (4-bit blocks of 32 with a scale and a minimum); norms and biases f32"],
    }
}

/// What not every family has, as a list.
fn particulars(architecture: &Architecture) -> String {
    let mut all = Vec::new();
    match architecture.residual {
        Residual::Sequential => {}
        Residual::Parallel { shared_norm: true } => all.push("attention and FFN parallel behind one norm".to_string()),
        Residual::Parallel { shared_norm: false } => all.push("attention and FFN parallel, each behind its norm".to_string()),
    }
    all.extend(architecture.attention.qk_norm.then(|| "QK norm".to_string()));
    all.extend(architecture.post_norms.then(|| "post norms".to_string()));
    all.extend(architecture.attention.scale.map(|scale| format!("scores × {scale}")));
    all.extend(architecture.embedding_scale.map(|scale| format!("embeddings × {scale}")));
    all.iter().map(|particular| format!(", {particular}")).collect()
}

/// How far attention reaches and how it tells positions apart, a line a kind; nothing where all layers see everything and positions are
/// learned.
fn spans(artifact: &Artifact) -> String {
    let manifest = artifact.manifest();
    let mut text = String::new();
    for (index, span) in manifest.architecture.spans.iter().enumerate() {
        let layers = manifest.shape().kept().filter(|(_, units)| units.span == index).count();
        let reach = span.window.map_or("full attention".to_string(), |window| format!("sliding window of {window}"));
        let rotary = match span.rotary {
            None if span.window.is_none() => continue,
            None => String::new(),
            Some(rotary) => format!(", rotary base {}{}", rotary.base, scaling(rotary.scaling)),
        };
        text += &format!("layers   {layers} with {reach}{rotary}\n");
    }
    text
}

fn scaling(scaling: RotaryScaling) -> String {
    match scaling {
        RotaryScaling::None => String::new(),
        RotaryScaling::Linear { factor } => format!(", stretched {factor} times"),
        RotaryScaling::Llama3 { factor, .. } => format!(", long waves stretched {factor} times"),
    }
}

fn layer_lines(artifact: &Artifact) -> Vec<LayerLine> {
    let manifest = artifact.manifest();
    let line = |layer: &espalier_models::manifest::StoredLayer| match &layer.shape {
        LayerShape::Removed => LayerLine { original: layer.original, heads: 0, groups: 0, channels: 0, parameters: 0 },
        LayerShape::Kept(units) => LayerLine {
            original: layer.original,
            heads: units.heads.len(),
            groups: units.groups,
            channels: units.channels,
            parameters: units.parameters(&manifest.architecture),
        },
    };
    manifest.layers.iter().map(line).collect()
}

fn layers(artifact: &Artifact) -> Table {
    let mut table = Table::new(["layer", "first index", "heads", "KV groups", "channels", "parameters"]);
    for (index, line) in layer_lines(artifact).into_iter().enumerate() {
        let numbers = [index, line.original as usize, line.heads, line.groups, line.channels, line.parameters];
        table.row(numbers.map(|number| number.to_string()));
    }
    table
}

fn plan_table(artifact: &Artifact) -> Table {
    let plan = Plan::serving(artifact.manifest(), artifact.file_bytes());
    let mut table = Table::new(["serving holds", "bytes", ""]);
    for line in &plan.lines {
        table.row([line.purpose.clone(), line.bytes.to_string(), table::bytes(line.bytes)]);
    }
    table.row(["together".to_string(), plan.total().to_string(), table::bytes(plan.total())]);
    table
}
