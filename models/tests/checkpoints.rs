//! What a user of checkpoints relies on: an import loses nothing, an export is what transformers reads, what cannot be done is refused by
//! name.

mod common;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use espalier_models::architecture::*;
use espalier_models::checkpoint::{Absent, adapter_target, export_safetensors, for_each_source_tensor, import};
use espalier_models::tensor::model_tensors;
use espalier_models::{Artifact, DType, Dialect, Error, LayerShape, Manifest, ModelShape, Part, Result, TensorKey, TensorSource, Units};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

/// A tensor of a file: type, shape, bytes.
type Raw = (Dtype, Vec<usize>, Vec<u8>);

/// The folder of fixtures.
fn parity() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity");
    std::env::var_os("ESPALIER_PARITY").map_or_else(default, PathBuf::from)
}

/// All fixtures of the families that are read, in alphabetical order.
fn fixtures() -> Vec<PathBuf> {
    let known = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("gpt2") || name.starts_with("llama")
    };
    let mut folders: Vec<PathBuf> = std::fs::read_dir(parity()).unwrap().map(|entry| entry.unwrap().path()).filter(known).collect();
    folders.sort();
    assert!(folders.len() >= 5, "{folders:?}");
    folders
}

fn read(path: &Path) -> BTreeMap<String, Raw> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(name, view)| (name.to_string(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))).collect()
}

fn write(path: &Path, tensors: &BTreeMap<String, Raw>) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// The names of all tensors that differ.
fn different(one: &BTreeMap<String, Raw>, other: &BTreeMap<String, Raw>) -> Vec<String> {
    let names: std::collections::BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    names.into_iter().filter(|&name| one.get(name) != other.get(name)).cloned().collect()
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap()
}

/// A checkpoint in a folder of its own.
struct Checkpoint(tempfile::TempDir);

impl Checkpoint {
    /// A copy of the fixture `name`, its config and tensors changed.
    fn changed(name: &str, config_change: impl FnOnce(&mut Value), change: impl FnOnce(&mut BTreeMap<String, Raw>)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = parity().join(name);
        let (mut config, mut tensors) = (config(&source), read(&source.join("model.safetensors")));
        config_change(&mut config);
        change(&mut tensors);
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        write(&folder.path().join("model.safetensors"), &tensors);
        Self(folder)
    }

    fn import(&self) -> Result<Artifact> {
        let out = self.0.path().join("model.esp");
        import(self.0.path(), &out, None, &mut |_, _| {})?;
        Artifact::open(&out)
    }
}

/// Imports, exports in the dialect, and reads what was written.
fn round_trip(folder: &Path, dtype: Option<DType>, dialect: Option<Dialect>) -> (Artifact, BTreeMap<String, Raw>, Value) {
    let work = tempfile::tempdir().unwrap();
    let (out, back) = (work.path().join("model.esp"), work.path().join("back"));
    import(folder, &out, dtype, &mut |_, _| {}).unwrap();
    let artifact = Artifact::open(&out).unwrap();
    artifact.verify().unwrap();
    export_safetensors(&artifact, artifact.manifest(), &back, dialect).unwrap();
    assert_eq!(std::fs::read_dir(work.path()).unwrap().count(), 2, "nothing but the artifact and the folder is left");
    (artifact, read(&back.join("model.safetensors")), config(&back))
}

#[test]
fn fixtures_come_back_bit_for_bit() {
    for folder in fixtures() {
        let source = read(&folder.join("model.safetensors"));
        let (artifact, tensors, described) = round_trip(&folder, None, None);
        assert_eq!(different(&source, &tensors), Vec::<String>::new(), "{}", folder.display());
        assert_eq!(described["model_type"], config(&folder)["model_type"]);
        let numbers: usize = source.values().map(|(_, shape, _)| shape.iter().product::<usize>()).sum();
        assert_eq!(artifact.manifest().parameters(), numbers, "{}", folder.display());
        assert_eq!(artifact.manifest().compression_ratio(), 1.0);
    }
}

