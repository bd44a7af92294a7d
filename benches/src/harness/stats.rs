//! Statistics: pure.

/// The middle of the samples; the mean of the two in the middle when they are even. `None` of nothing.
pub(crate) fn median(samples: &[f64]) -> Option<f64> {
    quantile(samples, 0.5)
}

/// The value below which this part of the samples lies, interpolated. `None` of nothing.
#[expect(clippy::cast_possible_truncation, reason = "between 0 and the last index")]
pub(crate) fn quantile(samples: &[f64], part: f64) -> Option<f64> {
    let mut sorted: Vec<f64> = samples.iter().copied().filter(|x| x.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let at = part.clamp(0.0, 1.0) * last as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    Some(below + (above - below) * at.fract())
}

/// The range of the samples by their median: how far they agree. `None` of nothing, or of a median of zero.
pub(crate) fn spread(samples: &[f64]) -> Option<f64> {
    let middle = median(samples).filter(|middle| *middle > 0.0)?;
    Some((quantile(samples, 1.0)? - quantile(samples, 0.0)?) / middle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[7.0]), Some(7.0));
    }

    #[test]
    fn nothing_has_no_median() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[f64::NAN]), None);
    }

    #[test]
    fn a_quantile_lies_between_its_neighbours() {
        let samples: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!(quantile(&samples, 0.95), Some(95.0));
        assert_eq!(quantile(&samples, 0.0), Some(0.0));
        assert_eq!(quantile(&samples, 7.0), Some(100.0));
        assert_eq!(quantile(&[1.0, 2.0], 0.25), Some(1.25));
    }

    #[test]
    fn the_spread_is_the_range_by_the_median() {
        assert_eq!(spread(&[9.0, 10.0, 12.0]), Some(0.3));
        assert_eq!(spread(&[0.0, 0.0]), None);
    }
}
