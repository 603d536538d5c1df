//! The server on real sockets, with our own clients.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use chardev::socket::{InetAddress, SocketAddress, SocketListener, SocketSpec};
use chardev::{Chardev, ChardevSpec};
use qmp::QmpError;
use qmp::client::{Address, BlockingClient, Client, ClientError};
use qmp::events::EventBus;
use qmp::server::{
    CommandInfo, Endpoint, MonitorInfo, Server, ServerHandle, Service, SessionOptions,
};
use serde_json::{Map, Value, json};

struct Machine {
    bus: Arc<EventBus>,
    server: OnceLock<ServerHandle>,
}

impl Service for Machine {
    fn version(&self) -> Value {
        json!({"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": "test"})
    }

    fn command(&self, name: &str) -> Option<CommandInfo> {
        ["echo", "quit", "hang"]
            .contains(&name)
            .then_some(CommandInfo { allow_oob: name == "echo" })
    }

    async fn execute(&self, name: &str, arguments: Map<String, Value>) -> Result<Value, QmpError> {
        match name {
            "quit" => {
                let data = json!({"guest": false, "reason": "host-qmp-quit"});
                self.bus.publish("SHUTDOWN", data.as_object().cloned());
                self.server.get().unwrap().stop();
            }
            "hang" => std::future::pending().await,
            _ => {}
        }
        Ok(Value::Object(arguments))
    }
}

struct Running {
    bus: Arc<EventBus>,
    handle: ServerHandle,
    thread: std::thread::JoinHandle<()>,
    dir: tempfile::TempDir,
}

impl Running {
    fn start() -> Running {
        let bus = EventBus::new();
        let machine = Arc::new(Machine { bus: bus.clone(), server: OnceLock::new() });
        let (server, handle) = Server::new(machine.clone(), bus.clone());
        assert!(machine.server.set(handle.clone()).is_ok());
        let thread = server.spawn().unwrap();
        Running { bus, handle, thread, dir: tempfile::tempdir().unwrap() }
    }

    fn listen(&self, address: SocketAddress) -> (Arc<MonitorInfo>, SocketAddress) {
        let listener = SocketListener::bind(&SocketSpec::server(address)).unwrap();
        let address = listener.spec().address.clone();
        let endpoint = Endpoint::Listener(listener, None);
        (self.handle.add("mon0", endpoint, SessionOptions::default()), address)
    }

    fn unix(&self) -> (Arc<MonitorInfo>, PathBuf) {
        let path = self.dir.path().join("qmp");
        (self.listen(SocketAddress::Unix(path.clone())).0, path)
    }

    fn stop(self) {
        self.handle.stop();
        self.thread.join().unwrap();
    }
}

fn connect(path: &Path) -> BlockingClient {
    BlockingClient::connect(&Address::Unix(path.to_owned()), true).unwrap()
}

fn arguments(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap()
}

#[test]
fn many_clients_on_one_socket() {
    let running = Running::start();
    let (info, path) = running.unix();
    assert_eq!(info.filename(), format!("disconnected:unix:{},server=on", path.display()));
    let mut clients: Vec<_> = (0..20).map(|_| connect(&path)).collect();
    assert_eq!(clients[0].greeting().version["qemu"]["major"], 7);
    assert_eq!(clients[0].greeting().capabilities, ["oob"]);
    assert_eq!(info.sessions(), 20);
    assert_eq!(info.filename(), format!("unix:{},server=on", path.display()));
    running.bus.publish("RESUME", None);
    for (n, client) in clients.iter_mut().enumerate() {
        let sent = json!({"n": n, "text": "h\u{e9} \u{1F600}"});
        assert_eq!(client.execute("echo", arguments(&sent)).unwrap(), sent);
        let event = client.event(Some(Duration::from_secs(20))).unwrap().unwrap();
        assert_eq!(event.name, "RESUME");
        assert_eq!(client.event(Some(Duration::from_millis(1))).unwrap(), None);
        let refused = client.execute("nope", Map::new()).unwrap_err();
        assert_eq!(refused.to_string(), "CommandNotFound: The command nope has not been found");
    }
    drop(clients);
    running.stop();
    assert!(!path.exists());
}