#[test]
fn sixteen_bit_checkpoints_come_back_bit_for_bit() {
    for folder in fixtures() {
        let name = folder.file_name().unwrap().to_str().unwrap();
        for (dtype, stored) in [(Dtype::F16, DType::F16), (Dtype::BF16, DType::Bf16)] {
            let mut source = BTreeMap::new();
            let checkpoint = Checkpoint::changed(
                name,
                |_| {},
                |tensors| {
                    tensors.values_mut().for_each(|tensor| *tensor = rounded(tensor, dtype));
                    source = tensors.clone();
                },
            );
            let (artifact, tensors, described) = round_trip(checkpoint.0.path(), None, None);
            assert_eq!(artifact.find(TensorKey::of_layer(0, Part::Down)).unwrap().dtype, stored);
            assert_eq!(different(&source, &tensors), Vec::<String>::new(), "{name} {dtype:?}");
            assert_eq!(described["dtype"], if stored == DType::F16 { "float16" } else { "bfloat16" });
        }
    }
}

/// An f32 tensor rounded to 16 bits.
fn rounded((_, shape, data): &Raw, dtype: Dtype) -> Raw {
    let values = data.chunks(4).map(|quad| f32::from_le_bytes(quad.try_into().unwrap()));
    let bits = values.map(|value| match dtype {
        Dtype::F16 => half::f16::from_f32(value).to_bits(),
        _ => half::bf16::from_f32(value).to_bits(),
    });
    (dtype, shape.clone(), bits.flat_map(u16::to_le_bytes).collect())
}

#[test]
fn an_import_can_round_to_another_format() {
    let folder = parity().join("llama-gqa2");
    let (_, tensors, _) = round_trip(&folder, Some(DType::Bf16), None);
    let name = "model.layers.1.mlp.down_proj.weight";
    assert_eq!(tensors[name], rounded(&read(&folder.join("model.safetensors"))[name], Dtype::BF16));
    // A norm that is not exact in bf16 keeps its f32 numbers; this fixture's are not all 1.
    let norm = &tensors["model.norm.weight"];
    assert!(*norm == read(&folder.join("model.safetensors"))["model.norm.weight"] || norm.0 == Dtype::BF16);
}

#[test]
fn the_architecture_is_understood() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("model.esp");
    import(&parity().join("gpt2"), &out, None, &mut |_, _| {}).unwrap();
    let gpt2 = Artifact::open(&out).unwrap().manifest().clone();
    let expected = Architecture {
        input: Input::Tokens { vocabulary: 97 },
        embedding_scale: None,
        output: Output::NextToken { tied: true, bias: false },
        d_model: 48,
        norm: Norm { kind: NormKind::LayerNorm, epsilon: 1e-5 },
        post_norms: false,
        positions: Positions::Learned { count: 64, offset: 0 },
        spans: vec![AttentionSpan::FULL],
        attention: Attention { head_dim: 12, scale: None, qk_norm: false, qkv_bias: true, output_bias: true, fused_qkv: true },
        ffn: Ffn { gated: false, activation: Activation::GeluTanh, bias: true },
        residual: Residual::Sequential,
    };
    assert_eq!(gpt2.architecture, expected);
    assert_eq!(gpt2.shape(), ModelShape::uniform(3, Units::dense(4, 4, 192)));
    import(&parity().join("llama-gqa2"), &out, None, &mut |_, _| {}).unwrap();
    let llama = Artifact::open(&out).unwrap().manifest().clone();
    assert_eq!(llama.architecture.positions, Positions::Rotary { dims: 8, context: 64 });
    assert_eq!(llama.architecture.spans, [AttentionSpan { window: None, rotary: Some(Rotary::of_base(10_000.0)) }]);
    assert_eq!(llama.architecture.norm, Norm { kind: NormKind::RmsNorm, epsilon: 1e-6 });
    assert_eq!(llama.shape(), ModelShape::uniform(4, Units::dense(8, 4, 160)));
    assert_eq!((llama.name.as_str(), llama.origin.dialect.as_str()), ("llama-gqa2", "llama"));
}

