//! `-rtc`: the real-time clock.

use ::options::{OptionError, Properties};
use devices::mc146818::{RtcBase, RtcSource};
use time::{Date, Month, PrimitiveDateTime, Time, UtcOffset};

use super::Builder;

const SOURCES: &[(&str, RtcSource)] =
    &[("host", RtcSource::Host), ("rt", RtcSource::HostMonotonic), ("vm", RtcSource::Guest)];

pub(super) fn rtc(builder: &mut Builder, value: &str) -> Result<(), OptionError> {
    let mut options = Properties::parse("-rtc", value, None)?;
    let rtc = &mut builder.machine().rtc;
    if let Some(base) = options.take("base") {
        rtc.base = parse_base(&base)?;
    }
    if let Some(source) = options.take_choice("clock", SOURCES)? {
        rtc.source = source;
    }
    if let Some(slew) = options.take_choice("driftfix", &[("none", false), ("slew", true)])? {
        rtc.slew = slew;
    }
    options.finish()
}

fn parse_base(text: &str) -> Result<RtcBase, OptionError> {
    match text {
        "utc" => Ok(RtcBase::Utc),
        "localtime" => {
            let offset = UtcOffset::current_local_offset().map_err(|e| {
                OptionError::new(format!("-rtc base=localtime: the host's time zone: {e}"))
            })?;
            Ok(RtcBase::LocalTime { offset_seconds: offset.whole_seconds().into() })
        }
        _ => parse_date(text).map(RtcBase::At).ok_or_else(|| {
            OptionError::new(format!(
                "-rtc: invalid datetime format: '{text}'; \
                 valid formats: '2006-06-17T16:01:21' or '2006-06-17'"
            ))
        }),
    }
}

/// Seconds from 1970 to a date, at midnight unless it has a time.
fn parse_date(text: &str) -> Option<i64> {
    let (date, time) = text.split_once('T').unwrap_or((text, "00:00:00"));
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time, ':')?;
    let byte = |number: u16| u8::try_from(number).ok();
    let month = Month::try_from(byte(month)?).ok()?;
    let date = Date::from_calendar_date(year.into(), month, byte(day)?).ok()?;
    let time = Time::from_hms(byte(hour)?, byte(minute)?, byte(second)?).ok()?;
    Some(PrimitiveDateTime::new(date, time).assume_utc().unix_timestamp())
}

/// Three numbers of digits alone.
fn numbers(text: &str, separator: char) -> Option<[u16; 3]> {
    let mut parts = text.split(separator).map(|part| {
        let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        part.parse().ok().filter(|_| digits)
    });
    let numbers = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_and_others_are_refused() {
        assert_eq!(parse_date("1970-01-02"), Some(86_400));
        assert_eq!(parse_date("2006-06-17T16:01:21"), Some(1_150_560_081));
        for text in ["", "2006", "2006-13-01", "2006-06-17T25:00:00", "2006-06-+7", "2006-06-17-1"]
        {
            assert_eq!(parse_date(text), None, "{text}");
        }
        assert!(parse_base("yesterday").is_err());
    }
}
