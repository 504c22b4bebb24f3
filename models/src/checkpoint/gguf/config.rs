//! The `config.json` that transformers would have for the model of a GGUF file.
//!
//! Everything after this reads that description, so that a model from a GGUF file is like any other and can be exported as a folder too.
//! Keys that mean something to ggml and nothing here are refused by name: what they would change is not known.

use serde_json::{Map, Value, json};

use super::reader::Gguf;
use crate::artifact::validate::MAX_LENGTH;
use crate::checkpoint::tensors::Tensors;
use crate::error::{Result, quoted};

/// The fields of a `config.json`.
type Fields = Map<String, Value>;

/// What a value of `general.architecture` means.
pub(super) struct Family {
    /// The value.
    pub architecture: &'static str,
    /// `model_type` of the same family.
    pub model_type: &'static str,
    /// Its class in transformers.
    class: &'static str,
    /// The key of the norms' epsilon.
    pub epsilon: &'static str,
    /// Keys that only this family has.
    keys: &'static [&'static str],
    /// Whether query and key rows that rotary embedding turns against each other lie side by side.
    pub rotary_pairs: bool,
    /// Whether llama.cpp loads the family only where all heads together are as wide as the model.
    pub full_heads: bool,
    /// Makes the family's fields.
    fields: fn(&Keys<'_>) -> Result<Fields>,
}

const RMS: &str = "attention.layer_norm_rms_epsilon";
const LAYER: &str = "attention.layer_norm_epsilon";

/// All families that are read.
const FAMILIES: &[Family] = &[
    family(["llama", "llama", "LlamaForCausalLM"], RMS, &[], true, false, llama),
    family(["qwen2", "qwen2", "Qwen2ForCausalLM"], RMS, &[], false, true, qwen2),
    family(["qwen3", "qwen3", "Qwen3ForCausalLM"], RMS, &[], false, false, qwen3),
    family(["gemma3", "gemma3_text", "Gemma3ForCausalLM"], RMS, &["attention.sliding_window", "rope.freq_base_swa"], false, false, gemma3),
    family(["gpt2", "gpt2", "GPT2LMHeadModel"], LAYER, &[], false, true, gpt2),
    family(["phi2", "phi", "PhiForCausalLM"], LAYER, &[], false, true, phi2),
    family(["gptneox", "gpt_neox", "GPTNeoXForCausalLM"], LAYER, &["use_parallel_residual"], false, true, gptneox),
];

/// A family with its names: in GGUF, as `model_type`, of its class.
const fn family(
    [architecture, model_type, class]: [&'static str; 3],
    epsilon: &'static str,
    keys: &'static [&'static str],
    rotary_pairs: bool,
    full_heads: bool,
    fields: fn(&Keys<'_>) -> Result<Fields>,
) -> Family {
    Family { architecture, model_type, class, epsilon, keys, rotary_pairs, full_heads, fields }
}

/// Keys that every family may have.
const KEYS: &[&str] = &[
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "vocab_size",
    "tensor_data_layout",
];

/// Keys that are harmless with the one value that changes nothing.
const NEUTRAL: &[(&str, f64)] = &[
    ("expert_count", 0.0),
    ("expert_used_count", 0.0),
    ("attention.causal", 1.0),
    ("attn_logit_softcapping", 0.0),
    ("final_logit_softcapping", 0.0),
    ("logit_scale", 1.0),
    ("residual_scale", 1.0),
    ("embedding_scale", 1.0),
];

impl Family {
    /// The family that the file says it is.
    pub fn of(gguf: &Gguf) -> Result<&'static Family> {
        let name = gguf.text("general.architecture")?.ok_or_else(|| gguf.wrong("general.architecture", "the name of a family"))?;
        let names: Vec<&str> = FAMILIES.iter().map(|family| family.architecture).collect();
        let refused = || gguf.unsupported(format!("the architecture {}", quoted(name)), format!("{} are", names.join(", ")));
        FAMILIES.iter().find(|family| family.architecture == name).ok_or_else(refused)
    }

    /// The family of a `config.json` whose `model_type` is `model_type`, and of those that llama.cpp calls by the same name.
    pub fn of_model_type(model_type: &str) -> Option<&'static Family> {
        let model_type = if model_type == "mistral" { "llama" } else { model_type };
        FAMILIES.iter().find(|family| family.model_type == model_type)
    }

    /// Whether layers may see a window only.
    pub fn has_window(&self) -> bool {
        self.keys.contains(&"attention.sliding_window")
    }

    /// The whole `config.json`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`](crate::Error::Checkpoint) where a key is missing or is not what it must be,
    /// [`Error::Unsupported`](crate::Error::Unsupported) where one asks for what cannot be done exactly.
    pub fn config(&self, gguf: &Gguf) -> Result<Fields> {
        let keys = Keys { gguf, family: self };
        keys.refuse_unknown()?;
        let mut fields = (self.fields)(&keys)?;
        fields.insert("model_type".to_string(), json!(self.model_type));
        fields.insert("architectures".to_string(), json!([self.class]));
        fields.insert("vocab_size".to_string(), json!(keys.vocabulary()?));
        fields.insert("torch_dtype".to_string(), json!("float32"));
        keys.text_fields(&mut fields)?;
        Ok(fields)
    }
}

