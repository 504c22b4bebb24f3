//! What comes of a pruned model: its own dialect where that can say it, a refusal by reason where not, and the source's names for its
//! gradients and adapters.

mod common;

use std::collections::BTreeMap;
use std::ops::Range;

use common::checkpoints::*;
use espalier_models::checkpoint::{Absent, adapter_target, for_each_source_tensor};
use espalier_models::tensor::model_tensors;
use espalier_models::{Dialect, Error, LayerShape, Manifest, Part, Result, TensorKey, TensorSource, Units};

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

/// A small layer with the attention span `span`.
fn spanned(span: usize) -> LayerShape {
    LayerShape::Kept(Units { span, ..Units::dense(2, 1, 5) })
}

#[test]
fn uniformly_pruned_models_keep_their_dialect() {
    let cases = [
        ("gpt2", vec![kept(&[0, 1, 2, 3], 4, 10), LayerShape::Removed, kept(&[0, 1, 2, 3], 4, 10)]),
        ("llama-gqa2", vec![kept(&[0, 0, 1, 1], 2, 7); 3]),
        ("llama-mha", vec![LayerShape::Removed, kept(&[0], 1, 1)]),
        ("opt", vec![kept(&[0, 1, 2, 3], 4, 7), LayerShape::Removed]),
        ("gpt_neox", vec![kept(&[0, 1, 2, 3], 4, 9); 2]),
        ("phi", vec![kept(&[0, 1, 2, 3], 4, 9); 2]),
        ("mistral", vec![kept(&[0, 0], 1, 5); 2]),
        ("qwen2", vec![kept(&[0, 0, 0], 1, 5); 2]),
        ("qwen3", vec![kept(&[0, 1], 2, 5); 2]),
        ("chatglm", vec![kept(&[0, 0, 1, 1], 2, 5); 2]),
        ("chatglm", vec![kept(&[0, 1], 2, 5)]),
        ("gemma3", vec![LayerShape::Removed, spanned(1), spanned(0), spanned(1)]),
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
        ("gpt_neox", "fewer heads", vec![kept(&[0, 1], 2, 9)], "2 heads of 16"),
        ("opt", "fewer heads", vec![kept(&[0], 1, 9)], "1 heads of 12"),
        ("chatglm", "odd heads", vec![kept(&[0, 0, 0], 1, 9)], "3 heads"),
        ("phi", "fewer heads", vec![kept(&[0], 1, 9)], "1 heads of 16"),
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
fn adapters_find_their_matrices() {
    use Part::*;
    let gpt2 = pruned("gpt2", &[LayerShape::Removed, kept(&[0, 1], 2, 4), kept(&[0, 1], 2, 4)]);
    let llama = pruned("llama-gqa2", &[kept(&[0, 1], 2, 4)]);
    let neox = pruned("gpt_neox", &[kept(&[0, 1, 2, 3], 4, 4)]);
    let glm = pruned("chatglm", &[kept(&[0, 0], 1, 4)]);
    let gemma = pruned("gemma3", &[kept(&[0, 0], 1, 4)]);
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
        (&neox, "gpt_neox.layers.0.attention.query_key_value", Some((0, vec![Query, Key, Value]))),
        (&neox, "gpt_neox.layers.0.mlp.dense_4h_to_h", Some((0, vec![Down]))),
        (&neox, "gpt_neox.layers.0.input_layernorm", None),
        (&gemma, "model.layers.0.self_attn.q_norm", None),
        (&glm, "transformer.encoder.layers.0.self_attention.query_key_value", Some((0, vec![Query, Key, Value]))),
        (&glm, "transformer.encoder.layers.0.mlp.dense_h_to_4h", Some((0, vec![Gate, Up]))),
        (&ours, "layers.1.down", Some((1, vec![Down]))),
        (&ours, "layers.0.down", None),
    ];
    let wrong: Vec<_> = cases.iter().filter(|(manifest, name, expected)| adapter_target(manifest, name) != *expected).collect();
    assert!(wrong.is_empty(), "{:?}", wrong.iter().map(|(_, name, _)| name).collect::<Vec<_>>());
}