#[test]
fn units_are_rows() {
    // Channel 5 of layer 1: column 5 of c_fc [d, F], row 5 of c_proj [F, d]. Head 2's first query: column 24 of c_attn [d, 3 · 48].
    let folder = parity().join("gpt2");
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("model.esp");
    let mut seen = Vec::new();
    import(&folder, &out, None, &mut |done, total| seen.push((done, total))).unwrap();
    assert!(seen.is_sorted() && seen.last().unwrap().0 == std::fs::metadata(&out).unwrap().len(), "{seen:?}");
    let (artifact, tensors) = (Artifact::open(&out).unwrap(), read(&folder.join("model.safetensors")));
    let number = |name: &str, index: usize| {
        f32::from_le_bytes(tensors[&format!("transformer.h.1.{name}.weight")].2[index * 4..][..4].try_into().unwrap())
    };
    let row = |part, row| {
        let mut out = vec![0.0; 48];
        artifact.rows(TensorKey::of_layer(1, part), row..row + 1, &mut out).unwrap();
        out
    };
    let column = |name: &str, width: usize, at: usize| (0..48).map(|index| number(name, index * width + at)).collect::<Vec<_>>();
    assert_eq!(row(Part::Up, 5), column("mlp.c_fc", 192, 5));
    assert_eq!(row(Part::Query, 24), column("attn.c_attn", 144, 24));
    assert_eq!(row(Part::Value, 47), column("attn.c_attn", 144, 143));
    assert_eq!(row(Part::Down, 5), (0..48).map(|index| number("mlp.c_proj", 5 * 48 + index)).collect::<Vec<_>>());
}

#[test]
fn older_forms_mean_the_same() {
    let old_llama = |config: &mut Value| {
        let fields = config.as_object_mut().unwrap();
        fields.remove("rope_parameters");
        fields.remove("dtype");
        fields.remove("head_dim");
        fields.remove("attention_bias");
        fields.insert("rope_theta".to_string(), json!(10000.0));
        fields.insert("rope_scaling".to_string(), Value::Null);
        fields.insert("torch_dtype".to_string(), json!("float32"));
    };
    let extra_llama = |tensors: &mut BTreeMap<String, Raw>| {
        let table = tensors["model.embed_tokens.weight"].clone();
        tensors.insert("lm_head.weight".to_string(), table);
        tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".to_string(), (Dtype::F32, vec![4], vec![0; 16]));
    };
    let bare_gpt2 = |tensors: &mut BTreeMap<String, Raw>| {
        *tensors = std::mem::take(tensors).into_iter().map(|(name, raw)| (name.replace("transformer.", ""), raw)).collect();
        tensors.insert("h.0.attn.bias".to_string(), (Dtype::U8, vec![1, 1, 4, 4], vec![1; 16]));
        tensors.insert("h.2.attn.masked_bias".to_string(), (Dtype::F32, vec![], vec![0; 4]));
    };
    let without_inner = |config: &mut Value| drop(config.as_object_mut().unwrap().remove("n_inner"));
    for (name, checkpoint) in [
        ("llama-gqa2", Checkpoint::changed("llama-gqa2", old_llama, extra_llama)),
        ("gpt2", Checkpoint::changed("gpt2", without_inner, bare_gpt2)),
    ] {
        let source = read(&parity().join(name).join("model.safetensors"));
        let (artifact, tensors, _) = round_trip(checkpoint.0.path(), None, None);
        assert_eq!(different(&source, &tensors), Vec::<String>::new(), "{name}");
        let work = tempfile::tempdir().unwrap();
        let out = work.path().join("model.esp");
        import(&parity().join(name), &out, None, &mut |_, _| {}).unwrap();
        assert_eq!(artifact.manifest().architecture, Artifact::open(&out).unwrap().manifest().architecture);
    }
}

#[test]
fn shards_are_read_together() {
    let folder = tempfile::tempdir().unwrap();
    let source = read(&parity().join("gpt2").join("model.safetensors"));
    std::fs::copy(parity().join("gpt2/config.json"), folder.path().join("config.json")).unwrap();
    let (first, second): (BTreeMap<_, _>, BTreeMap<_, _>) = source.clone().into_iter().partition(|(name, _)| name.contains(".h.0."));
    let files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let mut map = serde_json::Map::new();
    for (file, tensors) in files.iter().zip([&first, &second]) {
        write(&folder.path().join(file), tensors);
        map.extend(tensors.keys().map(|name| (name.clone(), json!(file))));
    }
    let index = folder.path().join("model.safetensors.index.json");
    let write_index = |map: &serde_json::Map<String, Value>| std::fs::write(&index, json!({ "weight_map": map }).to_string()).unwrap();
    write_index(&map);
    let (_, tensors, _) = round_trip(folder.path(), None, None);
    assert_eq!(different(&source, &tensors), Vec::<String>::new());
    for file in ["../model.safetensors", "/etc/passwd", "..", "", files[1]] {
        let mut map = map.clone();
        map.insert("transformer.h.0.ln_1.bias".to_string(), json!(file));
        write_index(&map);
        let error = import(folder.path(), &folder.path().join("x.esp"), None, &mut |_, _| {}).unwrap_err();
        assert!(matches!(error, Error::Checkpoint { .. }), "{file}: {error}");
    }
}

