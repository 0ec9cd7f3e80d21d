//! What a measurement can be of.

use serde::{Deserialize, Serialize};

/// A quantity: what it is called, and in what it is counted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Metric {
    /// Its name in report.json.
    pub(crate) key: &'static str,
    pub(crate) title: &'static str,
    pub(crate) unit: Unit,
}

/// Of every one, less is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Unit {
    Seconds,
    Bytes,
    /// Of something, 1 is all of it.
    Ratio,
}

impl Metric {
    pub(crate) const fn seconds(key: &'static str, title: &'static str) -> Self {
        let unit = Unit::Seconds;
        Self { key, title, unit }
    }

    pub(crate) const fn bytes(key: &'static str, title: &'static str) -> Self {
        let unit = Unit::Bytes;
        Self { key, title, unit }
    }

    pub(crate) const fn ratio(key: &'static str, title: &'static str) -> Self {
        let unit = Unit::Ratio;
        Self { key, title, unit }
    }
}

impl Unit {
    /// For people, with three digits or so.
    pub(crate) fn show(self, value: f64) -> String {
        let (value, unit) = match self {
            _ if !value.is_finite() => return "-".into(),
            Self::Seconds if value == 0.0 => return "< 1 ms".into(),
            Self::Seconds if value < 1e-6 => (value * 1e9, " ns"),
            Self::Seconds if value < 1e-3 => (value * 1e6, " µs"),
            Self::Seconds if value < 1.0 => (value * 1e3, " ms"),
            Self::Seconds => (value, " s"),
            Self::Bytes if value < 1_048_576.0 => (value / 1024.0, " KiB"),
            Self::Bytes if value < 1_073_741_824.0 => (value / 1_048_576.0, " MiB"),
            Self::Bytes => (value / 1_073_741_824.0, " GiB"),
            Self::Ratio => (value, ""),
        };
        let digits = match value.abs() {
            value if value >= 99.95 => 0,
            value if value >= 9.995 => 1,
            value if value >= 0.9995 => 2,
            _ => 3,
        };
        format!("{value:.digits$}{unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_three_digits() {
        assert_eq!(Unit::Seconds.show(0.012_345), "12.3 ms");
        assert_eq!(Unit::Seconds.show(1.5), "1.50 s");
        assert_eq!(Unit::Seconds.show(2.5e-7), "250 ns");
        assert_eq!(Unit::Bytes.show(1536.0), "1.50 KiB");
        assert_eq!(Unit::Ratio.show(1.0), "1.00");
        assert_eq!(Unit::Ratio.show(f64::NAN), "-");
    }
}
