//! Which records are asked for: few of them often, as YCSB chooses them (Gray et al., SIGMOD 1994).

/// YCSB's constant.
const THETA: f64 = 0.99;

/// Draws ranks from 0, the first being the most frequent.
#[derive(Debug, Clone)]
pub(crate) struct Zipf {
    count: u64,
    zeta: f64,
    alpha: f64,
    eta: f64,
}

impl Zipf {
    /// Of `count` ranks; at least two.
    pub(crate) fn new(count: u64) -> Self {
        let zeta_of = |count: u64| (1..=count).map(|rank| (rank as f64).powf(-THETA)).sum::<f64>();
        let zeta = zeta_of(count);
        let eta = (1.0 - (2.0 / count as f64).powf(1.0 - THETA)) / (1.0 - zeta_of(2) / zeta);
        Self { count, zeta, alpha: 1.0 / (1.0 - THETA), eta }
    }

    pub(crate) fn draw(&self, rng: &mut fastrand::Rng) -> u64 {
        let at = rng.f64();
        let scaled = at * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5f64.powf(THETA) {
            return 1;
        }
        #[expect(
            clippy::cast_sign_loss,
            reason = "eta is at most one, so the base is not negative"
        )]
        let rank = (self.count as f64 * (self.eta * at - self.eta + 1.0).powf(self.alpha)) as u64;
        rank.min(self.count - 1)
    }
}

/// Spreads frequent ranks over all records (64-bit FNV-1a, as YCSB does).
pub(crate) fn scramble(rank: u64) -> u64 {
    rank.to_le_bytes().iter().fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_have_the_frequencies_of_the_law() {
        let (zipf, mut rng) = (Zipf::new(1000), fastrand::Rng::with_seed(5));
        let mut counts = vec![0u32; 1000];
        for _ in 0..200_000 {
            counts[zipf.draw(&mut rng) as usize] += 1;
        }
        for rank in [0usize, 1, 9, 99] {
            let expected = 200_000.0 / zipf.zeta / (rank as f64 + 1.0).powf(THETA);
            let found = f64::from(counts[rank]);
            // The formula is exact for the first two ranks and an approximation for the others.
            assert!((found / expected - 1.0).abs() < 0.25, "rank {rank}: {found}, not {expected}");
        }
    }
}
