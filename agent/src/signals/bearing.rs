//! A rolling bearing's geometry and the frequencies at which its faults strike.

use serde::{Deserialize, Serialize};

/// Geometry of a rolling bearing with a turning inner ring.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bearing {
    /// Rolling elements, n.
    pub balls: u32,
    /// Diameter of a rolling element in mm, d.
    pub ball_mm: f64,
    /// Pitch diameter in mm, D.
    pub pitch_mm: f64,
    /// Contact angle in radians, φ.
    pub contact_rad: f64,
}

/// Fault frequencies as multiples of the shaft's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FaultOrders {
    /// Ball pass frequency, outer race: n/2 · (1 − d/D · cos φ).
    pub bpfo: f64,
    /// Ball pass frequency, inner race: n/2 · (1 + d/D · cos φ).
    pub bpfi: f64,
    /// Fundamental train (cage) frequency: ½ · (1 − d/D · cos φ).
    pub ftf: f64,
    /// Ball spin frequency: D/2d · (1 − (d/D · cos φ)²). A fault on a ball meets both races, so it strikes at twice this rate.
    pub bsf: f64,
}

impl Bearing {
    /// SKF 6205-2RS, the drive-end bearing of the CWRU rig.
    pub const SKF_6205: Self = Self { balls: 9, ball_mm: 7.94, pitch_mm: 39.04, contact_rad: 0.0 };

    /// The fault frequencies per turn of the shaft.
    pub fn orders(&self) -> FaultOrders {
        let ratio = self.ball_mm / self.pitch_mm * self.contact_rad.cos();
        let n = f64::from(self.balls);
        FaultOrders {
            bpfo: n / 2.0 * (1.0 - ratio),
            bpfi: n / 2.0 * (1.0 + ratio),
            ftf: 0.5 * (1.0 - ratio),
            bsf: self.pitch_mm / (2.0 * self.ball_mm) * (1.0 - ratio * ratio),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cwru_bearing_has_its_published_orders() {
        let got = Bearing::SKF_6205.orders();
        let pairs = [("BPFI", got.bpfi, 5.4152), ("BPFO", got.bpfo, 3.5848), ("FTF", got.ftf, 0.3983), ("BSF", got.bsf, 2.357)];
        let wrong: Vec<_> = pairs.into_iter().filter(|(_, got, published)| (got - published).abs() > 5e-4).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}
