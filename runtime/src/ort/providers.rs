//! Execution providers: what computes the nodes of a graph in ONNX Runtime. Its own code for the CPU is always there and does what no other
//! provider takes.

use std::fmt;
use std::str::FromStr;

use ort::ep::{self, ExecutionProvider, ExecutionProviderDispatch};
use ort::session::Session;
use ort::session::builder::SessionBuilder;

use super::library::{OrtLibrary, first_line};

/// An execution provider beside the CPU's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OrtProvider {
    /// NVIDIA's GPUs by CUDA and cuDNN.
    Cuda,
    /// NVIDIA's GPUs by TensorRT.
    TensorRt,
    /// NVIDIA's RTX GPUs by TensorRT for RTX.
    NvTensorRtRtx,
    /// Intel's processors, GPUs and NPUs.
    OpenVino,
    /// Intel's oneDNN.
    OneDnn,
    /// AMD's GPUs by MIGraphX.
    MiGraphX,
    /// AMD's GPUs by ROCm.
    Rocm,
    /// Qualcomm's NPUs.
    Qnn,
    /// Huawei's Ascend NPUs.
    Cann,
    /// Arm's Compute Library.
    Acl,
    /// XNNPACK, for Arm and x86 processors.
    Xnnpack,
}

/// A provider's name on the command line, whether a library has it, and how a session is given it.
type Entry = (OrtProvider, &'static str, fn() -> ort::Result<bool>, fn() -> ExecutionProviderDispatch);

/// In the order of [`OrtProvider`].
const ENTRIES: [Entry; OrtProvider::Xnnpack as usize + 1] = [
    (OrtProvider::Cuda, "cuda", ep::CUDA::is_available, || ep::CUDA::default().build()),
    (OrtProvider::TensorRt, "tensorrt", ep::TensorRT::is_available, || ep::TensorRT::default().build()),
    (OrtProvider::NvTensorRtRtx, "nvtensorrtrtx", ep::NVRTX::is_available, || ep::NVRTX::default().build()),
    (OrtProvider::OpenVino, "openvino", ep::OpenVINO::is_available, || ep::OpenVINO::default().build()),
    (OrtProvider::OneDnn, "onednn", ep::OneDNN::is_available, || ep::OneDNN::default().build()),
    (OrtProvider::MiGraphX, "migraphx", ep::MIGraphX::is_available, || ep::MIGraphX::default().build()),
    (OrtProvider::Rocm, "rocm", ep::ROCm::is_available, || ep::ROCm::default().build()),
    (OrtProvider::Qnn, "qnn", ep::QNN::is_available, || ep::QNN::default().build()),
    (OrtProvider::Cann, "cann", ep::CANN::is_available, || ep::CANN::default().build()),
    (OrtProvider::Acl, "acl", ep::ACL::is_available, || ep::ACL::default().build()),
    (OrtProvider::Xnnpack, "xnnpack", ep::XNNPACK::is_available, || ep::XNNPACK::default().build()),
];

impl OrtProvider {
    fn entry(self) -> &'static Entry {
        &ENTRIES[self as usize]
    }

    /// Gives the provider to a session.
    pub(super) fn register(self, builder: &mut SessionBuilder) -> ort::Result<()> {
        self.entry().3().register(builder)
    }
}

impl fmt::Display for OrtProvider {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.entry().1)
    }
}

/// Execution providers in the order in which they are to take a graph's nodes; the CPU takes what they leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OrtProviders([Option<OrtProvider>; ENTRIES.len()]);

impl OrtProviders {
    /// The CPU alone.
    pub const CPU: Self = Self([None; ENTRIES.len()]);

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = OrtProvider> {
        self.0.into_iter().flatten()
    }

    /// Whether only the CPU computes.
    pub fn is_empty(&self) -> bool {
        self.0[0].is_none()
    }

    /// Adds a provider behind the others, unless it is among them.
    pub fn push(&mut self, provider: OrtProvider) {
        if !self.0.contains(&Some(provider))
            && let Some(place) = self.0.iter_mut().find(|place| place.is_none())
        {
            *place = Some(provider);
        }
    }
}

impl FromStr for OrtProviders {
    type Err = String;

    /// Names with commas between them, such as `tensorrt,cuda,cpu`; `cpu` may be said, at the end.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut providers = Self::default();
        let mut names = text.split(',').map(str::trim).peekable();
        while let Some(name) = names.next() {
            if name == "cpu" && names.peek().is_none() {
                break;
            }
            if name == "cpu" {
                return Err("what stands behind `cpu` would never compute; name it last".to_string());
            }
            let Some((provider, ..)) = ENTRIES.iter().find(|(_, known, ..)| *known == name) else {
                let known: Vec<&str> = ENTRIES.iter().map(|(_, known, ..)| *known).collect();
                return Err(format!("`{name}` is no execution provider; expected some of {}, cpu", known.join(", ")));
            };
            if providers.iter().any(|other| other == *provider) {
                return Err(format!("`{name}` is named twice; name it once"));
            }
            providers.push(*provider);
        }
        Ok(providers)
    }
}

impl OrtLibrary {
    /// Whether sessions can be given a provider.
    ///
    /// # Errors
    /// Why not, for people: the library has been built without it, or it does not start on this machine.
    pub fn try_provider(&self, provider: OrtProvider) -> Result<(), String> {
        let failed = |error: ort::Error| format!("it does not start: {}", first_line(error.message()));
        if !provider.entry().2().map_err(failed)? {
            return Err(format!("{} has been built without it", self.path().display()));
        }
        // What a provider needs of the machine is looked for when a session is given it.
        let mut builder = Session::builder(&self.environment).map_err(failed)?;
        provider.register(&mut builder).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn providers_are_read_in_order() {
        let cases: [(&str, Result<&[OrtProvider], &str>); 9] = [
            ("cuda", Ok(&[OrtProvider::Cuda])),
            ("tensorrt,cuda", Ok(&[OrtProvider::TensorRt, OrtProvider::Cuda])),
            ("openvino, xnnpack ,cpu", Ok(&[OrtProvider::OpenVino, OrtProvider::Xnnpack])),
            ("cpu", Ok(&[])),
            ("cpu,cuda", Err("name it last")),
            ("cuda,cuda", Err("`cuda` is named twice")),
            ("cudaa", Err("`cudaa` is no execution provider; expected some of cuda, tensorrt,")),
            ("", Err("`` is no execution provider")),
            ("cuda,", Err("`` is no execution provider")),
        ];
        let mut wrong = Vec::new();
        for (text, expected) in cases {
            let found = OrtProviders::from_str(text);
            let right = match (&found, expected) {
                (Ok(found), Ok(expected)) => found.iter().eq(expected.iter().copied()) && found.is_empty() == expected.is_empty(),
                (Err(found), Err(expected)) => found.contains(expected),
                _ => false,
            };
            if !right {
                wrong.push(format!("`{text}`: {found:?}, expected {expected:?}"));
            }
        }
        if ENTRIES.iter().enumerate().any(|(place, (provider, ..))| *provider as usize != place) {
            wrong.push("the entries are not in the order of the providers".into());
        }
        let all: Vec<&str> = ENTRIES.iter().map(|(_, name, ..)| *name).collect();
        match all.join(",").parse::<OrtProviders>() {
            Ok(found) if found.iter().map(|provider| provider.to_string()).eq(all.iter().map(|name| name.to_string())) => {}
            found => wrong.push(format!("all of them: {found:?}")),
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
