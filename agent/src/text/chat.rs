//! A conversation as the prompt that a model was trained on: the checkpoint's chat template, a Jinja template with the variables and
//! functions that transformers' `apply_chat_template` gives it.

use espalier_models::Manifest;

use super::{Tokenizer, parse_config, special_token};
use crate::error::{AgentError, Result};

/// The longest template. The longest that models come with have tens of KiB.
const MAX_TEMPLATE_BYTES: usize = 256 << 10;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Message {
    /// Who says it: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// What `role` says.
    pub fn new(role: &str, content: &str) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// The chat template of a model.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "text"), expect(dead_code, reason = "only rendering reads the template"))]
pub struct ChatTemplate {
    name: String,
    source: String,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

impl ChatTemplate {
    /// The template that came with a model: a text, or the one named `default` of a list.
    pub fn of(manifest: &Manifest, tokenizer: &Tokenizer) -> Result<Self> {
        let config = parse_config(manifest);
        let source = match &config["chat_template"] {
            serde_json::Value::String(source) => Some(source.clone()),
            serde_json::Value::Array(list) => {
                let default = list.iter().find(|entry| entry["name"] == "default");
                default.and_then(|entry| entry["template"].as_str()).map(str::to_string)
            }
            _ => None,
        };
        let name = manifest.name.clone();
        let missing = || AgentError::Usage(format!("{name} has no chat template: it is no chat model; leave out --chat"));
        let source = source.ok_or_else(missing)?;
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(AgentError::Usage(format!(
                "the chat template of {name} has {} bytes, more than {MAX_TEMPLATE_BYTES}; leave out --chat, and give the whole prompt",
                source.len()
            )));
        }
        // Some checkpoints name these tokens, others number them.
        let token = |name: &str| {
            let id = || config[format!("{name}_id")].as_u64().and_then(|id| tokenizer.token(u32::try_from(id).ok()?));
            special_token(&config, name).or_else(id)
        };
        let [bos_token, eos_token] = ["bos_token", "eos_token"].map(token);
        Ok(Self { name, source, bos_token, eos_token })
    }

    /// The prompt for the assistant's next message. Special tokens are in it by name: tokenise it without adding any.
    #[cfg(feature = "text")]
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        render::prompt(self, messages).map_err(|error| {
            let line = error.line().map_or(String::new(), |line| format!(" in line {line}"));
            AgentError::Usage(format!("the chat template of {} fails{line}: {error}", self.name))
        })
    }

    /// No template can be rendered.
    #[cfg(not(feature = "text"))]
    pub fn render(&self, _messages: &[Message]) -> Result<String> {
        Err(AgentError::Usage(format!(
            "{} has a chat template, and this program was built without the feature `text`; build it with that feature",
            self.name
        )))
    }
}

#[cfg(feature = "text")]
mod render {
    use std::fmt::Write;
    use std::io;

    use minijinja::value::{Kwargs, ValueKind};
    use minijinja::{Environment, Error, ErrorKind, Value};

    use super::{ChatTemplate, Message};

    /// Steps that a template may take: thousands of times what a long conversation needs, and soon over where a template loops.
    const MAX_STEPS: u64 = 50_000_000;

    /// The longest prompt: more than any model reads. What a template holds in variables is not bounded: the library counts its steps only.
    pub const MAX_OUTPUT_BYTES: usize = 16 << 20;

    /// Values inside each other that `tojson` follows.
    const MAX_DEPTH: usize = 64;

