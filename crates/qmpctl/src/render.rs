//! Values for people: tables for lists of objects, aligned names for objects; and JSON for programs.

use std::fmt::Write;

use qmp::client::ReceivedEvent;
use serde_json::{Map, Value, json};

/// Wider tables than this are shown as one block an item.
const MAX_WIDTH: usize = 140;

/// A command's return value as text, lines complete. The empty object is nothing.
pub(crate) fn value(value: &Value, json: bool) -> String {
    if json {
        return format!("{value:#}\n");
    }
    match value {
        Value::Object(members) => block(&flatten(members)),
        Value::Array(items) => list(items),
        scalar => format!("{}\n", cell(scalar)),
    }
}

/// An event as text on one line.
pub(crate) fn event(event: &ReceivedEvent, json: bool) -> String {
    let (seconds, microseconds) = event.timestamp;
    if json {
        let timestamp = json!({"seconds": seconds, "microseconds": microseconds});
        let mut object = json!({"timestamp": timestamp, "event": event.name});
        if !event.data.is_null() {
            object["data"] = event.data.clone();
        }
        return object.to_string();
    }
    let mut text = format!("{}.{microseconds:06} {}", utc(seconds), event.name);
    if let Value::Object(data) = &event.data {
        for (name, value) in flatten(data) {
            let _ = write!(text, " {name}={value}");
        }
    }
    text
}

/// Seconds since 1970 as date and time of day, UTC.
fn utc(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Years that begin in March end with the leap day; 400 of them have 146,097 days.
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day_of_month:02} {hour:02}:{minute:02}:{second:02}")
}

/// Text as it is, if it can't be mistaken for two cells or do harm to a terminal; else as JSON.
fn cell(value: &Value) -> String {
    match value {
        Value::String(text) if !text.chars().any(char::is_control) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// The members of an object and of the objects in it, named by their paths.
fn flatten(members: &Map<String, Value>) -> Vec<(String, String)> {
    let mut cells = Vec::new();
    let mut pending: Vec<(String, &Value)> =
        members.iter().rev().map(|(name, value)| (name.clone(), value)).collect();
    while let Some((path, value)) = pending.pop() {
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                let inner = inner.iter().rev();
                pending.extend(inner.map(|(name, value)| (format!("{path}.{name}"), value)));
            }
            value => cells.push((path, cell(value))),
        }
    }
    cells
}

fn block(cells: &[(String, String)]) -> String {
    let width = cells.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in cells {
        let _ = writeln!(text, "{name:width$}  {value}");
    }
    text
}

fn list(items: &[Value]) -> String {
    let objects: Option<Vec<_>> = items.iter().map(|item| item.as_object().map(flatten)).collect();
    let Some(rows) = objects else {
        return items.iter().map(|item| cell(item) + "\n").collect();
    };
    table(&rows).unwrap_or_else(|| {
        let blocks: Vec<_> = rows.iter().map(|row| block(row)).collect();
        blocks.join("\n")
    })
}

/// A table with a column for each name, if it isn't too wide.
fn table(rows: &[Vec<(String, String)>]) -> Option<String> {
    let mut columns: Vec<&str> = Vec::new();
    for (name, _) in rows.iter().flatten() {
        if !columns.contains(&name.as_str()) {
            columns.push(name);
        }
        if columns.len() * 3 > MAX_WIDTH {
            return None;
        }
    }
    let look_up = |row: &'_ [(String, String)], column: &str| {
        row.iter()
            .find(|(name, _)| name == column)
            .map_or(String::new(), |(_, value)| value.clone())
    };
    let lines: Vec<Vec<String>> =
        std::iter::once(columns.iter().map(|c| (*c).to_owned()).collect())
            .chain(rows.iter().map(|row| columns.iter().map(|c| look_up(row, c)).collect()))
            .collect();
    let widths: Vec<usize> = (0..columns.len())
        .map(|at| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0))
        .collect();
    if widths.iter().sum::<usize>() + 2 * widths.len() > MAX_WIDTH {
        return None;
    }
    let mut text = String::new();
    for line in &lines {
        let mut shown = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            let _ = write!(shown, "{cell:width$}  ");
        }
        let _ = writeln!(text, "{}", shown.trim_end());
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_objects_are_tables() {
        let list = json!([{"name": "a", "n": {"x": 1}}, {"name": "long name", "ok": true}]);
        assert_eq!(
            value(&list, false),
            "name       n.x  ok\n\
             a          1\n\
             long name       true\n"
        );
    }

    #[test]
    fn wide_tables_become_blocks() {
        let wide = "w".repeat(100);
        let list = json!([{"name": wide, "other": wide}, {"name": "b"}]);
        assert_eq!(value(&list, false), format!("name   {wide}\nother  {wide}\n\nname  b\n"));
    }

    #[test]
    fn the_rest_is_plain() {
        assert_eq!(value(&json!({}), false), "");
        assert_eq!(value(&json!({"a": {"b": "c"}, "dd": [1, {}]}), false), "a.b  c\ndd   [1,{}]\n");
        assert_eq!(value(&json!(["x", "y"]), false), "x\ny\n");
        assert_eq!(value(&json!("a\u{1b}[2Jb"), false), "\"a\\u001b[2Jb\"\n");
        assert_eq!(value(&json!({"a": 1}), true), "{\n  \"a\": 1\n}\n");
    }

    #[test]
    fn events_are_lines() {
        let mut stop = ReceivedEvent {
            name: "STOP".to_owned(),
            data: Value::Null,
            timestamp: (1_709_164_800, 42),
        };
        assert_eq!(event(&stop, false), "2024-02-29 00:00:00.000042 STOP");
        stop.data = json!({"guest": true, "a": {"b": 1}});
        assert_eq!(event(&stop, false), "2024-02-29 00:00:00.000042 STOP guest=true a.b=1");
        assert!(event(&stop, true).starts_with("{\"timestamp\":{\"seconds\":1709164800,"));
        assert_eq!(utc(0), "1970-01-01 00:00:00");
        assert_eq!(utc(951_782_399), "2000-02-28 23:59:59");
        assert_eq!(utc(1_796_083_199), "2026-11-30 23:59:59");
    }
}
