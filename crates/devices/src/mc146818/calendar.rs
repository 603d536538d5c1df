//! Days and dates of the Gregorian calendar, extended to all times.
//!
//! The method counts years from 1 March, so that the leap day is the last of its year.

/// Days before the first of each month in a year that begins in March.
const BEFORE_MONTH: [i64; 12] = [0, 31, 61, 92, 122, 153, 184, 214, 245, 275, 306, 337];
/// Days from 1 March of year 0 to 1 January 1970.
const EPOCH: i64 = 719_468;

/// A date: year, month 1 to 12, day 1 to 31.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Date {
    pub(super) year: i64,
    pub(super) month: i64,
    pub(super) day: i64,
}

impl Date {
    /// The date `days` after 1 January 1970.
    pub(super) fn from_days(days: i64) -> Self {
        let days = days + EPOCH;
        let era = days.div_euclid(146_097);
        let day_of_era = days.rem_euclid(146_097);
        // Within 400 years: take off the leap days to find the year.
        let leaps = day_of_era / 36_524 - day_of_era / 146_096 - day_of_era / 1_460;
        let year_of_era = (day_of_era + leaps) / 365;
        let before_year = year_of_era * 365 + year_of_era / 4 - year_of_era / 100;
        let day_of_year = day_of_era - before_year;
        let month = BEFORE_MONTH.iter().rposition(|&before| before <= day_of_year).unwrap_or(0);
        let year = era * 400 + year_of_era + i64::from(month >= 10);
        Self {
            year,
            month: (month as i64 + 2) % 12 + 1,
            day: day_of_year - BEFORE_MONTH[month] + 1,
        }
    }

    /// Days from 1 January 1970. A month or day out of range counts on into the next ones.
    pub(super) fn to_days(self) -> i64 {
        let months = self.month - 3;
        let year = self.year + months.div_euclid(12);
        let before_year =
            365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
        before_year + BEFORE_MONTH[months.rem_euclid(12) as usize] + self.day - 1 - EPOCH
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_days() {
        for (days, year, month, day) in [
            (0, 1970, 1, 1),
            (-1, 1969, 12, 31),
            (11_016, 2000, 2, 29),
            (11_017, 2000, 3, 1),
            (20_000, 2024, 10, 4),
            (47_540, 2100, 2, 28),
            (47_541, 2100, 3, 1),
        ] {
            let date = Date { year, month, day };
            assert_eq!(Date::from_days(days), date);
            assert_eq!(date.to_days(), days);
        }
    }

    #[test]
    fn every_day_of_eight_centuries_comes_back() {
        let mut before = Date::from_days(-150_001);
        for days in -150_000..150_000 {
            let date = Date::from_days(days);
            assert_eq!(date.to_days(), days);
            assert!((date.year, date.month, date.day) > (before.year, before.month, before.day));
            before = date;
        }
    }
}
