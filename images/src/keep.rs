//! Which checkpoints stay.

/// Which checkpoints of a job stay when it is pruned: those that any of these rules keeps. Without a rule all do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    /// So many of the latest.
    pub last: Option<usize>,
    /// The latest of each hour, for so many hours that have one.
    pub hourly: Option<usize>,
    /// The latest of each day (UTC), for so many days that have one.
    pub daily: Option<usize>,
    /// The latest of each week (from Monday, UTC), for so many weeks that have one.
    pub weekly: Option<usize>,
}

const HOUR: u64 = 3600 * 1_000_000_000;
const DAY: u64 = 24 * HOUR;
const WEEK: u64 = 7 * DAY;
/// The epoch was a Thursday.
const MONDAY: u64 = 3 * DAY;

impl Keep {
    /// So many of the latest.
    #[must_use]
    pub fn last(count: usize) -> Self {
        Self {
            last: Some(count),
            ..Self::default()
        }
    }

    /// Whether there is no rule.
    #[must_use]
    pub fn all(&self) -> bool {
        *self == Self::default()
    }

    /// The same, but at least the latest stays.
    #[must_use]
    pub fn with_latest(mut self) -> Self {
        if !self.all() {
            self.last = self.last.max(Some(1));
        }
        self
    }

    /// Which checkpoints stay, given the times at which they were made (ns since the epoch), from the latest back.
    #[must_use]
    pub fn choose(&self, times: &[u64]) -> Vec<bool> {
        let mut stay = vec![self.all(); times.len()];
        for (index, stay) in stay.iter_mut().enumerate() {
            *stay |= index < self.last.unwrap_or(0);
        }
        let periods = [
            (self.hourly, HOUR, 0),
            (self.daily, DAY, 0),
            (self.weekly, WEEK, MONDAY),
        ];
        for (count, length, shift) in periods {
            let mut left = count.unwrap_or(0);
            let mut last = None;
            for (&time, stay) in times.iter().zip(&mut stay) {
                let period = time.saturating_add(shift) / length;
                if left > 0 && last != Some(period) {
                    (*stay, last, left) = (true, Some(period), left - 1);
                }
            }
        }
        stay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sunday, 2026-11-22, 23:30 UTC.
    const SUNDAY: u64 = 1_795_390_200 * 1_000_000_000;

    fn kept(keep: Keep, times: &[u64]) -> Vec<usize> {
        let stay = keep.choose(times);
        (0..times.len()).filter(|&index| stay[index]).collect()
    }

    #[test]
    fn without_rules_all_stay() {
        assert_eq!(kept(Keep::default(), &[3, 2, 1]), [0, 1, 2]);
        assert_eq!(kept(Keep::last(0), &[3, 2, 1]), [0; 0]);
        assert_eq!(kept(Keep::last(2), &[3, 2, 1]), [0, 1]);
        assert_eq!(kept(Keep::last(0).with_latest(), &[3, 2, 1]), [0]);
        assert!(Keep::default().with_latest().all());
    }

    #[test]
    fn each_period_keeps_its_latest() {
        // Every ten minutes for three days.
        let times: Vec<u64> = (0..3 * 144).map(|n| SUNDAY - n * HOUR / 6).collect();
        let hourly = Keep {
            hourly: Some(3),
            ..Keep::default()
        };
        // 23:30; 22:50, 21:50.
        assert_eq!(kept(hourly, &times), [0, 4, 10]);
        let daily = Keep {
            daily: Some(10),
            ..Keep::default()
        };
        // Sunday 23:30, Saturday, Friday and Thursday 23:50.
        assert_eq!(kept(daily, &times), [0, 142, 286, 430]);
        let all = Keep {
            last: Some(2),
            hourly: Some(2),
            daily: Some(2),
            weekly: Some(1),
        };
        assert_eq!(kept(all, &times), [0, 1, 4, 142]);
    }

    #[test]
    fn weeks_begin_on_monday() {
        let times = [
            SUNDAY + DAY,
            SUNDAY + HOUR,
            SUNDAY,
            SUNDAY - 6 * DAY,
            SUNDAY - 7 * DAY,
        ];
        let weekly = Keep {
            weekly: Some(5),
            ..Keep::default()
        };
        assert_eq!(kept(weekly, &times), [0, 2, 4]);
    }

    #[test]
    fn a_period_without_checkpoints_does_not_count() {
        let times = [10 * DAY, 3 * DAY, 3 * DAY - HOUR, DAY];
        let daily = Keep {
            daily: Some(3),
            ..Keep::default()
        };
        assert_eq!(kept(daily, &times), [0, 1, 2]);
    }
}