#[test]
fn what_cannot_be_imported_is_named() {
    type Config = fn(&mut Value);
    let configs: &[(&str, &str, Config)] = &[
        ("gpt2", "model_type", |c| c["model_type"] = json!("bert")),
        ("gpt2", "gelu_fast", |c| c["activation_function"] = json!("gelu_fast")),
        ("gpt2", "scale_attn_by_inverse_layer_idx", |c| c["scale_attn_by_inverse_layer_idx"] = json!(true)),
        ("gpt2", "scale_attn_weights", |c| c["scale_attn_weights"] = json!(false)),
        ("gpt2", "n_head", |c| c["n_head"] = json!(5)),
        ("gpt2", "n_head", |c| c["n_head"] = json!(0)),
        ("gpt2", "n_layer", |c| c["n_layer"] = json!(200_000_000)),
        ("gpt2", "h.3", |c| c["n_layer"] = json!(4)),
        ("gpt2", "h.2", |c| c["n_layer"] = json!(2)),
        ("gpt2", "n_embd", |c| c["n_embd"] = json!(-1)),
        ("gpt2", "n_embd", |c| c["n_embd"] = json!(1e300)),
        ("gpt2", "c_fc", |c| c["n_inner"] = json!(191)),
        ("gpt2", "lm_head.weight", |c| c["tie_word_embeddings"] = json!(false)),
        ("gpt2", "layer_norm_epsilon", |c| c["layer_norm_epsilon"] = json!("small")),
        ("gpt2", "quantised", |c| c["quantization_config"] = json!({})),
        ("llama-gqa2", "llama3", |c| c["rope_parameters"]["rope_type"] = json!("llama3")),
        ("llama-gqa2", "linear", |c| c["rope_scaling"] = json!({ "type": "linear", "factor": 2.0 })),
        ("llama-gqa2", "num_key_value_heads", |c| c["num_key_value_heads"] = json!(3)),
        ("llama-gqa2", "q_proj.bias", |c| c["attention_bias"] = json!(true)),
        ("llama-gqa2", "gate_proj.bias", |c| c["mlp_bias"] = json!(true)),
        ("llama-gqa2", "q_proj.weight", |c| c["head_dim"] = json!(16)),
        ("llama-gqa2", "head size", |c| c["rope_parameters"]["partial_rotary_factor"] = json!(0.125)),
        ("llama-mha", "embed_tokens.weight", |c| c["vocab_size"] = json!(98)),
    ];
    let mut wrong = Vec::new();
    let mut expect = |what: String, word: &str, checkpoint: &Checkpoint| match checkpoint.import() {
        Ok(_) => wrong.push(format!("{what}: imported")),
        Err(error) if !error.to_string().contains(word) => wrong.push(format!("{what}: {error}")),
        Err(_) => {}
    };
    for (name, word, change) in configs {
        expect(format!("{name} {word}"), word, &Checkpoint::changed(name, change, |_| {}));
    }
    type Tensors = fn(&mut BTreeMap<String, Raw>);
    let tensors: &[(&str, Tensors)] = &[
        ("transformer.h.1.ln_2.bias", |t| drop(t.remove("transformer.h.1.ln_2.bias"))),
        ("score.weight", |t| drop(t.insert("score.weight".to_string(), (Dtype::F32, vec![2], vec![0; 8])))),
        ("F64", |t| drop(t.insert("transformer.ln_f.bias".to_string(), (Dtype::F64, vec![48], vec![0; 384])))),
        ("transformer.ln_f.bias", |t| t.get_mut("transformer.ln_f.bias").unwrap().2[..4].copy_from_slice(&f32::NAN.to_le_bytes())),
        ("c_attn.weight", |t| {
            t.get_mut("transformer.h.0.attn.c_attn.weight").unwrap().2[400..404].copy_from_slice(&f32::INFINITY.to_le_bytes());
        }),
        ("shape", |t| t.get_mut("transformer.h.0.attn.c_attn.weight").unwrap().1 = vec![144, 48]),
    ];
    for (word, change) in tensors {
        expect(word.to_string(), word, &Checkpoint::changed("gpt2", |_| {}, change));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Every unit's number: row of the unit times 100 plus the column, so that a test sees which unit is where.
struct Counted<'a>(&'a Manifest);

impl TensorSource for Counted<'_> {
    fn rows(&self, key: TensorKey, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        if !self.contains(key) {
            return Err(Error::Request { key, problem: "there is none".to_string() });
        }
        let width = out.len() / rows.len();
        out.iter_mut().enumerate().for_each(|(index, value)| *value = ((rows.start + index / width) * 100 + index % width) as f32);
        Ok(())
    }

    fn contains(&self, key: TensorKey) -> bool {
        key.layer != Some(1) && model_tensors(&self.0.architecture, &self.0.shape()).iter().any(|spec| spec.key == key)
    }
}