/// The keys of one family in one file.
struct Keys<'a> {
    gguf: &'a Gguf,
    family: &'a Family,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.family.architecture)
    }

    /// The size `name`, at least 1; none where it is missing.
    fn find(&self, name: &str) -> Result<Option<u64>> {
        let key = self.key(name);
        if self.gguf.is_array(&key) {
            return Err(self.gguf.unsupported(format!("metadata `{key}` with a value for each layer"), "one value for all layers is"));
        }
        match self.gguf.count(&key)? {
            Some(size) if size == 0 || size > MAX_LENGTH as u64 => {
                Err(self.gguf.wrong(&key, &format!("a whole number from 1 to {MAX_LENGTH}")))
            }
            size => Ok(size),
        }
    }

    /// The size `name`, at least 1.
    fn size(&self, name: &str) -> Result<u64> {
        self.find(name)?.ok_or_else(|| self.gguf.wrong(&self.key(name), "a whole number"))
    }

    /// The number `name`, or `default` where it is missing.
    fn number_or(&self, name: &str, default: f64) -> Result<f64> {
        Ok(self.gguf.number(&self.key(name))?.unwrap_or(default))
    }

    fn epsilon(&self) -> Result<f64> {
        let key = self.key(self.family.epsilon);
        self.gguf.number(&key)?.ok_or_else(|| self.gguf.wrong(&key, "a number"))
    }

    /// Refuses keys of the family that are not known.
    fn refuse_unknown(&self) -> Result<()> {
        let prefix = self.key("");
        for key in self.gguf.keys() {
            let Some(name) = key.strip_prefix(&prefix) else { continue };
            if KEYS.contains(&name) || self.family.keys.contains(&name) || name == self.family.epsilon {
                continue;
            }
            let neutral = NEUTRAL.iter().find(|(neutral, _)| *neutral == name);
            let Some(&(_, neutral)) = neutral else {
                return Err(self.gguf.unsupported(format!("metadata {}", quoted(key)), "what it changes in the model is not known"));
            };
            let value = match self.gguf.flag(key) {
                Ok(flag) => flag.map(|flag| f64::from(u8::from(flag))),
                Err(_) => self.gguf.number(key)?,
            };
            if value != Some(neutral) {
                let feature = format!("metadata `{key}` = {}", value.unwrap_or_default());
                return Err(self.gguf.unsupported(feature, format!("only {neutral} is")));
            }
        }
        Ok(())
    }

    fn has(&self, tensor: &str) -> bool {
        self.gguf.find(tensor).is_some()
    }

    /// Rows of the token table.
    fn vocabulary(&self) -> Result<usize> {
        let missing = || crate::Error::MissingTensor { path: self.gguf.path().to_path_buf(), tensor: "token_embd.weight".to_string() };
        Ok(self.gguf.find("token_embd.weight").ok_or_else(missing)?.shape[0])
    }

    /// The size of a head: `attention.key_length`, or the width divided by the number of heads.
    fn head_dim(&self) -> Result<u64> {
        let (d_model, heads) = (self.size("embedding_length")?, self.size("attention.head_count")?);
        let head_dim = match self.find("attention.key_length")? {
            Some(length) => length,
            None if d_model.is_multiple_of(heads) => d_model / heads,
            None => return Err(self.gguf.wrong(&self.key("attention.head_count"), &format!("a divisor of the width {d_model}"))),
        };
        match self.find("attention.value_length")? {
            Some(length) if length != head_dim => {
                Err(self.gguf.unsupported(format!("values of {length} dimensions a head and keys of {head_dim}"), "equal ones are"))
            }
            _ => Ok(head_dim),
        }
    }

    /// The dimensions of a head that are rotated.
    fn rotary_dims(&self) -> Result<u64> {
        let head_dim = self.head_dim()?;
        Ok(self.find("rope.dimension_count")?.unwrap_or(head_dim))
    }

    /// Their share of all its dimensions.
    fn rotated(&self) -> Result<f64> {
        Ok(self.rotary_dims()? as f64 / self.head_dim()? as f64)
    }

    /// Fields that all families from Llama on share.
    fn decoder(&self) -> Result<Fields> {
        let heads = self.size("attention.head_count")?;
        let fields = json!({
            "hidden_size": self.size("embedding_length")?,
            "intermediate_size": self.size("feed_forward_length")?,
            "num_hidden_layers": self.size("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": self.find("attention.head_count_kv")?.unwrap_or(heads),
            "head_dim": self.head_dim()?,
            "max_position_embeddings": self.size("context_length")?,
            "rope_theta": self.number_or("rope.freq_base", 10_000.0)?,
            "tie_word_embeddings": !self.has("output.weight"),
        });
        let mut fields = object(fields);
        if self.rotated()? != 1.0 {
            fields.insert("partial_rotary_factor".to_string(), json!(self.rotated()?));
        }
        if let Some(scaling) = self.rotary_scaling()? {
            fields.insert("rope_scaling".to_string(), scaling);
        }
        Ok(fields)
    }

    /// `rope_scaling`, none where positions are not scaled. As in llama.cpp, scaling is linear where no type is named, and the factors 0 and
    /// 1 mean none.
    fn rotary_scaling(&self) -> Result<Option<Value>> {
        let key = self.key("rope.scaling.factor");
        let factor = self.gguf.number(&key)?;
        let scaled = factor.filter(|&factor| factor != 0.0 && factor != 1.0);
        let linear = match (self.gguf.text(&self.key("rope.scaling.type"))?, factor) {
            (Some("none"), _) => None,
            (Some("linear"), None) => return Err(self.gguf.wrong(&key, "a number")),
            (None | Some("linear"), _) => scaled,
            (Some(other), _) => {
                let feature = format!("rotary scaling of type {}", quoted(other));
                return Err(self.gguf.unsupported(feature, "`none` and `linear` are"));
            }
        };
        let factors = super::rotary::factors(self.gguf, self.rotary_dims()? as usize)?;
        match linear {
            Some(_) if factors.is_some() => {
                let feature = format!("linear rotary scaling (`{key}`) together with the tensor `{}`", super::rotary::TENSOR);
                Err(self.gguf.unsupported(feature, "one of the two is"))
            }
            Some(factor) => Ok(Some(json!({ "rope_type": "linear", "factor": factor }))),
            None => Ok(factors),
        }
    }

    /// The ids of special tokens and the chat template.
    fn text_fields(&self, fields: &mut Fields) -> Result<()> {
        let id = |name: &str| self.gguf.count(&format!("tokenizer.ggml.{name}_token_id"));
        // The end of a turn ends a text as the end of a text does.
        let mut ends: Vec<u64> = [id("eos")?, id("eot")?].into_iter().flatten().collect();
        ends.dedup();
        match ends[..] {
            [] => {}
            [end] => _ = fields.insert("eos_token_id".to_string(), json!(end)),
            _ => _ = fields.insert("eos_token_id".to_string(), json!(ends)),
        }
        for (field, name) in [("bos_token_id", "bos"), ("pad_token_id", "padding")] {
            if let Some(id) = id(name)? {
                fields.insert(field.to_string(), json!(id));
            }
        }
        if let Some(template) = self.gguf.text("tokenizer.chat_template")? {
            fields.insert("chat_template".to_string(), json!(template));
        }
        Ok(())
    }
}

