//! AdamW over whatever has gradients, and the learning-rate schedule.

use espalier_kernels::{AdamW, Device, Purpose};
use espalier_models::TensorKey;
use espalier_runtime::{Adapter, AdapterLike, Gradients, Network};

use crate::error::Result;

/// Linear warm-up, then half a cosine down to a twentieth of the peak.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The highest learning rate.
    pub peak: f32,
    /// Steps of the warm-up.
    pub warmup: usize,
    /// Steps in all.
    pub total: usize,
}

impl Schedule {
    /// The learning rate of `step`, counted from 0.
    pub fn at(&self, step: usize) -> f32 {
        if step < self.warmup {
            return self.peak * (step + 1) as f32 / self.warmup as f32;
        }
        let left = self.total.saturating_sub(self.warmup).max(1);
        let share = ((step - self.warmup) as f32 / left as f32).min(1.0);
        let floor = 0.05;
        self.peak * (floor + (1.0 - floor) * 0.5 * (1.0 + (std::f32::consts::PI * share).cos()))
    }
}

/// Constants of AdamW that do not change from step to step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Constants {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay; matrices only (norms and biases have scale, not direction, to lose).
    pub weight_decay: f32,
}

impl Default for Constants {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 }
    }
}

/// First and second moments of everything that [`Gradients`] holds.
pub struct Optimizer<D: Device> {
    first: Gradients<D>,
    second: Gradients<D>,
    constants: Constants,
    step: u32,
}

impl<D: Device> Optimizer<D> {
    /// Moments for parameters.
    pub fn for_parameters(network: &mut Network<D>, constants: Constants) -> Result<Self> {
        let device = network.device.for_purpose(Purpose::Optimizer);
        let lengths: Vec<(TensorKey, usize)> = network.trainable().into_iter().map(|(key, buffer)| (key, device.len(buffer))).collect();
        let moments = || -> Result<Gradients<D>> {
            let parameters = lengths.iter().map(|(key, len)| Ok((*key, device.zeros(*len)?))).collect::<Result<_>>()?;
            Ok(Gradients { parameters, ..Gradients::none() })
        };
        Ok(Self { first: moments()?, second: moments()?, constants, step: 0 })
    }

    /// Moments for adapters.
    pub fn for_adapters(device: &D, adapters: &[Adapter<D>], constants: Constants) -> Result<Self> {
        let device = device.for_purpose(Purpose::Optimizer);
        let moments = || -> Result<Gradients<D>> {
            let adapters = adapters.iter().map(|adapter| adapter.like(&device)).collect::<espalier_runtime::Result<_>>()?;
            Ok(Gradients { adapters, ..Gradients::none() })
        };
        Ok(Self { first: moments()?, second: moments()?, constants, step: 0 })
    }

    fn constants(&self, learning_rate: f32, decays: bool) -> AdamW {
        let Constants { beta1, beta2, epsilon, weight_decay } = self.constants;
        AdamW { learning_rate, beta1, beta2, epsilon, weight_decay: if decays { weight_decay } else { 0.0 }, step: self.step }
    }

    /// One step on the parameters that have gradients.
    pub fn step_parameters(&mut self, network: &mut Network<D>, gradients: &Gradients<D>, learning_rate: f32) -> Result<()> {
        self.step += 1;
        let device = network.device.clone();
        for (key, parameter) in network.trainable() {
            let constants = self.constants(learning_rate, !key.part.is_vector());
            let moments = (self.first.parameters.get_mut(&key), self.second.parameters.get_mut(&key));
            if let (Some(gradient), (Some(first), Some(second))) = (gradients.parameters.get(&key), moments) {
                let len = device.len(parameter);
                device.adamw(parameter, gradient, first, second, len, constants)?;
            }
        }
        Ok(())
    }

    /// One step on adapters.
    pub fn step_adapters(&mut self, device: &D, adapters: &mut [Adapter<D>], gradients: &Gradients<D>, learning_rate: f32) -> Result<()> {
        self.step += 1;
        let constants = self.constants(learning_rate, true);
        let moments = self.first.adapters.iter_mut().zip(&mut self.second.adapters);
        for ((adapter, gradient), (first, second)) in adapters.iter_mut().zip(&gradients.adapters).zip(moments) {
            let AdapterLike { model_side, unit_sides } = gradient;
            let len = device.len(model_side);
            device.adamw(&mut adapter.model_side, model_side, &mut first.model_side, &mut second.model_side, len, constants)?;
            let sides = first.unit_sides.iter_mut().zip(&mut second.unit_sides);
            for ((parameter, gradient), (first, second)) in adapter.unit_sides.iter_mut().zip(unit_sides).zip(sides) {
                let len = device.len(gradient);
                device.adamw(parameter, gradient, first, second, len, constants)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_warms_up_and_falls() {
        let schedule = Schedule { peak: 1.0, warmup: 4, total: 104 };
        assert_eq!((schedule.at(0), schedule.at(3)), (0.25, 1.0));
        assert!((schedule.at(54) - 0.525).abs() < 1e-3, "{}", schedule.at(54));
        assert!((schedule.at(104) - 0.05).abs() < 1e-3);
    }
}