    pub fn prompt(template: &ChatTemplate, messages: &[Message]) -> Result<String, Error> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(MAX_STEPS));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        let mut variables = std::collections::BTreeMap::from([
            ("messages", Value::from_serialize(messages)),
            ("add_generation_prompt", Value::from(true)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ]);
        for (name, token) in [("bos_token", &template.bos_token), ("eos_token", &template.eos_token)] {
            if let Some(token) = token {
                variables.insert(name, Value::from(token.as_str()));
            }
        }
        let mut out = Bounded { text: Vec::new(), full: false };
        let rendered = environment.template_from_str(&template.source)?.render_captured_to(variables, &mut out).map(|_| ());
        if out.full {
            let problem = format!("the prompt grows beyond {MAX_OUTPUT_BYTES} bytes");
            return Err(Error::new(ErrorKind::InvalidOperation, problem));
        }
        rendered?;
        String::from_utf8(out.text).map_err(|_| Error::new(ErrorKind::InvalidOperation, "the prompt is not UTF-8 text"))
    }

    /// Takes [`MAX_OUTPUT_BYTES`].
    struct Bounded {
        text: Vec<u8>,
        full: bool,
    }

    impl io::Write for Bounded {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if bytes.len() > MAX_OUTPUT_BYTES - self.text.len() {
                self.full = true;
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            self.text.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn raise_exception(message: String) -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    }

    /// The local time in `format`, with the letters of C's `strftime`.
    fn strftime_now(format: String) -> Result<String, Error> {
        let mut out = String::new();
        match write!(out, "{}", chrono::Local::now().format(&format)) {
            Ok(()) => Ok(out),
            Err(_) => Err(Error::new(ErrorKind::InvalidOperation, format!("`{format}` is no format of a time"))),
        }
    }

    /// JSON as Python's `json.dumps(…, ensure_ascii=False)` writes it: a space after `:` and, on one line, after `,`.
    fn to_json(value: Value, options: Kwargs) -> Result<Value, Error> {
        let indent: Option<usize> = options.get("indent")?;
        let mut out = String::new();
        write_json(&mut out, &value, indent.map(|indent| indent.min(16)), 0)?;
        Ok(Value::from_safe_string(out))
    }

    fn write_json(out: &mut String, value: &Value, indent: Option<usize>, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(Error::new(ErrorKind::InvalidOperation, format!("values are more than {MAX_DEPTH} deep")));
        }
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let newline = |out: &mut String, depth: usize| {
            if let Some(indent) = indent {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', indent * depth));
            }
        };
        let separator = if indent.is_some() { "," } else { ", " };
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&value.to_string()),
            ValueKind::String => out.push_str(&quoted(value.as_str().unwrap_or_default())),
            ValueKind::Map => {
                out.push('{');
                for (index, key) in value.try_iter()?.enumerate() {
                    out.push_str(if index > 0 { separator } else { "" });
                    newline(out, depth + 1);
                    out.push_str(&quoted(&key.to_string()));
                    out.push_str(": ");
                    write_json(out, &value.get_item(&key)?, indent, depth + 1)?;
                }
                if value.len() != Some(0) {
                    newline(out, depth);
                }
                out.push('}');
            }
            ValueKind::Seq | ValueKind::Iterable => {
                out.push('[');
                let mut any = false;
                for item in value.try_iter()? {
                    out.push_str(if any { separator } else { "" });
                    any = true;
                    newline(out, depth + 1);
                    write_json(out, &item, indent, depth + 1)?;
                }
                if any {
                    newline(out, depth);
                }
                out.push(']');
            }
            kind => return Err(Error::new(ErrorKind::InvalidOperation, format!("{kind} cannot be written as JSON"))),
        }
        Ok(())
    }
}

#[cfg(all(test, feature = "text"))]
mod tests {
    use super::*;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate { name: "sample".into(), source: source.into(), bos_token: Some("<s>".into()), eos_token: Some("</s>".into()) }
    }

    /// Each expected text is what Jinja2 3.1 gives with transformers' settings (`trim_blocks`, `lstrip_blocks`).
    #[test]
    fn templates_render_as_transformers_renders_them() {
        let chatml = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe brief<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
        let blocks = "{{ bos_token }}\n{%- for m in messages %}\n    {%- if m.role == 'user' %}\n        [INST] {{ m.content.strip() | trim }} [/INST]\n    {%- endif %}\n{%- endfor %}\n  {% if tools is not none %}\nnever\n  {% endif %}\n{{ eos_token }}\n";
        let json = "{{ messages[0] | tojson }} {{ {'a': [1, 2.5, true, none], 'b': {}} | tojson(indent=2) }}";
        let user = [Message::new("user", " Hi ü\"<&> ")];
        let cases = [
            ("chatml", chatml, "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\n Hi ü\"<&> <|im_end|>\n<|im_start|>assistant\n"),
            ("blocks", blocks, "<s>        [INST] Hi ü\"<&> [/INST]</s>"),
            (
                "json",
                json,
                "{\"role\": \"user\", \"content\": \" Hi ü\\\"<&> \"} {\n  \"a\": [\n    1,\n    2.5,\n    true,\n    null\n  ],\n  \"b\": {}\n}",
            ),
            ("a namespace", "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
            ("a loop that is left", "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ];
        let mut failures = Vec::new();
        for (name, source, expected) in cases {
            match template(source).render(&user) {
                Ok(found) if found == expected => {}
                found => failures.push(format!("{name}: {found:?}, expected {expected:?}")),
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }

    #[test]
    fn a_template_may_refuse_and_may_not_run_forever() {
        let refusal = template("{{ raise_exception('roles must alternate') }}").render(&[]);
        assert!(refusal.is_err_and(|error| error.to_string().contains("roles must alternate")));
        let endless =
            "{% for a in range(10000) %}{% for b in range(10000) %}{% for c in range(10000) %}{% endfor %}{% endfor %}{% endfor %}";
        assert!(template(endless).render(&[]).is_err());
        let long = "{% set s = 'x' * 100000 %}{% for i in range(1000) %}{{ s }}{% endfor %}";
        let error = template(long).render(&[]).expect_err("100 MB");
        assert!(error.to_string().contains(&format!("beyond {} bytes", render::MAX_OUTPUT_BYTES)), "{error}");
        assert!(template("{{ strftime_now('%Q') }}").render(&[]).is_err());
        let year = template("{{ strftime_now('%Y') }}").render(&[]);
        assert!(year.is_ok_and(|year| year.len() == 4 && year.starts_with("20")));
    }
}