/// The fields of an object.
fn object(value: Value) -> Fields {
    match value {
        Value::Object(fields) => fields,
        _ => Fields::new(),
    }
}

/// `fields` and `more`.
fn with(mut fields: Fields, more: Value) -> Fields {
    fields.extend(object(more));
    fields
}

/// Llama (Touvron et al., 2023), Mistral and what else llama.cpp runs as one.
fn llama(keys: &Keys<'_>) -> Result<Fields> {
    let more = json!({
        "rms_norm_eps": keys.epsilon()?,
        "hidden_act": "silu",
        "attention_bias": keys.has("blk.0.attn_q.bias"),
        "mlp_bias": keys.has("blk.0.ffn_up.bias"),
    });
    Ok(with(keys.decoder()?, more))
}

/// Qwen2 and Qwen2.5: biases on q, k and v.
fn qwen2(keys: &Keys<'_>) -> Result<Fields> {
    Ok(with(keys.decoder()?, json!({ "rms_norm_eps": keys.epsilon()?, "hidden_act": "silu", "use_sliding_window": false })))
}

/// Qwen3: QK norm, no biases.
fn qwen3(keys: &Keys<'_>) -> Result<Fields> {
    let more = json!({ "rms_norm_eps": keys.epsilon()?, "hidden_act": "silu", "use_sliding_window": false, "attention_bias": false });
    Ok(with(keys.decoder()?, more))
}

