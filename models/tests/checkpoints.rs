//! What a user of checkpoints relies on: an import loses nothing, an export is what transformers reads, what cannot be done is refused by
//! name.

mod common;

use std::collections::BTreeMap;

use common::checkpoints::*;
use espalier_models::architecture::Input;
use espalier_models::checkpoint::{export_safetensors, import};
use espalier_models::{Artifact, DType, Error, Part, TensorKey, TensorSource};
use safetensors::Dtype;
use serde_json::{Value, json};

#[test]
fn fixtures_come_back_bit_for_bit() {
    for folder in fixtures() {
        let source = as_stored(&folder, read(&folder.join("model.safetensors")));
        let (artifact, tensors, described) = round_trip(&folder, None, None);
        assert_eq!(different(&source, &tensors), Vec::<String>::new(), "{}", folder.display());
        assert_eq!(described["model_type"], config(&folder)["model_type"]);
        let numbers: usize = source.values().map(|(_, shape, _)| shape.iter().product::<usize>()).sum();
        assert_eq!(artifact.manifest().parameters(), numbers, "{}", folder.display());
        assert_eq!(artifact.manifest().compression_ratio(), 1.0);
    }
}

/// The error that an import reports is that between the artifacts, interleaved blocks and their short ends included.
#[test]
fn an_import_says_how_far_quantised_numbers_are_off() {
    let place = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for folder in fixtures() {
        let imported = |dtype| {
            let path = place.path().join(format!("{dtype:?}.esp"));
            let report = import(&folder, &path, Some(dtype), &mut |_, _| {}).unwrap();
            (report, Artifact::open(&path).unwrap())
        };
        let (_, exact) = imported(DType::F32);
        for (dtype, most) in [(DType::Q8, 0.01), (DType::Q4, 0.15)] {
            let (report, stored) = imported(dtype);
            let mut squares = [0.0; 2];
            for tensor in exact.manifest().tensors.iter().filter(|tensor| !tensor.key.part.is_vector()) {
                let rows = tensor.rows as usize;
                let read = |artifact: &Artifact| {
                    let mut numbers = vec![0.0; rows * tensor.columns as usize];
                    artifact.read_rows(tensor.key, 0..rows, &mut numbers).unwrap();
                    numbers
                };
                for (a, b) in read(&exact).into_iter().zip(read(&stored)) {
                    let (a, b) = (f64::from(a), f64::from(b));
                    squares[0] += a * a;
                    squares[1] += (a - b) * (a - b);
                }
            }
            let (said, found) = (report.rounding.unwrap().root_mean_square(), (squares[1] / squares[0]).sqrt());
            if (said - found).abs() > 1e-6 * found || !(1e-4..most).contains(&found) {
                wrong.push(format!("{}, {dtype:?}: {said} was said, {found} is true", folder.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
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
                    source = as_stored(&folder, tensors.clone());
                },
            );
            let (artifact, tensors, described) = round_trip(checkpoint.0.path(), None, None);
            assert_eq!(artifact.find(TensorKey::of_layer(0, Part::Down)).unwrap().dtype, stored);
            assert_eq!(different(&source, &tensors), Vec::<String>::new(), "{name} {dtype:?}");
            let found = described.get("dtype").unwrap_or(&described["torch_dtype"]);
            assert_eq!(*found, if stored == DType::F16 { "float16" } else { "bfloat16" });
        }
    }
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
        ("llama-gqa2", "low_freq_factor", |c| c["rope_parameters"] = json!({ "rope_type": "llama3", "factor": 8.0 })),
        ("llama-gqa2", "yarn", |c| c["rope_parameters"]["rope_type"] = json!("yarn")),
        ("llama-gqa2", "longrope", |c| c["rope_scaling"] = json!({ "type": "longrope", "factor": 2.0 })),
        ("llama-gqa2", "factor", |c| c["rope_scaling"] = json!({ "type": "linear", "factor": 0.0 })),
        ("llama-gqa2", "num_key_value_heads", |c| c["num_key_value_heads"] = json!(3)),
        ("llama-gqa2", "q_proj.bias", |c| c["attention_bias"] = json!(true)),
        ("llama-gqa2", "gate_proj.bias", |c| c["mlp_bias"] = json!(true)),
        ("llama-gqa2", "q_proj.weight", |c| c["head_dim"] = json!(16)),
        ("llama-gqa2", "dimensions of a head", |c| c["rope_parameters"]["partial_rotary_factor"] = json!(0.125)),
        ("llama-mha", "embed_tokens.weight", |c| c["vocab_size"] = json!(98)),
        ("opt", "do_layer_norm_before", |c| c["do_layer_norm_before"] = json!(false)),
        ("opt", "word_embed_proj_dim", |c| c["word_embed_proj_dim"] = json!(24)),
        ("opt", "_remove_final_layer_norm", |c| c["_remove_final_layer_norm"] = json!(true)),
        ("opt", "q_proj.bias", |c| c["enable_bias"] = json!(false)),
        ("gpt_neox", "dimensions of a head", |c| c["rope_parameters"]["partial_rotary_factor"] = json!(0.2)),
        ("gpt_neox", "dense.bias", |c| c["attention_bias"] = json!(false)),
        ("phi", "qk_layernorm", |c| c["qk_layernorm"] = json!(true)),
        ("mistral", "sliding_window", |c| c["sliding_window"] = json!(0)),
        ("qwen2", "layer_types", |c| c["layer_types"][1] = json!("sliding_attention")),
        ("qwen2", "layer_types", |c| c["layer_types"] = json!(["full_attention"])),
        ("qwen3", "chunked_attention", |c| c["layer_types"][1] = json!("chunked_attention")),
        ("qwen3", "q_proj.weight", |c| c["head_dim"] = Value::Null),
        ("gemma3", "attn_logit_softcapping", |c| c["attn_logit_softcapping"] = json!(50.0)),
        ("gemma3", "final_logit_softcapping", |c| c["final_logit_softcapping"] = json!(30.0)),
        ("gemma3", "use_bidirectional_attention", |c| c["use_bidirectional_attention"] = json!(true)),
        ("gemma3", "sliding_attention", |c| drop(c["rope_parameters"].as_object_mut().unwrap().remove("sliding_attention"))),
        ("gemma3", "sliding_window", |c| c["sliding_window"] = Value::Null),
        ("chatglm", "rope_ratio", |c| c["rope_ratio"] = json!(50)),
        ("chatglm", "post_layer_norm", |c| c["post_layer_norm"] = json!(false)),
        ("chatglm", "apply_residual_connection_post_layernorm", |c| c["apply_residual_connection_post_layernorm"] = json!(true)),
        ("chatglm", "kv_channels", |c| c["kv_channels"] = json!(18)),
        ("chatglm", "multi_query_group_num", |c| c["multi_query_group_num"] = json!(3)),
        ("chatglm", "query_key_value.weight", |c| c["multi_query_attention"] = json!(false)),
        ("gemma3", "score", |c| c["query_pre_attn_scalar"] = json!(0)),
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
    assert_eq!(artifact.tokenizer().unwrap(), Some(&b"{\"version\": \"1.0\"}"[..]));
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
