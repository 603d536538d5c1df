//! The tables of `bench cpu` and `bench smp`.

use super::{Row, Sample, Samples};

/// Above this the guest's clock and the host's differ more than by the time of a line on a console.
const DRIFT: f64 = 1.1;

/// The newest samples of a row, for somebody who waits.
pub(super) fn last(row: &Row, cpu_time: bool) -> String {
    let [native, peer, ours] = [&row.native, &row.peer, &row.ours]
        .map(|samples| time(samples.last().map(|sample| chosen_time(sample, cpu_time))));
    format!("{:<12}{native:>12}{peer:>12}{ours:>12}", row.name)
}

fn chosen_time(sample: &Sample, cpu_time: bool) -> f64 {
    if cpu_time { sample.cpu } else { sample.nanoseconds }
}

/// Prints times; with `cpu_time` those that the host's CPUs spent, which a busy host does not change.
pub(super) fn print(rows: &[Row], cpu_time: bool) {
    let of = |sample: &Sample| chosen_time(sample, cpu_time);
    println!(
        "{:<12}{:>12}{:>12}{:>12}{:>14}{:>14}{:>12}",
        "", "native", "peer", "ours", "peer/native", "ours/native", "peer/ours"
    );
    let mut all: [Vec<f64>; 3] = Default::default();
    for row in rows {
        let [native, peer, ours] =
            [&row.native, &row.peer, &row.ours].map(|samples| median(samples, of));
        let ratios = [divide(peer, native), divide(ours, native), divide(peer, ours)];
        for (all, ratio) in all.iter_mut().zip(ratios) {
            all.extend(ratio);
        }
        let mut notes = String::new();
        for (whose, samples) in [("native", &row.native), ("peer's", &row.peer), ("our", &row.ours)]
        {
            if let Some(drift) = median(samples, |s| s.drift).filter(|drift| *drift > DRIFT) {
                notes += &format!("  {whose} clock: {drift:.2} times slow");
            }
        }
        println!(
            "{:<12}{:>12}{:>12}{:>12}{:>14}{:>14}{:>12}{notes}",
            row.name,
            time(native),
            time(peer),
            time(ours),
            ratio(ratios[0]),
            ratio(ratios[1]),
            ratio(ratios[2]),
        );
    }
    let means = all.map(|ratios| ratio(geometric_mean(&ratios)));
    println!("{:<48}{:>14}{:>14}{:>12}", "geometric mean", means[0], means[1], means[2]);
}

/// For each program how many times as much two processes did as one.
pub(super) fn print_scaling(rows: &[(Row, Row)]) {
    println!("{:<12}{:>12}{:>12}{:>12}", "", "native", "peer", "ours");
    let mut all: [Vec<f64>; 3] = Default::default();
    for (one, two) in rows {
        let places = [(&one.native, &two.native), (&one.peer, &two.peer), (&one.ours, &two.ours)];
        let gains = places.map(|(one, two)| {
            divide(median(one, |s| s.nanoseconds), median(two, |s| s.nanoseconds))
        });
        for (all, gain) in all.iter_mut().zip(gains) {
            all.extend(gain);
        }
        let [native, peer, ours] = gains.map(ratio);
        println!("{:<12}{native:>12}{peer:>12}{ours:>12}", one.name);
    }
    let [native, peer, ours] = all.map(|gains| ratio(geometric_mean(&gains)));
    println!("{:<12}{native:>12}{peer:>12}{ours:>12}", "mean");
}

fn median(samples: &Samples, of: impl Fn(&Sample) -> f64) -> Option<f64> {
    let values: Vec<Vec<f64>> = samples.iter().map(|sample| vec![of(sample)]).collect();
    crate::bench::median(&values, 0)
}

fn divide(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    Some(a? / b?)
}

fn geometric_mean(values: &[f64]) -> Option<f64> {
    let sum: f64 = values.iter().map(|value| value.ln()).sum();
    (!values.is_empty()).then(|| (sum / values.len() as f64).exp())
}

fn ratio(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"))
}

/// Nanoseconds with a unit that fits.
fn time(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(ns) if ns < 1e6 => format!("{:.1} µs", ns / 1e3),
        Some(ns) if ns < 1e9 => format!("{:.2} ms", ns / 1e6),
        Some(ns) => format!("{:.2} s", ns / 1e9),
    }
}

#[test]
fn the_mean_is_geometric() {
    assert_eq!(geometric_mean(&[]), None);
    assert!((geometric_mean(&[2.0, 8.0]).unwrap() - 4.0).abs() < 1e-12);
    assert_eq!(time(Some(1.5e6)), "1.50 ms");
}
