//! The time of a QMP round trip, beside that of a bare echo over the same kind of socket.

use super::Bench;
use anyhow::{Context as _, Result, ensure};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Instant;
use testkit::{Vm, VmBuilder};

const ROUND_TRIPS: usize = 5_000;
const REQUEST: &[u8] = b"{\"execute\":\"query-status\",\"id\":1}\n";

pub(super) fn run(bench: &Bench) -> Result<()> {
    println!("\nqmp: {ROUND_TRIPS} round trips of query-status, one after the other");
    let names = ["median round trip (µs)", "bare echo of the same bytes (µs)", "times the echo"];
    bench.compare(&names, 5, measure)
}

fn measure(binary: &Path) -> Result<Vec<f64>> {
    let mut vm = VmBuilder::new(binary)?.args(["-S"]).spawn()?;
    let mut stream = vm.connect("qmp.sock")?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    stream.write_all(b"{\"execute\":\"qmp_capabilities\"}\n")?;
    line.clear();
    reader.read_line(&mut line)?;
    ensure!(line.contains("return"), "the negotiation failed: {line}");
    let (monitor, reply) = round_trips(stream, reader)?;
    let echo = echo(&vm, reply)?;
    Ok(vec![monitor, echo, monitor / echo])
}

/// Median in microseconds, and the size of an answer in bytes.
fn round_trips(mut stream: UnixStream, mut reader: BufReader<UnixStream>) -> Result<(f64, usize)> {
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    let mut line = String::new();
    for _ in 0..ROUND_TRIPS {
        line.clear();
        let start = Instant::now();
        stream.write_all(REQUEST)?;
        reader.read_line(&mut line)?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2).copied().context("nothing measured")?;
    Ok((median, line.len()))
}

/// The same with a thread that answers each line with one of `size` bytes.
fn echo(vm: &Vm, size: usize) -> Result<f64> {
    let path = vm.path("echo.sock");
    let listener = UnixListener::bind(&path)?;
    let server = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut answer = vec![b'x'; size.saturating_sub(1)];
        answer.push(b'\n');
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 {
            stream.write_all(&answer)?;
            line.clear();
        }
        Ok(())
    });
    let stream = UnixStream::connect(&path)?;
    let reader = BufReader::new(stream.try_clone()?);
    let (median, _) = round_trips(stream, reader)?;
    server.join().ok().context("the echo died")??;
    Ok(median)
}
