//! What an engine's error says about the engine.

use espalier_kernels::KernelError;
use espalier_runtime::RuntimeError;

use super::EngineKind;
use crate::error::AgentError;

/// Whether the device or its memory failed, rather than the model or the input: then another engine may do. A limit that is too small for
/// the work may do for another engine, because a driver takes a part of it.
pub fn is_device_failure(error: &AgentError) -> bool {
    match error {
        AgentError::Engine(_) | AgentError::LimitTooSmall { .. } => true,
        AgentError::Kernel(error) | AgentError::Runtime(RuntimeError::Kernel(error)) => !matches!(error, KernelError::Shape { .. }),
        _ => false,
    }
}

/// Whether another engine may do what one of this kind failed of. What is wrong with the artifact's bytes or with what was asked is so on
/// every engine. A GPU is left for failures of its own; the CPU, which has none, for any error of its engine but a refusal of memory, of which
/// ONNX Runtime takes more.
pub fn another_may_do(failed: EngineKind, error: &AgentError) -> bool {
    let everywhere =
        matches!(error, AgentError::Usage(_) | AgentError::Cancelled | AgentError::Model(_) | AgentError::Runtime(RuntimeError::Model(_)));
    let of_memory = match error {
        AgentError::LimitTooSmall { .. } => true,
        AgentError::Kernel(error) | AgentError::Runtime(RuntimeError::Kernel(error)) => {
            matches!(error, KernelError::OutOfBudget { .. } | KernelError::OutOfMemory { .. })
        }
        _ => false,
    };
    match failed {
        EngineKind::Cuda => is_device_failure(error),
        EngineKind::Cpu => !everywhere && !of_memory,
        EngineKind::Ort => !everywhere,
    }
}

/// Whether a device is lost: nothing works on it any more.
pub fn is_lost(error: &AgentError) -> bool {
    matches!(error, AgentError::Kernel(error) | AgentError::Runtime(RuntimeError::Kernel(error)) if error.is_lost())
}