/// The manifest of the fixture `name` with other layers.
fn pruned(name: &str, layers: &[LayerShape]) -> Manifest {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("model.esp");
    import(&parity().join(name), &out, None, &mut |_, _| {}).unwrap();
    let imported = Artifact::open(&out).unwrap().manifest().clone();
    Manifest { origin: imported.origin, ..common::manifest(imported.architecture, layers.to_vec()) }
}

#[test]
fn gradients_get_the_sources_names() {
    let manifest = pruned("llama-gqa2", &[LayerShape::Removed, LayerShape::Kept(Units::dense(2, 1, 2)), kept(&[1, 0], 2, 3)]);
    let mut seen = BTreeMap::new();
    let source = Counted(&manifest);
    for_each_source_tensor(&manifest, Dialect::Llama, &source, Absent::Skip, &mut |name, shape, numbers| {
        seen.insert(name.to_string(), (shape.to_vec(), numbers.to_vec()));
        Ok(())
    })
    .unwrap();
    // The stored layer 2 is the second that is there; layer 1 has no gradients.
    assert!(seen.keys().all(|name| !name.contains("layers.0.") && !name.contains("layers.2.")), "{:?}", seen.keys());
    let (shape, down) = &seen["model.layers.1.mlp.down_proj.weight"];
    assert_eq!((shape.as_slice(), &down[..6]), (&[64, 3][..], &[0.0, 100.0, 200.0, 1.0, 101.0, 201.0][..]));
    // Head 1 belongs to group 0 and comes first.
    assert_eq!(seen["model.layers.1.self_attn.q_proj.weight"].1[0], 800.0);
    assert_eq!(seen["model.layers.1.self_attn.q_proj.weight"].1[8 * 64], 0.0);
    assert_eq!(seen["model.layers.1.self_attn.o_proj.weight"].1[..2], [800.0, 900.0]);
    assert_eq!(seen["model.layers.1.self_attn.k_proj.weight"].1[0], 0.0);
    let refused = for_each_source_tensor(&manifest, Dialect::Espalier, &source, Absent::Refuse, &mut |_, _, _| Ok(()));
    assert!(matches!(refused, Err(Error::Request { .. })));
}

fn kept(heads: &[u32], groups: usize, channels: usize) -> LayerShape {
    LayerShape::Kept(Units { heads: heads.to_vec(), groups, channels, span: 0 })
}

/// Writes an artifact of the manifest, exports it in the dialect and imports that again.
fn export_and_import(manifest: &Manifest, dialect: Option<Dialect>) -> Result<(Artifact, Artifact)> {
    let work = tempfile::tempdir().unwrap();
    let (out, back, again) = (work.path().join("a.esp"), work.path().join("back"), work.path().join("b.esp"));
    common::write(&out, manifest, DType::F16, 3)?;
    let artifact = Artifact::open(&out)?;
    let exported = export_safetensors(&artifact, artifact.manifest(), &back, dialect);
    if exported.is_err() {
        assert!(!back.exists() && std::fs::read_dir(work.path()).unwrap().count() == 1, "a refused export leaves nothing behind");
    }
    exported?;
    import(&back, &again, None, &mut |_, _| {})?;
    Ok((artifact, Artifact::open(&again)?))
}

