//! What the families' checkpoints mean: their configs as all versions of transformers write them, and layouts that only one family has.

mod common;

use std::collections::BTreeMap;

use common::checkpoints::*;
use espalier_models::architecture::*;
use espalier_models::checkpoint::import;
use espalier_models::{Artifact, ModelShape, Units};
use safetensors::Dtype;
use serde_json::{Value, json};

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
    // Moves the rotary base to where older versions had it, and leaves out what they did not write.
    fn old_rope(config: &mut Value, base: &str) {
        let fields = config.as_object_mut().unwrap();
        let rope = fields.remove("rope_parameters").unwrap();
        fields.remove("layer_types");
        fields.insert(base.to_string(), rope.get("rope_theta").cloned().unwrap_or(json!(1_000_000.0)));
    }
    let old_gemma = |config: &mut Value| {
        old_rope(config, "rope_theta");
        config["rope_local_base_freq"] = json!(10000.0);
        config["sliding_window_pattern"] = json!(3);
        config.as_object_mut().unwrap().remove("_sliding_window_pattern");
    };
    let old_neox = |config: &mut Value| {
        old_rope(config, "rotary_emb_base");
        config["rotary_pct"] = json!(0.25);
    };
    let old_phi = |config: &mut Value| {
        old_rope(config, "rope_theta");
        config["partial_rotary_factor"] = json!(0.5);
        config["num_key_value_heads"] = Value::Null;
    };
    let bare_opt = |tensors: &mut BTreeMap<String, Raw>| {
        *tensors = std::mem::take(tensors).into_iter().map(|(name, raw)| (name.replace("model.decoder", "decoder"), raw)).collect();
        let table = tensors["decoder.embed_tokens.weight"].clone();
        tensors.insert("lm_head.weight".to_string(), table);
    };
    let neox_constants = |tensors: &mut BTreeMap<String, Raw>| {
        tensors.insert("gpt_neox.layers.1.attention.masked_bias".to_string(), (Dtype::F32, vec![], vec![0; 4]));
        tensors.insert("gpt_neox.layers.1.attention.rotary_emb.inv_freq".to_string(), (Dtype::F32, vec![2], vec![0; 8]));
    };
    let without_inner = |config: &mut Value| drop(config.as_object_mut().unwrap().remove("n_inner"));
    for (name, checkpoint) in [
        ("llama-gqa2", Checkpoint::changed("llama-gqa2", old_llama, extra_llama)),
        ("gpt2", Checkpoint::changed("gpt2", without_inner, bare_gpt2)),
        ("opt", Checkpoint::changed("opt", |_| {}, bare_opt)),
        ("gpt_neox", Checkpoint::changed("gpt_neox", old_neox, neox_constants)),
        ("phi", Checkpoint::changed("phi", old_phi, |_| {})),
        ("mistral", Checkpoint::changed("mistral", |config| old_rope(config, "rope_theta"), |_| {})),
        ("qwen2", Checkpoint::changed("qwen2", |config| old_rope(config, "rope_theta"), |_| {})),
        ("qwen3", Checkpoint::changed("qwen3", |config| old_rope(config, "rope_theta"), |_| {})),
        ("gemma3", Checkpoint::changed("gemma3", old_gemma, |_| {})),
    ] {
        let folder = parity().join(name);
        let source = as_stored(&folder, read(&folder.join("model.safetensors")));
        let (artifact, tensors, _) = round_trip(checkpoint.0.path(), None, None);
        assert_eq!(different(&source, &tensors), Vec::<String>::new(), "{name}");
        let work = tempfile::tempdir().unwrap();
        let out = work.path().join("model.esp");
        import(&parity().join(name), &out, None, &mut |_, _| {}).unwrap();
        let expected = Artifact::open(&out).unwrap();
        assert_eq!(artifact.manifest().architecture, expected.manifest().architecture, "{name}");
        assert_eq!(artifact.manifest().layers, expected.manifest().layers, "{name}");
    }
}

/// The architecture and the attention span of every layer of a changed fixture.
fn described(name: &str, change: impl FnOnce(&mut Value)) -> (Architecture, Vec<usize>) {
    let artifact = Checkpoint::changed(name, change, |_| {}).import().unwrap();
    let spans = artifact.manifest().shape().kept().map(|(_, units)| units.span).collect();
    (artifact.manifest().architecture.clone(), spans)
}

#[test]
fn windows_follow_the_rules_of_each_family() {
    let windows = |name: &str, change: fn(&mut Value)| {
        let (architecture, spans) = described(name, change);
        spans.iter().map(|span| architecture.spans[*span].window).collect::<Vec<_>>()
    };
    let none = vec![None; 3];
    type Case = (&'static str, fn(&mut Value), Vec<Option<usize>>);
    let cases: [Case; 8] = [
        ("mistral", |_| {}, vec![Some(8); 3]),
        ("mistral", |c| c["sliding_window"] = Value::Null, none.clone()),
        ("mistral", |c| drop(c.as_object_mut().unwrap().remove("sliding_window")), vec![Some(4096); 3]),
        ("qwen2", |_| {}, none.clone()),
        ("qwen2", |c| c["sliding_window"] = json!(5), none.clone()),
        (
            "qwen2",
            |c| {
                c.as_object_mut().unwrap().remove("layer_types");
                c["use_sliding_window"] = json!(true);
                c["sliding_window"] = json!(5);
                c["max_window_layers"] = json!(1);
            },
            vec![None, Some(5), Some(5)],
        ),
        (
            "qwen3",
            |c| {
                c["layer_types"][0] = json!("sliding_attention");
                c["use_sliding_window"] = json!(true);
                c["sliding_window"] = json!(5);
            },
            vec![Some(5), None, None],
        ),
        ("gemma3", |_| {}, vec![Some(6), Some(6), None, Some(6)]),
    ];
    let wrong: Vec<_> = cases.into_iter().map(|(name, change, expected)| (name, windows(name, change), expected)).collect();
    let wrong: Vec<_> = wrong.iter().filter(|(_, found, expected)| found != expected).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn rotary_scaling_is_read_in_both_forms() {
    let scaled = |change: fn(&mut Value)| described("llama-gqa2", change).0.spans[0].rotary.unwrap();
    let llama3 = RotaryScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 32 };
    let found = [
        scaled(|c| c["rope_scaling"] = json!({ "type": "linear", "factor": 2.0 })),
        scaled(|c| c["rope_parameters"] = json!({ "rope_type": "linear", "factor": 2, "rope_theta": 10000 })),
        scaled(|c| {
            c.as_object_mut().unwrap().remove("rope_parameters");
            c["rope_theta"] = json!(5e5);
            c["rope_scaling"] = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32 });
        }),
    ];
    let linear = Rotary { base: 1e4, scaling: RotaryScaling::Linear { factor: 2.0 } };
    assert_eq!(found, [linear, linear, Rotary { base: 5e5, scaling: llama3 }]);
}