/// Gemma 3: of six layers five see a window and have a rotary base of their own.
fn gemma3(keys: &Keys<'_>) -> Result<Fields> {
    let (layers, head_dim) = (keys.size("block_count")?, keys.head_dim()?);
    let window = keys.size("attention.sliding_window")?;
    let kinds = |layer| if (layer + 1) % 6 == 0 { "full_attention" } else { "sliding_attention" };
    let kinds: Vec<&str> = (0..layers.min(1 << 16)).map(kinds).collect();
    // The model of 62 layers, 27 B, is the only one whose scores are not scaled by the head size.
    let scale = if layers == 62 { keys.size("embedding_length")? / keys.size("attention.head_count")? } else { head_dim };
    let more = json!({
        "rms_norm_eps": keys.epsilon()?,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": false,
        "query_pre_attn_scalar": scale,
        "sliding_window": window,
        "layer_types": kinds,
        "rope_theta": keys.number_or("rope.freq_base", 1_000_000.0)?,
        "rope_local_base_freq": keys.number_or("rope.freq_base_swa", 10_000.0)?,
    });
    Ok(with(keys.decoder()?, more))
}

/// GPT-2 (Radford et al., 2019).
fn gpt2(keys: &Keys<'_>) -> Result<Fields> {
    Ok(object(json!({
        "n_embd": keys.size("embedding_length")?,
        "n_layer": keys.size("block_count")?,
        "n_head": keys.size("attention.head_count")?,
        "n_inner": keys.size("feed_forward_length")?,
        "n_positions": keys.size("context_length")?,
        "layer_norm_epsilon": keys.epsilon()?,
        "activation_function": "gelu_new",
        "tie_word_embeddings": !keys.has("output.weight"),
    })))
}

/// Phi 1, 1.5 and 2: attention and FFN read one norm.
fn phi2(keys: &Keys<'_>) -> Result<Fields> {
    let more = json!({
        "layer_norm_eps": keys.epsilon()?,
        "hidden_act": "gelu_new",
        "qk_layernorm": false,
        "partial_rotary_factor": keys.rotated()?,
    });
    Ok(with(keys.decoder()?, more))
}

/// GPT-NeoX and Pythia.
fn gptneox(keys: &Keys<'_>) -> Result<Fields> {
    let parallel = keys.gguf.flag(&keys.key("use_parallel_residual"))?.unwrap_or(true);
    let mut fields = keys.decoder()?;
    // transformers writes the rotary share and base of this family under names of their own.
    for name in ["head_dim", "num_key_value_heads", "partial_rotary_factor", "rope_theta"] {
        fields.remove(name);
    }
    let more = json!({
        "layer_norm_eps": keys.epsilon()?,
        "hidden_act": "gelu",
        "rotary_pct": keys.rotated()?,
        "rotary_emb_base": keys.number_or("rope.freq_base", 10_000.0)?,
        "use_parallel_residual": parallel,
        "attention_bias": true,
    });
    Ok(with(fields, more))
}
