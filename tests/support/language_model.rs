//! A small language model with a tokenizer.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// A checkpoint of random weights with the byte-level tokenizer of the tests: a language model that reads a prompt in milliseconds.
pub fn checkpoint(folder: &Path) {
    let (d, heads, groups, head, channels, layers, vocabulary) = (32, 4, 2, 8, 64, 2, 360);
    fs::create_dir(folder).expect("a folder");
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": d, "intermediate_size": channels, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": groups, "vocab_size": vocabulary, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "hidden_act": "silu"
    });
    fs::write(folder.join("config.json"), config.to_string()).expect("a config");
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/byte_level_bpe.json");
    fs::copy(tokenizer, folder.join("tokenizer.json")).expect("a tokenizer");
    let mut shapes = vec![("model.embed_tokens.weight".to_string(), vec![vocabulary, d]), ("model.norm.weight".to_string(), vec![d])];
    for layer in 0..layers {
        let parts = [
            ("self_attn.q_proj", vec![heads * head, d]),
            ("self_attn.k_proj", vec![groups * head, d]),
            ("self_attn.v_proj", vec![groups * head, d]),
            ("self_attn.o_proj", vec![d, heads * head]),
            ("mlp.gate_proj", vec![channels, d]),
            ("mlp.up_proj", vec![channels, d]),
            ("mlp.down_proj", vec![d, channels]),
            ("input_layernorm", vec![d]),
            ("post_attention_layernorm", vec![d]),
        ];
        shapes.extend(parts.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
    }
    let mut state = 7_u64;
    let mut number = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.4
    };
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let norm = shape.len() == 1;
            let count = shape.iter().product::<usize>();
            let bytes = (0..count).flat_map(|_| if norm { 1.0_f32 } else { number() }.to_le_bytes()).collect();
            (name, shape, bytes)
        })
        .collect();
    let views: BTreeMap<&str, TensorView<'_>> = data
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a tensor")))
        .collect();
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).expect("a checkpoint");
}