#[test]
fn uniformly_pruned_models_keep_their_dialect() {
    let cases = [
        ("gpt2", vec![kept(&[0, 1, 2, 3], 4, 10), LayerShape::Removed, kept(&[0, 1, 2, 3], 4, 10)]),
        ("llama-gqa2", vec![kept(&[0, 0, 1, 1], 2, 7); 3]),
        ("llama-mha", vec![LayerShape::Removed, kept(&[0], 1, 1)]),
    ];
    for (name, layers) in cases {
        let (before, after) = export_and_import(&pruned(name, &layers), None).unwrap();
        let kept: Vec<LayerShape> = layers.iter().filter(|layer| layer.units().is_some()).cloned().collect();
        assert_eq!(after.manifest().shape().layers, kept, "{name}");
        assert_eq!(after.manifest().architecture, before.manifest().architecture);
        assert_eq!(after.manifest().parameters(), before.manifest().parameters());
    }
    // Heads stored in another order are sorted by KV group: head 1 comes first.
    let (before, after) = export_and_import(&pruned("llama-gqa2", &[kept(&[1, 0, 1, 0], 2, 7)]), None).unwrap();
    assert_eq!(after.manifest().shape().layers, [kept(&[0, 0, 1, 1], 2, 7)]);
    for part in [Part::Query, Part::AttentionOutput] {
        let mut rows = [vec![0.0; 32 * 64], vec![0.0; 32 * 64]];
        before.read_rows(TensorKey::of_layer(0, part), 0..32, &mut rows[0]).unwrap();
        after.read_rows(TensorKey::of_layer(0, part), 0..32, &mut rows[1]).unwrap();
        for (place, head) in [1, 3, 0, 2].into_iter().enumerate() {
            assert_eq!(rows[1][place * 8 * 64..][..8 * 64], rows[0][head * 8 * 64..][..8 * 64], "{part:?} {place}");
        }
    }
}