#[test]
fn quit_is_answered_and_what_follows_is_not() {
    let running = Running::start();
    let (_, path) = running.unix();
    let mut other = connect(&path);
    let mut stuck = UnixStream::connect(&path).unwrap();
    stuck.write_all(b"{'execute': 'qmp_capabilities'}{'execute': 'hang'}").unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    client
        .write_all(
            b"{'execute': 'qmp_capabilities'}{'execute': 'quit', 'id': 1}{'execute': 'echo'}",
        )
        .unwrap();
    let mut text = String::new();
    // The server closes with the last request unread, so the end may be a reset.
    let _ = client.read_to_string(&mut text);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(lines[2].contains("\"event\": \"SHUTDOWN\""), "{text}");
    assert_eq!(lines[3], "{\"return\": {}, \"id\": 1}");
    let event = other.event(None).unwrap().unwrap();
    assert_eq!(event.name, "SHUTDOWN");
    assert_eq!(event.data["reason"], "host-qmp-quit");
    assert!(matches!(other.event(None), Err(ClientError::Closed)));
    running.thread.join().unwrap();
    assert!(!path.exists());
}

#[test]
fn tcp_and_the_async_client() {
    let running = Running::start();
    let host = "127.0.0.1".to_owned();
    let inet = InetAddress { host, ..InetAddress::default() };
    let (info, bound) = running.listen(SocketAddress::Inet(inet));
    let SocketAddress::Inet(bound) = bound else { panic!("{bound:?}") };
    let address = Address::from(format!("{}:{}", bound.host, bound.port).as_str());
    assert!(matches!(address, Address::Tcp(_)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = Client::connect(&address, true).await.unwrap();
        let sent = json!({"list": [1, null, {}]});
        assert_eq!(client.execute("echo", arguments(&sent)).await.unwrap(), sent);
        assert_eq!(client.execute_oob("echo", arguments(&sent)).await.unwrap(), sent);
        let described = info.filename();
        assert!(described.starts_with("tcp:127.0.0.1:"), "{described}");
        assert!(described.contains(",server=on <-> 127.0.0.1:"), "{described}");
        running.bus.publish("STOP", None);
        assert_eq!(client.event().await.unwrap().name, "STOP");
    });
    running.stop();
}

#[test]
fn limited_events_arrive_first_and_last() {
    let running = Running::start();
    let (_, path) = running.unix();
    let mut client = connect(&path);
    for actual in 0..50 {
        running.bus.publish("BALLOON_CHANGE", json!({ "actual": actual }).as_object().cloned());
    }
    let mut next = || client.event(Some(Duration::from_secs(20))).unwrap().unwrap();
    assert_eq!(next().data["actual"], 0);
    assert_eq!(next().data["actual"], 49);
    running.stop();
}

#[test]
fn a_client_socket_connects_again() {
    let running = Running::start();
    let path = running.dir.path().join("theirs");
    let theirs = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let reconnect = Some(Duration::from_millis(10));
    let spec = SocketSpec { reconnect, ..SocketSpec::client(SocketAddress::Unix(path)) };
    let endpoint = Endpoint::Connector(spec, None);
    running.handle.add("mon1", endpoint, SessionOptions::default());
    for _ in 0..3 {
        let (stream, _) = theirs.accept().unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        assert!(line.starts_with("{\"QMP\""), "{line}");
    }
    running.stop();
}

#[test]
fn a_character_device_carries_a_session() {
    let running = Running::start();
    let path = running.dir.path().join("chardev");
    let spec = SocketSpec::server(SocketAddress::Unix(path.clone()));
    let backend = Chardev::open("mon2", &ChardevSpec::Socket(spec), &|_| {}).unwrap();
    running.handle.add_chardev(backend.clone(), SessionOptions::default());
    for _ in 0..2 {
        let mut client = connect(&path);
        let sent = json!({"text": "z".repeat(300_000)});
        assert_eq!(client.execute("echo", arguments(&sent)).unwrap(), sent);
        running.bus.publish("STOP", None);
        assert_eq!(client.event(None).unwrap().unwrap().name, "STOP");
    }
    let mut client = connect(&path);
    client.execute("quit", Map::new()).unwrap();
    running.thread.join().unwrap();
}
