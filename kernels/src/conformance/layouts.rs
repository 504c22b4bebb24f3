//! Moving numbers: copies, patches, means over a sequence.

use super::{Suite, wide};
use crate::device::Device;
use crate::error::Result;

pub fn run<D: Device>(suite: &Suite<D>) -> Result<()> {
    copies(suite)?;
    for (batch, window, patch, stride) in [(1, 8, 8, 8), (2, 64, 16, 16), (3, 21, 6, 4), (1, 2048, 64, 64)] {
        let windows = suite.random(batch * window);
        let count = (window - patch) / stride + 1;
        let mut out = suite.buffer(&vec![9.0; batch * count * patch])?;
        suite.device.patches(&mut out, &suite.buffer(&windows)?, batch, window, patch, stride)?;
        let at = |i: usize| i / (count * patch) * window + i / patch % count * stride + i % patch;
        let expected: Vec<f64> = (0..batch * count * patch).map(|i| f64::from(windows[at(i)])).collect();
        suite.check(&format!("patches of {patch} every {stride} of [{batch}, {window}]"), &out, &expected)?;
    }
    for (batch, sequence, d) in [(1, 1, 1), (2, 5, 33), (3, 32, 192), (2, 101, 40)] {
        means(suite, batch, sequence, d)?;
    }
    let (mut out, x) = (suite.exact(&[0.0; 8])?, suite.exact(&[0.0; 8])?);
    suite.refused("patches, none long enough", suite.device.patches(&mut out, &x, 1, 4, 5, 1));
    suite.refused("patches, no stride", suite.device.patches(&mut out, &x, 1, 4, 2, 0));
    suite.refused("mean_pool, no positions", suite.device.mean_pool(&mut out, &x, 1, 0, 4));
    Ok(())
}

fn copies<D: Device>(suite: &Suite<D>) -> Result<()> {
    let (from, to) = (suite.random(20), suite.random(20));
    let (source, mut target) = (suite.exact(&from)?, suite.exact(&to)?);
    suite.device.copy(&mut target, 3, &source, 8, 9)?;
    let mut expected = wide(&to);
    expected[3..12].copy_from_slice(&wide(&from)[8..17]);
    suite.check("copy", &target, &expected)?;
    let mut part = [0.0; 4];
    suite.device.read(&target, 5, &mut part)?;
    suite.compare("read from an offset", &part, &expected[5..9]);
    suite.check("zeros", &suite.device.zeros(40_000)?, &vec![0.0; 40_000])?;
    suite.refused("copy, beyond the source", suite.device.copy(&mut target, 0, &source, 12, 9));
    suite.refused("copy, beyond the target", suite.device.copy(&mut target, 12, &source, 0, 9));
    suite.refused("copy, an offset that overflows", suite.device.copy(&mut target, usize::MAX, &source, 0, 2));
    suite.refused("write, beyond the end", suite.device.write(&mut target, 18, &[0.0; 3]));
    suite.refused("read, beyond the end", suite.device.read(&target, 18, &mut [0.0; 3]));
    suite.refused("fill, beyond the end", suite.device.fill(&mut target, 21, 0.0));
    Ok(())
}

fn means<D: Device>(suite: &Suite<D>, batch: usize, sequence: usize, d: usize) -> Result<()> {
    let (x, dy) = (suite.random(batch * sequence * d), suite.random(batch * d));
    let mut out = suite.buffer(&vec![9.0; batch * d])?;
    suite.device.mean_pool(&mut out, &suite.buffer(&x)?, batch, sequence, d)?;
    let mut expected = vec![0.0; batch * d];
    for (i, x) in x.iter().enumerate() {
        expected[i / (sequence * d) * d + i % d] += f64::from(*x) / sequence as f64;
    }
    suite.check(&format!("mean_pool [{batch}, {sequence}, {d}]"), &out, &expected)?;
    let mut dx = suite.buffer(&vec![9.0; x.len()])?;
    suite.device.mean_pool_backward(&mut dx, &suite.buffer(&dy)?, batch, sequence, d)?;
    let expected: Vec<f64> = (0..x.len()).map(|i| f64::from(dy[i / (sequence * d) * d + i % d]) / sequence as f64).collect();
    suite.check(&format!("mean_pool_backward [{batch}, {sequence}, {d}]"), &dx, &expected)
}
