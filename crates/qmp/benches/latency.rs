//! The round trip of a trivial command, beside that of a bare echo of as many bytes.
//!
//! Both servers run on a thread of their own behind a Unix socket; the client is the same loop of a
//! blocking write and read. Batches alternate, so that both see the same machine.
//! `cargo bench -p qmp --bench latency` prints medians and their ratio; at most 2 is the goal.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chardev::socket::{SocketAddress, SocketListener, SocketSpec};
use qmp::QmpError;
use qmp::events::EventBus;
use qmp::server::{CommandInfo, Endpoint, Server, Service, SessionOptions};
use serde_json::{Map, Value, json};

const REQUEST: &[u8] = b"{\"execute\": \"query-name\", \"id\": 1}";
const REPLY: &[u8] = b"{\"return\": {}, \"id\": 1}\r\n";
const BATCHES: usize = 20;
const ROUNDS: usize = 2000;

struct Trivial;

impl Service for Trivial {
    fn version(&self) -> Value {
        json!({})
    }

    fn command(&self, _: &str) -> Option<CommandInfo> {
        Some(CommandInfo { allow_oob: false })
    }

    async fn execute(&self, _: &str, _: Map<String, Value>) -> Result<Value, QmpError> {
        Ok(json!({}))
    }
}

/// Reads requests and answers with as many bytes as the other server does.
fn echo(mut stream: UnixStream) {
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer).is_ok_and(|count| count > 0) {
        if stream.write_all(REPLY).is_err() {
            return;
        }
    }
}

fn batch(stream: &mut UnixStream, times: &mut Vec<Duration>) {
    let mut buffer = [0; 4096];
    for _ in 0..ROUNDS {
        let start = Instant::now();
        stream.write_all(REQUEST).expect("the server is there");
        let mut count = 0;
        while count < REPLY.len() {
            count += stream.read(&mut buffer[count..]).expect("the server is there");
        }
        times.push(start.elapsed());
        assert_eq!(&buffer[..count], REPLY);
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let echo_path = dir.path().join("echo");
    let listener = UnixListener::bind(&echo_path).expect("bind");
    std::thread::spawn(move || echo(listener.accept().expect("accept").0));
    let mut bare = UnixStream::connect(&echo_path).expect("connect");

    let qmp_path = dir.path().join("qmp");
    let spec = SocketSpec::server(SocketAddress::Unix(qmp_path.clone()));
    let listener = SocketListener::bind(&spec).expect("bind");
    let (server, handle) = Server::new(Arc::new(Trivial), EventBus::new());
    handle.add("bench", Endpoint::Listener(listener, None), SessionOptions::default());
    let thread = server.spawn().expect("spawn");
    let mut qmp = UnixStream::connect(&qmp_path).expect("connect");
    let mut buffer = [0; 4096];
    let _greeting = qmp.read(&mut buffer).expect("greeting");
    qmp.write_all(b"{\"execute\": \"qmp_capabilities\"}").expect("negotiate");
    let _return = qmp.read(&mut buffer).expect("return");

    let (mut bare_times, mut qmp_times) = (Vec::new(), Vec::new());
    for _ in 0..BATCHES {
        batch(&mut bare, &mut bare_times);
        batch(&mut qmp, &mut qmp_times);
    }
    let (bare, qmp) = (median(&mut bare_times), median(&mut qmp_times));
    println!("bare echo  {bare:>10.2?}");
    println!("query-name {qmp:>10.2?}");
    println!("ratio      {:>10.2}", qmp.as_secs_f64() / bare.as_secs_f64());
    handle.stop();
    thread.join().expect("the server ends");
}
