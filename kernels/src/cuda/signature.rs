//! What the kernels take, read from their sources, so that a launch is compared with it: the driver would take any arguments.

use std::collections::HashMap;

/// The kind of an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Pointer,
    U32,
    U64,
    F32,
}

/// What a kernel takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signature {
    /// Name and kind of every parameter.
    pub parameters: Vec<(&'static str, Kind)>,
    /// The most threads of a block.
    pub threads: u32,
}

/// The kernels of `sources`, by name.
pub(super) fn parse(sources: &[(&str, &'static str)]) -> Result<HashMap<&'static str, Signature>, String> {
    let mut kernels = HashMap::new();
    for (file, source) in sources {
        for definition in definitions(source) {
            let (name, signature) = kernel(definition).map_err(|error| format!("{file}: {error}"))?;
            if kernels.insert(name, signature).is_some() {
                return Err(format!("{file}: the kernel {name} is there twice"));
            }
        }
    }
    Ok(kernels)
}

/// What follows every `KERNEL(` that stands at the start of a line.
fn definitions(source: &'static str) -> impl Iterator<Item = &'static str> {
    source.match_indices("KERNEL(").filter_map(move |(at, word)| {
        let before = source[..at].rsplit('\n').next().unwrap_or_default();
        before.trim().is_empty().then(|| &source[at + word.len()..])
    })
}

/// `256) name(float* y, u32 n) {...`
fn kernel(definition: &'static str) -> Result<(&'static str, Signature), String> {
    let start = || definition.lines().next().unwrap_or_default();
    let malformed = || format!("`KERNEL({}` is not followed by `threads) name(parameters)`", start());
    let (threads, rest) = definition.split_once(')').ok_or_else(malformed)?;
    let (name, rest) = rest.split_once('(').ok_or_else(malformed)?;
    let (parameters, _) = rest.split_once(')').ok_or_else(malformed)?;
    let (name, threads) = (name.trim(), threads.trim());
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(malformed());
    }
    let threads = threads.parse().map_err(|_| format!("{name}: `{threads}` threads is not a number"))?;
    let parameters = split_parameters(parameters).map(|text| parameter(name, text)).collect::<Result<_, _>>()?;
    Ok((name, Signature { parameters, threads }))
}

/// The parameters between their commas. Comments among them may hold anything but brackets.
fn split_parameters(text: &'static str) -> impl Iterator<Item = &'static str> {
    let code = |line: &'static str| line.split("//").next().unwrap_or_default();
    text.lines().flat_map(move |line| code(line).split(',')).map(str::trim).filter(|text| !text.is_empty())
}

fn parameter(kernel: &str, text: &'static str) -> Result<(&'static str, Kind), String> {
    let unknown = || format!("{kernel}: the parameter `{text}` is none of T*, const T*, u32, u64, float");
    let at = text.rfind(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).ok_or_else(unknown)?;
    let (kind, name) = text.split_at(at + 1);
    let kind = match kind.trim() {
        "u32" => Kind::U32,
        "u64" => Kind::U64,
        "float" => Kind::F32,
        pointer => {
            let pointed = pointer.strip_suffix('*').ok_or_else(unknown)?.trim();
            match pointed.strip_prefix("const ").unwrap_or(pointed).trim() {
                "float" | "double" | "u8" | "u16" | "u32" => Kind::Pointer,
                _ => return Err(unknown()),
            }
        }
    };
    if name.is_empty() { Err(unknown()) } else { Ok((name, kind)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found_with_their_parameters() {
        let source = "#define KERNEL(T) extern\n// a KERNEL(1) in a comment\nKERNEL(256) add(float* y, const float* x, u32 n, float alpha) {\n}\n\
                      KERNEL(32) embed(\n    float* out,         // [count, columns], zero\n    const u16* table,\n    u64 count, u32 shift\n) {}\n";
        let kernels = parse(&[("a.cu", source)]).unwrap();
        assert_eq!(kernels.len(), 2);
        let add = [("y", Kind::Pointer), ("x", Kind::Pointer), ("n", Kind::U32), ("alpha", Kind::F32)];
        assert_eq!(kernels["add"], Signature { parameters: add.to_vec(), threads: 256 });
        let embed = [("out", Kind::Pointer), ("table", Kind::Pointer), ("count", Kind::U64), ("shift", Kind::U32)];
        assert_eq!(kernels["embed"], Signature { parameters: embed.to_vec(), threads: 32 });
    }

    #[test]
    fn what_cannot_be_compared_is_an_error() {
        let cases = [
            ("KERNEL(256) f(int n) {}", "a.cu: f: the parameter `int n` is none of T*, const T*, u32, u64, float"),
            ("KERNEL(256) f(float** y) {}", "a.cu: f: the parameter `float** y` is none of T*, const T*, u32, u64, float"),
            ("KERNEL(THREADS) f(u32 n) {}", "a.cu: f: `THREADS` threads is not a number"),
            ("KERNEL(256) f;", "a.cu: `KERNEL(256) f;` is not followed by `threads) name(parameters)`"),
            ("KERNEL(1) f(u32 n) {}\nKERNEL(1) f(u32 n) {}", "a.cu: the kernel f is there twice"),
        ];
        let failed: Vec<_> = cases.into_iter().filter(|(source, error)| parse(&[("a.cu", source)]) != Err(error.to_string())).collect();
        assert!(failed.is_empty(), "{failed:#?}\n{:?}", failed.iter().map(|(source, _)| parse(&[("a.cu", source)])).collect::<Vec<_>>());
    }

    #[test]
    fn the_signatures_of_all_kernels_can_be_read() {
        assert!(parse(crate::cuda::images::SOURCES).unwrap().len() > 50);
    }
}