#[test]
fn shapes_that_a_dialect_cannot_say_are_refused() {
    let cases = [
        ("gpt2", "fewer heads", vec![kept(&[0, 1, 2], 3, 10)], "3 heads of 12"),
        ("gpt2", "other channels", vec![kept(&[0, 1, 2, 3], 4, 10), kept(&[0, 1, 2, 3], 4, 11)], "layer 1 has"),
        ("gpt2", "no layers", vec![LayerShape::Removed], "no layer"),
        ("gpt2", "no channels", vec![kept(&[0, 1, 2, 3], 4, 0)], "0 channels"),
        ("llama-gqa2", "uneven groups", vec![kept(&[0, 0, 0, 1], 2, 10)], "share"),
        ("llama-gqa2", "no heads", vec![kept(&[], 0, 10)], "0 heads"),
        ("llama-gqa2", "other heads", vec![kept(&[0, 0], 1, 10), kept(&[0], 1, 10)], "layer 1 has"),
    ];
    let mut wrong = Vec::new();
    for (name, what, layers, reason) in cases {
        let manifest = pruned(name, &layers);
        match export_and_import(&manifest, None) {
            Err(error @ Error::Inexpressible { .. }) if error.to_string().contains(reason) => {}
            other => wrong.push(format!("{name}, {what}: {other:?}")),
        }
        match export_and_import(&manifest, Some(Dialect::Espalier)) {
            Ok((before, after)) if before.manifest().layers == after.manifest().layers && common::differences(&after).is_empty() => {}
            other => wrong.push(format!("{name}, {what}, espalier: {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let foreign = export_and_import(&pruned("gpt2", &[kept(&[0, 1, 2, 3], 4, 10)]), Some(Dialect::Llama));
    assert!(matches!(foreign, Err(Error::Inexpressible { .. })));
}

#[test]
fn signal_models_come_back_whole() {
    let mut manifest = common::classifier(6, 4, common::odd_layers());
    manifest.architecture.input = Input::Patches { window: 64, patch: 8, stride: 8, sample_rate_hz: 12_000.1 };
    let (before, after) = export_and_import(&manifest, None).unwrap();
    assert_eq!(before.manifest(), after.manifest());
    assert_eq!(before.id(), after.id());
    assert_eq!(common::differences(&after), Vec::<String>::new());
}

#[test]
fn tokenizers_travel_along() {
    let checkpoint = Checkpoint::changed("gpt2", |_| {}, |_| {});
    std::fs::write(checkpoint.0.path().join("tokenizer.json"), b"{\"version\": \"1.0\"}").unwrap();
    let artifact = checkpoint.import().unwrap();
    assert_eq!(artifact.manifest().tokenizer.as_deref(), Some(&b"{\"version\": \"1.0\"}"[..]));
    let back = checkpoint.0.path().join("back");
    export_safetensors(&artifact, artifact.manifest(), &back, None).unwrap();
    assert_eq!(std::fs::read(back.join("tokenizer.json")).unwrap(), b"{\"version\": \"1.0\"}");
    let error = export_safetensors(&artifact, artifact.manifest(), &back, None).unwrap_err().to_string();
    assert!(error.contains("not empty"), "{error}");
}

#[test]
fn chat_templates_travel_along() {
    let checkpoint = Checkpoint::changed("gpt2", |_| {}, |_| {});
    let folder = checkpoint.0.path();
    let config = |artifact: &Artifact| serde_json::from_str::<serde_json::Value>(&artifact.manifest().origin.config).unwrap();
    let plain = config(&checkpoint.import().unwrap());
    assert!(plain["chat_template"].is_null() && plain["n_embd"].is_u64());

    std::fs::write(folder.join("tokenizer_config.json"), r#"{"chat_template": "old", "eos_token": {"content": "</s>"}, "unk_token": 1}"#)
        .unwrap();
    let with = config(&checkpoint.import().unwrap());
    assert_eq!((with["chat_template"].as_str(), with["eos_token"]["content"].as_str()), (Some("old"), Some("</s>")));
    assert!(with["unk_token"].is_null() && with["n_embd"] == plain["n_embd"]);

    std::fs::write(folder.join("chat_template.jinja"), "new").unwrap();
    assert_eq!(config(&checkpoint.import().unwrap())["chat_template"], "new");
    std::fs::write(folder.join("tokenizer_config.json"), "[]").unwrap();
    let error = checkpoint.import().err().unwrap().to_string();
    assert!(error.contains("tokenizer_config.json"), "{error}");
}

#[test]
fn adapters_find_their_matrices() {
    use Part::*;
    let gpt2 = pruned("gpt2", &[LayerShape::Removed, kept(&[0, 1], 2, 4), kept(&[0, 1], 2, 4)]);
    let llama = pruned("llama-gqa2", &[kept(&[0, 1], 2, 4)]);
    let ours = common::classifier(4, 2, vec![LayerShape::Removed, kept(&[0, 1], 2, 4)]);
    let cases = [
        (&gpt2, "transformer.h.0.attn.c_attn", Some((1, vec![Query, Key, Value]))),
        (&gpt2, "h.1.attn.c_proj", Some((2, vec![AttentionOutput]))),
        (&gpt2, "transformer.h.1.mlp.c_fc", Some((2, vec![Up]))),
        (&gpt2, "transformer.h.1.mlp.c_proj", Some((2, vec![Down]))),
        (&gpt2, "transformer.h.2.mlp.c_proj", None),
        (&gpt2, "transformer.h.1.ln_1", None),
        (&gpt2, "transformer.h.x.mlp.c_fc", None),
        (&gpt2, "lm_head", None),
        (&llama, "model.layers.0.mlp.down_proj", Some((0, vec![Down]))),
        (&llama, "model.layers.0.self_attn.q_proj", Some((0, vec![Query]))),
        (&llama, "model.layers.0.mlp.gate_proj", Some((0, vec![Gate]))),
        (&llama, "model.embed_tokens", None),
        (&ours, "layers.1.down", Some((1, vec![Down]))),
        (&ours, "layers.0.down", None),
    ];
    let wrong: Vec<_> = cases.iter().filter(|(manifest, name, expected)| adapter_target(manifest, name) != *expected).collect();
    assert!(wrong.is_empty(), "{:?}", wrong.iter().map(|(_, name, _)| name).collect::<Vec<_>>());
}
