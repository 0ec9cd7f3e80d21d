//! What several runs say together.

/// Of some values: the middle one, the quarters and the ends. NaN of none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) least: f64,
    pub(crate) lower: f64,
    pub(crate) median: f64,
    pub(crate) upper: f64,
    pub(crate) most: f64,
}

impl Spread {
    pub(crate) fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let at = |share| quantile(&sorted, share);
        Self {
            least: at(0.0),
            lower: at(0.25),
            median: at(0.5),
            upper: at(0.75),
            most: at(1.0),
        }
    }

    /// Whether these are more than `old`, and neither chance nor a trifle says so: medians differ by more than a twentieth, and
    /// the middle halves do not overlap.
    pub(crate) fn is_more_than(&self, old: &Self) -> bool {
        self.median > old.median * 1.05 && self.lower > old.upper
    }
}

/// Of sorted values, the one that `share` of them are below, in between two if need be; NaN of none.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * sorted.len().saturating_sub(1) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    match (sorted.get(below), sorted.get(above)) {
        (Some(low), Some(high)) => low + (high - low) * place.fract(),
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]).median, 2.0);
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert!(Spread::of(&[]).median.is_nan());
    }

    #[test]
    fn noise_is_not_a_change() {
        let old = Spread::of(&[10.0, 10.5, 11.0, 10.2, 10.8]);
        assert!(!Spread::of(&[10.9, 11.2, 10.6, 11.5, 10.4]).is_more_than(&old));
        assert!(Spread::of(&[13.0, 12.5, 14.0, 12.9, 13.1]).is_more_than(&old));
        assert!(!old.is_more_than(&old));
    }
}
