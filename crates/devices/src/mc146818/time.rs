//! The time in the registers: binary or BCD, 12 or 24 hours; and when the alarm matches.

use super::calendar::Date;
use super::{B_24_HOURS, B_BINARY, Mc146818State, reg};

/// Nanoseconds of a second.
pub(super) const NS: i128 = 1_000_000_000;
const DAY: i128 = 86_400;
/// In 12-hour mode, the hours register says "afternoon" with this bit.
const AFTERNOON: u8 = 1 << 7;
/// Alarm registers with both of these bits match anything.
const ANY: u8 = 0xc0;

/// Whether a register shows the time.
pub(super) fn is_time(index: usize) -> bool {
    matches!(
        index,
        reg::SECONDS
            | reg::MINUTES
            | reg::HOURS
            | reg::WEEKDAY
            | reg::DAY
            | reg::MONTH
            | reg::YEAR
            | reg::CENTURY
            | reg::CENTURY_PS2
    )
}

impl Mc146818State {
    fn encode(&self, value: u8) -> u8 {
        if self.cmos[reg::B] & B_BINARY != 0 { value } else { bcd(value) }
    }

    fn decode_number(&self, value: u8) -> u8 {
        if self.cmos[reg::B] & B_BINARY != 0 {
            value
        } else {
            // Digits past 9 count for what they are; 165 at most.
            (value >> 4) * 10 + (value & 0xf)
        }
    }

    fn encode_hours(&self, hours: u8) -> u8 {
        if self.cmos[reg::B] & B_24_HOURS != 0 {
            return self.encode(hours);
        }
        let on_dial = (hours + 11) % 12 + 1;
        self.encode(on_dial) | if hours >= 12 { AFTERNOON } else { 0 }
    }

    fn decode_hours(&self, value: u8) -> u8 {
        if self.cmos[reg::B] & B_24_HOURS != 0 {
            return self.decode_number(value);
        }
        self.decode_number(value & !AFTERNOON) % 12 + if value & AFTERNOON != 0 { 12 } else { 0 }
    }

    /// Puts a time in nanoseconds since 1970 into the registers.
    pub(super) fn store_time(&mut self, time_ns: i128) {
        let seconds = time_ns.div_euclid(NS);
        let days = seconds.div_euclid(DAY) as i64;
        let of_day = seconds.rem_euclid(DAY);
        let date = Date::from_days(days);
        let century = self.encode((date.year.div_euclid(100).rem_euclid(100)) as u8);
        let fields = [
            (reg::SECONDS, self.encode((of_day % 60) as u8)),
            (reg::MINUTES, self.encode((of_day / 60 % 60) as u8)),
            (reg::HOURS, self.encode_hours((of_day / 3600) as u8)),
            // 1 January 1970 was a Thursday; 1 is Sunday.
            (reg::WEEKDAY, self.encode(((days + 4).rem_euclid(7) + 1) as u8)),
            (reg::DAY, self.encode(date.day as u8)),
            (reg::MONTH, self.encode(date.month as u8)),
            (reg::YEAR, self.encode(date.year.rem_euclid(100) as u8)),
            (reg::CENTURY, century),
            (reg::CENTURY_PS2, century),
        ];
        for (index, value) in fields {
            self.cmos[index] = value;
        }
    }

    /// Seconds since 1970 that the registers show.
    pub(super) fn load_time(&self) -> i128 {
        let field = |index: usize| i64::from(self.decode_number(self.cmos[index]));
        let date = Date {
            year: field(reg::CENTURY) * 100 + field(reg::YEAR),
            month: field(reg::MONTH),
            day: field(reg::DAY),
        };
        let hours = i64::from(self.decode_hours(self.cmos[reg::HOURS]));
        let of_day = (hours * 60 + field(reg::MINUTES)) * 60 + field(reg::SECONDS);
        i128::from(date.to_days()) * DAY + i128::from(of_day)
    }

    /// The first second after `after_ns` at which the alarm matches, in nanoseconds since 1970.
    pub(super) fn next_alarm(&self, after_ns: i128) -> Option<i128> {
        let wanted = |index: usize, decode: &dyn Fn(u8) -> u8| {
            let value = self.cmos[index];
            (value & ANY != ANY).then(|| i128::from(decode(value)))
        };
        let number = |value| self.decode_number(value);
        let hours = wanted(reg::HOURS_ALARM, &|value| self.decode_hours(value));
        let minutes = wanted(reg::MINUTES_ALARM, &number);
        let seconds = wanted(reg::SECONDS_ALARM, &number);
        if hours.is_some_and(|h| h > 23)
            || minutes.is_some_and(|m| m > 59)
            || seconds.is_some_and(|s| s > 59)
        {
            return None;
        }
        let first = after_ns.div_euclid(NS) + 1;
        let matches = |value: i128, wanted: Option<i128>| wanted.is_none_or(|w| w == value);
        // Go up by whole hours, then minutes, then seconds: at most 25 + 60 + 60 steps, because a
        // match lies within a day.
        let mut time = first;
        while !matches(time.rem_euclid(DAY) / 3600, hours) {
            time = (time.div_euclid(3600) + 1) * 3600;
        }
        let hour_end = (time.div_euclid(3600) + 1) * 3600;
        while time < hour_end && !matches(time.rem_euclid(3600) / 60, minutes) {
            time = (time.div_euclid(60) + 1) * 60;
        }
        let minute_end = (time.div_euclid(60) + 1) * 60;
        while time < minute_end && !matches(time.rem_euclid(60), seconds) {
            time += 1;
        }
        let hit = matches(time.rem_euclid(DAY) / 3600, hours)
            && matches(time.rem_euclid(3600) / 60, minutes)
            && matches(time.rem_euclid(60), seconds);
        // What began within the hour or minute can run out of it; the next one begins at its start.
        if hit { Some(time * NS) } else { self.next_alarm((time - 1) * NS) }
    }
}

fn bcd(value: u8) -> u8 {
    ((value / 10) << 4) | (value % 10)
}
