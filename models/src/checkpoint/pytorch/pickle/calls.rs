//! The names that a pickle may call, and what calling them would build.

use super::values::{Element, Global, Storage, Tensor, Value, kind};
use super::{EMPTY, Id, MAX_DIMS, MAX_TENSORS, Machine};

impl Machine<'_> {
    /// REDUCE: what calling one of the known names would give.
    pub(super) fn call(&mut self) -> Result<(), String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Value::Global(function) = *self.built.value(function) else {
            return Err(format!("it calls {}", kind(self.built.value(function))));
        };
        let Value::Tuple(arguments) = self.built.value(arguments) else {
            return Err(format!("the arguments of a call are {}", kind(self.built.value(arguments))));
        };
        match (function, &arguments[..]) {
            (Global::OrderedDict, []) => self.push(Value::Dict(Vec::new())),
            (Global::OrderedDict, &[pairs]) => {
                let entries = self.pairs(pairs)?;
                self.push(Value::Dict(entries))
            }
            (Global::RebuildTensor, &[storage, offset, shape, strides]) => self.tensor(storage, offset, shape, strides),
            (Global::RebuildTensorV2, &[storage, offset, shape, strides, _, _] | &[storage, offset, shape, strides, _, _, _]) => {
                self.tensor(storage, offset, shape, strides)
            }
            // A parameter is its tensor, a size its tuple.
            (Global::RebuildParameter, &[value, _, _]) if matches!(self.built.value(value), Value::Tensor(_)) => self.push_id(value),
            (Global::Size, &[value]) if matches!(self.built.value(value), Value::Tuple(_)) => self.push_id(value),
            (Global::Named, _) => self.push(Value::None),
            (function, arguments) => Err(format!("a call of {function:?} with {} arguments that it does not take", arguments.len())),
        }
    }

    /// The entries of a list or tuple of pairs.
    fn pairs(&mut self, pairs: Id) -> Result<Vec<(Id, Id)>, String> {
        const WRONG: &str = "an OrderedDict is made of what is no list of pairs";
        let count = match self.built.value(pairs) {
            Value::Tuple(items) => items.len(),
            Value::List(items) => items.len(),
            _ => 0,
        };
        self.charge(2 * count)?;
        let items = |id: Id| match self.built.value(id) {
            Value::Tuple(items) => Ok(&items[..]),
            Value::List(items) => Ok(&items[..]),
            _ => Err(WRONG.to_string()),
        };
        items(pairs)?
            .iter()
            .map(|&pair| match items(pair)? {
                &[key, value] => Ok((key, value)),
                _ => Err(WRONG.to_string()),
            })
            .collect()
    }

    /// A tensor of a storage, an offset, sizes and strides.
    fn tensor(&mut self, storage: Id, offset: Id, shape: Id, strides: Id) -> Result<(), String> {
        let Value::Storage(storage) = *self.built.value(storage) else {
            return Err(format!("a tensor is made of {} instead of a storage", kind(self.built.value(storage))));
        };
        let offset = self.count(offset, "a tensor's offset")?;
        let (shape, strides) = (self.counts(shape, "shape")?, self.counts(strides, "strides")?);
        if shape.len() != strides.len() {
            return Err(format!("a tensor of shape {shape:?} has strides {strides:?}"));
        }
        if self.built.tensors.len() == MAX_TENSORS {
            return Err(format!("it has more than {MAX_TENSORS} tensors; save them in several files"));
        }
        let index = self.built.tensors.len() as u32;
        self.built.tensors.push(Tensor { storage, offset, shape, strides });
        self.push(Value::Tensor(index))
    }

    fn count(&self, id: Id, what: &str) -> Result<u64, String> {
        match self.built.value(id) {
            &Value::Int(value) => u64::try_from(value).map_err(|_| format!("{what} is {value}; it cannot be negative")),
            other => Err(format!("{what} is {}", kind(other))),
        }
    }

    fn counts(&self, id: Id, what: &str) -> Result<Vec<u64>, String> {
        let Value::Tuple(items) = self.built.value(id) else {
            return Err(format!("a tensor's {what} is {}", kind(self.built.value(id))));
        };
        if items.len() > MAX_DIMS {
            return Err(format!("a tensor of {} dimensions; at most {MAX_DIMS} are allowed", items.len()));
        }
        items.iter().map(|&item| self.count(item, &format!("a tensor's {what}"))).collect()
    }

    /// BINPERSID: `("storage", type, key, device, numbers)`.
    pub(super) fn storage(&mut self) -> Result<(), String> {
        let id = self.pop()?;
        let wrong = || "a storage is not described as torch.save describes it".to_string();
        let Value::Tuple(items) = self.built.value(id) else { return Err(wrong()) };
        let [tag, element, key, _, numbers] = items[..] else { return Err(wrong()) };
        let (Value::Text("storage"), &Value::Global(Global::Storage(element)), Value::Text(key)) =
            (self.built.value(tag), self.built.value(element), self.built.value(key))
        else {
            return Err(wrong());
        };
        let numbers = self.count(numbers, "the length of a storage")?;
        if self.built.storages.len() == MAX_TENSORS {
            return Err(format!("it names more than {MAX_TENSORS} storages; save them in several files"));
        }
        let index = self.built.storages.len() as u32;
        self.built.storages.push(Storage { element, key, numbers });
        self.push(Value::Storage(index))
    }

    /// BUILD: attributes of a dictionary, which are no entries (`_metadata` of a state_dict).
    pub(super) fn set_state(&mut self) -> Result<(), String> {
        self.pop()?;
        let id = *self.stack.last().ok_or(EMPTY)?;
        match self.built.value(id) {
            Value::Dict(_) => Ok(()),
            other => Err(format!("it sets attributes of {}", kind(other))),
        }
    }
}

/// The known name `module.name`.
pub(super) fn global(module: &str, name: &str) -> Result<Global, String> {
    let storage = |name: &str| {
        Some(match name {
            "DoubleStorage" => Element::F64,
            "FloatStorage" => Element::F32,
            "HalfStorage" => Element::F16,
            "BFloat16Storage" => Element::Bf16,
            "LongStorage" => Element::I64,
            "IntStorage" => Element::I32,
            "ShortStorage" => Element::I16,
            "CharStorage" => Element::I8,
            "ByteStorage" => Element::U8,
            "BoolStorage" => Element::Bool,
            _ => return None,
        })
    };
    let known = match (module, name) {
        ("collections", "OrderedDict") => Some(Global::OrderedDict),
        ("torch._utils", "_rebuild_tensor") => Some(Global::RebuildTensor),
        ("torch._utils", "_rebuild_tensor_v2") => Some(Global::RebuildTensorV2),
        ("torch._utils", "_rebuild_parameter") => Some(Global::RebuildParameter),
        ("torch", "Size") => Some(Global::Size),
        ("torch", "device" | "float64" | "float32" | "float16" | "bfloat16" | "int64" | "int32" | "int16" | "int8" | "uint8" | "bool") => {
            Some(Global::Named)
        }
        ("torch", name) => storage(name).map(Global::Storage),
        _ => None,
    };
    known.ok_or_else(|| {
        let (module, name): (String, String) = (module.chars().take(80).collect(), name.chars().take(80).collect());
        format!(
            "it asks for `{}.{}`, which is not one of the names that tensors need; nothing of it is run. Save the state_dict alone and import that",
            module.escape_debug(),
            name.escape_debug()
        )
    })
}
