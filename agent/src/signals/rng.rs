//! Pseudo-random numbers that are the same on every machine and in every version.
//!
//! SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014, doi 10.1145/2660193.2660195) spreads a
//! seed; xoshiro256** (Blackman, Vigna: Scrambled linear pseudorandom number generators, ACM TOMS 47, 2021, doi 10.1145/3460772) makes the
//! numbers. Normal deviates by Marsaglia's polar method (SIAM Review 6, 1964). None of it is fit for secrets.

/// SplitMix64: one addition and a mixing function; any seed is good.
#[derive(Debug, Clone)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// Starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// An index below `bound`, from the upper bits of a wide product; 0 where the bound is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next_u64()) * bound as u128) >> 64) as usize
    }
}

/// xoshiro256**: 256 bits of state, period 2^256 − 1.
#[derive(Debug, Clone)]
pub struct Rng {
    state: [u64; 4],
    /// The polar method makes two deviates at a time; this is the second.
    spare_normal: Option<f64>,
}

impl Rng {
    /// A generator for `seed`; every seed gives a different sequence.
    pub fn new(seed: u64) -> Self {
        let mut mix = SplitMix64::new(seed);
        Self { state: [mix.next_u64(), mix.next_u64(), mix.next_u64(), mix.next_u64()], spare_normal: None }
    }

    /// A generator for one of many independent streams of a seed: the noise of window `stream`, the batches of epoch `stream`.
    pub fn for_stream(seed: u64, stream: u64) -> Self {
        // Both pass through the mixer, so that (1, 2) and (2, 1) or neighbours have nothing in common.
        let seed = SplitMix64::new(seed).next_u64();
        Self::new(seed ^ SplitMix64::new(stream.wrapping_add(0xD1B5_4A32_D192_ED03)).next_u64())
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Uniform in [0, 1), 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in [low, high).
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Uniform in 0..n without bias (Lemire, ACM TOMACS 29, 2019); 0 for n = 0.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 {
            return 0;
        }
        let n = n as u64;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(n);
            // Only the lowest (2^64 mod n) values of the fraction are over-represented.
            if product as u64 >= n.wrapping_neg() % n {
                return (product >> 64) as usize;
            }
        }
    }

    /// True with probability ½.
    pub fn coin(&mut self) -> bool {
        self.next_u64() >> 63 == 1
    }

    /// A normal deviate of mean 0 and standard deviation 1.
    pub fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare_normal.take() {
            return spare;
        }
        loop {
            let (u, v) = (2.0 * self.uniform() - 1.0, 2.0 * self.uniform() - 1.0);
            let s = u * u + v * v;
            if s > 0.0 && s < 1.0 {
                let factor = (-2.0 * s.ln() / s).sqrt();
                self.spare_normal = Some(v * factor);
                return u * factor;
            }
        }
    }

    /// Shuffles in place (Fisher–Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_published_sequences() {
        let mut mix = SplitMix64::new(1_234_567);
        let got: Vec<u64> = (0..5).map(|_| mix.next_u64()).collect();
        let published: [u64; 5] = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!(got, published);
        let mut rng = Rng { state: [1, 2, 3, 4], spare_normal: None };
        let got: Vec<u64> = (0..4).map(|_| rng.next_u64()).collect();
        assert_eq!(got, [11_520, 0, 1_509_978_240, 1_215_971_899_390_074_240]);
    }

    #[test]
    fn normal_deviates_have_the_right_moments() {
        let mut rng = Rng::new(3);
        let n = 200_000;
        let values: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
        let mean = values.iter().sum::<f64>() / n as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
        let fourth = values.iter().map(|v| (v - mean).powi(4)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02 && (fourth - 3.0).abs() < 0.1, "{mean} {variance} {fourth}");
    }

    #[test]
    fn below_is_even_and_in_range() {
        let mut rng = Rng::for_stream(1, 2);
        let mut counts = [0usize; 7];
        for _ in 0..70_000 {
            counts[rng.below(7)] += 1;
        }
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
        assert_eq!(rng.below(0), 0);
        assert_eq!(rng.below(1), 0);
    }

    #[test]
    fn streams_differ_and_repeat() {
        let first = |seed, stream| Rng::for_stream(seed, stream).next_u64();
        assert_eq!(first(5, 9), first(5, 9));
        assert_ne!(first(5, 9), first(9, 5));
        assert_ne!(first(5, 9), first(5, 10));
    }

    #[test]
    fn shuffle_keeps_every_item() {
        let mut items: Vec<u32> = (0..100).collect();
        Rng::new(1).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
