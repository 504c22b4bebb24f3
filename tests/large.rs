//! A model of the size that the cascade's paper reports on: 6.2 billion parameters in 12.5 GB, as a file of holes.
//!
//! It is ChatGLM-2's shape, all zero but for what shows that offsets beyond 4 GiB are right: token 5 is a row of ones, and so are the
//! final norm and row 7 of the output matrix, which lies in the last half GiB. Every layer adds nothing, so token 7 follows token 5.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use espalier_models::architecture::*;
use espalier_models::manifest::{Manifest, Origin, StoredLayer};
use espalier_models::{Artifact, ArtifactWriter, DType, LayerShape, Part, TensorKey, Units};
use espalier_runtime::gauges::anonymous_bytes;

const D: usize = 4096;
const LAYERS: u32 = 28;
const VOCABULARY: usize = 65_024;

fn architecture() -> Architecture {
    Architecture {
        input: Input::Tokens { vocabulary: VOCABULARY },
        embedding_scale: None,
        output: Output::NextToken { tied: false, bias: false },
        d_model: D,
        norm: Norm { kind: NormKind::RmsNorm, epsilon: 1e-5 },
        post_norms: false,
        positions: Positions::Rotary { dims: 64, context: 32_768 },
        spans: vec![AttentionSpan { window: None, rotary: Some(Rotary { base: 10_000.0, scaling: RotaryScaling::None }) }],
        attention: Attention { head_dim: 128, qkv_bias: true, output_bias: false, fused_qkv: true, qk_norm: false, scale: None },
        ffn: Ffn { gated: true, activation: Activation::Silu, bias: false },
        residual: Residual::Sequential,
    }
}

fn manifest() -> Manifest {
    let units = Units::dense(32, 2, 13_696);
    let layer = |original| StoredLayer {
        original,
        original_heads: (0..32).collect(),
        original_groups: (0..2).collect(),
        original_channels: (0..13_696).collect(),
        shape: LayerShape::Kept(units.clone()),
    };
    Manifest {
        name: "chatglm-2-shape".into(),
        architecture: architecture(),
        layers: (0..LAYERS).map(layer).collect(),
        tensors: Vec::new(),
        levels: Vec::new(),
        origin: Origin { dialect: "espalier".into(), config: String::new(), dense_parameters: 0, history: Vec::new() },
        tokenizer: None,
        measured: None,
        diagnosis: None,
    }
}

fn write(path: &Path) -> espalier_models::Result<()> {
    let mut writer = ArtifactWriter::create_sparse(path, manifest(), DType::Bf16)?;
    let mut rows = vec![0.0; 8 * D];
    rows[5 * D..6 * D].fill(1.0);
    writer.write_rows(TensorKey::global(Part::TokenTable), &rows)?;
    writer.write_rows(TensorKey::global(Part::FinalNorm), &[1.0; D])?;
    rows.fill(0.0);
    rows[7 * D..].fill(1.0);
    writer.write_rows(TensorKey::global(Part::Head), &rows)?;
    writer.finish()?;
    Ok(())
}

/// The JSON that the program prints.
fn json(arguments: &[&OsStr]) -> serde_json::Value {
    let output = Command::new(env!("CARGO_BIN_EXE_espalier")).args(arguments).output().expect("the program");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn available_bytes() -> u64 {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap_or("");
    line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0) << 10
}

#[test]
fn a_model_of_six_billion_parameters_is_inspected_and_serves_a_token() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let path = folder.path().join("large.esp");
    write(&path).expect("a file of holes");

    let (before, started) = (anonymous_bytes().expect("a gauge"), Instant::now());
    let artifact = Artifact::open(&path).expect("the artifact");
    let (ms, grown) = (started.elapsed().as_secs_f64() * 1e3, anonymous_bytes().expect("a gauge").saturating_sub(before));
    println!("{} bytes, opened in {ms:.1} ms with {grown} bytes of its own memory", artifact.file_bytes());
    assert!(grown <= 4 << 20, "opening took {grown} bytes");
    assert!((12_400_000_000..12_600_000_000).contains(&artifact.file_bytes()), "{}", artifact.file_bytes());
    let head = artifact.find(TensorKey::global(Part::Head)).expect("the output matrix");
    assert!(head.offset > 11 << 30, "{}", head.offset);
    let mut row = vec![0.0; D];
    artifact.read_rows(TensorKey::global(Part::Head), 7..8, &mut row).expect("row 7");
    assert!(row.iter().all(|number| *number == 1.0));
    drop(artifact);

    let inspected = json(&["inspect".as_ref(), path.as_os_str(), "--json".as_ref()]);
    assert_eq!(inspected["parameters"], 6_243_584_000u64);
    assert!(inspected["plan_total_bytes"].as_u64().is_some_and(|bytes| bytes > 12_400_000_000), "{}", inspected["plan"]);

    // Every page of the file passes through memory once: a machine that would have to read it twice is spared.
    if available_bytes() < 16 << 30 {
        println!("less than 16 GiB of memory are free: the token is not tried");
        return;
    }
    let said = json(&["generate", path.to_str().expect("UTF-8"), "5", "--max-tokens", "1", "--json"].map(OsStr::new));
    assert_eq!(said["ids"], serde_json::json!([7]));
}
