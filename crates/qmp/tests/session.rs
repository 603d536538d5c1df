//! Sessions over an in-memory stream: what is answered, in which order, and what one client can do to
//! the others.

use std::sync::Arc;
use std::time::Duration;

use qmp::QmpError;
use qmp::events::EventBus;
use qmp::server::{CommandInfo, Service, SessionOptions, serve_stream};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream};
use tokio::sync::Semaphore;
use tokio::task::LocalSet;

/// A machine whose slow commands wait until the test lets them go.
struct Machine {
    bus: Arc<EventBus>,
    gate: Semaphore,
    urgent: Semaphore,
    done: Semaphore,
}

impl Machine {
    fn new() -> Arc<Machine> {
        Arc::new(Machine {
            bus: EventBus::new(),
            gate: Semaphore::new(0),
            urgent: Semaphore::new(0),
            done: Semaphore::new(0),
        })
    }
}

impl Service for Machine {
    fn version(&self) -> Value {
        json!({"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": "test"})
    }

    fn command(&self, name: &str) -> Option<CommandInfo> {
        let allow_oob = name.starts_with("oob-");
        ["echo", "slow", "stop", "fail", "oob-now", "oob-slow", "big"]
            .contains(&name)
            .then_some(CommandInfo { allow_oob })
    }

    async fn execute(&self, name: &str, arguments: Map<String, Value>) -> Result<Value, QmpError> {
        match name {
            "slow" => self.gate.acquire().await.unwrap().forget(),
            "oob-slow" => self.urgent.acquire().await.unwrap().forget(),
            "stop" => self.bus.publish("STOP", None),
            "fail" => return Err(QmpError::device_not_active("No balloon device")),
            "big" => return Ok("x".repeat(100_000).into()),
            _ => {}
        }
        self.done.add_permits(1);
        Ok(Value::Object(arguments))
    }
}

struct Client {
    lines: BufReader<DuplexStream>,
}

impl Client {
    /// A session that greets; the client has read the greeting.
    async fn connect(machine: &Arc<Machine>, options: SessionOptions) -> Client {
        let (client, server) = tokio::io::duplex(4096);
        let serve = serve_stream(machine.clone(), machine.bus.clone(), server, options);
        tokio::task::spawn_local(serve);
        Client { lines: BufReader::new(client) }
    }

    async fn negotiated(machine: &Arc<Machine>, enable: Value) -> Client {
        let mut client = Client::connect(machine, SessionOptions::default()).await;
        assert!(client.line().await["QMP"]["version"]["qemu"].is_object());
        client.send(&json!({"execute": "qmp_capabilities", "arguments": {"enable": enable}})).await;
        assert_eq!(client.line().await, json!({"return": {}}));
        client
    }

    async fn send(&mut self, value: &Value) {
        self.lines.get_mut().write_all(value.to_string().as_bytes()).await.unwrap();
    }

    async fn raw(&mut self) -> String {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line);
        tokio::time::timeout(Duration::from_secs(20), read).await.expect("an answer").unwrap();
        line
    }

    async fn line(&mut self) -> Value {
        let line = self.raw().await;
        assert!(line.ends_with("\r\n"), "{line:?}");
        serde_json::from_str(&line).unwrap()
    }

    /// Asserts that nothing comes.
    async fn silent(&mut self) {
        let mut byte = [0];
        let read = self.lines.read(&mut byte);
        let nothing = tokio::time::timeout(Duration::from_millis(50), read).await;
        assert!(nothing.is_err(), "{nothing:?} {byte:?}");
    }
}

/// Runs a test that spawns local tasks.
async fn local(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn the_greeting_is_as_clients_expect() {
    local(async {
        let machine = Machine::new();
        let mut client = Client::connect(&machine, SessionOptions::default()).await;
        assert_eq!(
            client.raw().await,
            "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 0, \"minor\": 2, \"major\": 7}, \
             \"package\": \"test\"}, \"capabilities\": [\"oob\"]}}\r\n"
        );
    })
    .await;
}

#[tokio::test]
async fn pretty_sessions_spread_their_output() {
    local(async {
        let machine = Machine::new();
        let options = SessionOptions { pretty: true, ..SessionOptions::default() };
        let mut client = Client::connect(&machine, options).await;
        client.send(&json!({"execute": "qmp_capabilities"})).await;
        let mut text = String::new();
        while !text.ends_with("\r\n}\r\n{\r\n    \"return\": {\r\n    }\r\n}\r\n") {
            text.push_str(&client.raw().await);
        }
        assert!(text.starts_with("{\r\n    \"QMP\": {\r\n        \"version\": {"), "{text}");
    })
    .await;
}

#[tokio::test]
async fn ids_come_back_on_success_and_failure() {
    local(async {
        let machine = Machine::new();
        let mut client = Client::negotiated(&machine, json!([])).await;
        for id in [json!(null), json!("a"), json!(1.5), json!({"z": [1], "a": 2}), json!([])] {
            client.send(&json!({"execute": "echo", "arguments": {"k": 1}, "id": id})).await;
            assert_eq!(client.line().await, json!({"return": {"k": 1}, "id": id}));
            client.send(&json!({"execute": "fail", "id": id})).await;
            let error = json!({"class": "DeviceNotActive", "desc": "No balloon device"});
            assert_eq!(client.line().await, json!({"id": id, "error": error}));
        }
    })
    .await;
}

#[tokio::test]
async fn events_come_before_the_reply_they_belong_to() {
    local(async {
        let machine = Machine::new();
        let mut client = Client::negotiated(&machine, json!([])).await;
        client.send(&json!({"execute": "stop", "id": 1})).await;
        let event = client.line().await;
        assert_eq!(event["event"], "STOP");
        assert!(event["timestamp"]["seconds"].as_i64().unwrap() > 1_600_000_000);
        assert!(event["timestamp"]["microseconds"].as_i64().unwrap() < 1_000_000);
        assert_eq!(event.get("data"), None);
        assert_eq!(client.line().await, json!({"return": {}, "id": 1}));
    })
    .await;
}

#[tokio::test]
async fn no_event_comes_before_the_negotiation_is_answered() {
    local(async {
        let machine = Machine::new();
        machine.bus.publish("EARLY", None);
        let mut client = Client::connect(&machine, SessionOptions::default()).await;
        client.line().await;
        machine.bus.publish("EARLIER_THAN_NEGOTIATED", None);
        client.silent().await;
        client.send(&json!({"execute": "qmp_capabilities"})).await;
        assert_eq!(client.line().await, json!({"return": {}}));
        machine.bus.publish("LATER", None);
        assert_eq!(client.line().await["event"], "LATER");
    })
    .await;
}

#[tokio::test]
async fn out_of_band_commands_overtake() {
    local(async {
        let machine = Machine::new();
        let mut client = Client::negotiated(&machine, json!(["oob"])).await;
        client.send(&json!({"execute": "slow", "id": 1})).await;
        client.send(&json!({"execute": "echo", "id": 2})).await;
        client.send(&json!({"exec-oob": "oob-slow", "id": 3})).await;
        client.send(&json!({"exec-oob": "oob-now", "id": 4})).await;
        client.send(&json!({"exec-oob": "echo", "id": 5})).await;
        assert_eq!(client.line().await["id"], 4);
        let refused = client.line().await;
        assert_eq!(refused["id"], 5);
        assert_eq!(refused["error"]["desc"], "The command echo does not support OOB");
        machine.urgent.add_permits(1);
        assert_eq!(client.line().await["id"], 3);
        client.silent().await;
        machine.gate.add_permits(1);
        assert_eq!(client.line().await["id"], 1);
        assert_eq!(client.line().await["id"], 2);
    })
    .await;
}

#[tokio::test]
async fn without_oob_nothing_overtakes() {
    local(async {
        let machine = Machine::new();
        let mut client = Client::negotiated(&machine, json!([])).await;
        client.send(&json!({"execute": "slow", "id": 1})).await;
        client.send(&json!({"exec-oob": "oob-now", "id": 2})).await;
        client.silent().await;
        machine.gate.add_permits(1);
        assert_eq!(client.line().await["id"], 1);
        let refused = client.line().await;
        assert_eq!(refused["error"]["desc"], "QMP input member 'exec-oob' is unexpected");
    })
    .await;
}

#[tokio::test]
async fn a_full_queue_stops_the_reading_and_nothing_is_lost() {
    local(async {
        let machine = Machine::new();
        let mut client = Client::negotiated(&machine, json!(["oob"])).await;
        client.send(&json!({"execute": "slow", "id": "first"})).await;
        for id in 0..8 {
            client.send(&json!({"execute": "echo", "id": id})).await;
        }
        // Behind eight that wait, even this one does.
        client.send(&json!({"exec-oob": "oob-now", "id": "oob"})).await;
        client.silent().await;
        machine.gate.add_permits(1);
        let mut ids = Vec::new();
        for _ in 0..10 {
            ids.push(client.line().await["id"].clone());
        }
        let in_band: Vec<_> = ids.iter().filter(|id| **id != "oob").cloned().collect();
        assert_eq!(Value::from(in_band), json!(["first", 0, 1, 2, 3, 4, 5, 6, 7]));
        assert!(ids.contains(&json!("oob")));
    })
    .await;
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut_off_and_harms_nobody() {
    local(async {
        let machine = Machine::new();
        let mut mute = Client::negotiated(&machine, json!([])).await;
        let mut other = Client::negotiated(&machine, json!([])).await;
        let request = json!({"execute": "big"}).to_string().repeat(100);
        mute.send(&json!({"execute": "echo"})).await;
        let flood = tokio::task::spawn_local(async move {
            // Accepted only in part: the session stops to read.
            let written = mute.lines.get_mut().write_all(request.as_bytes());
            let _ = tokio::time::timeout(Duration::from_secs(30), written).await;
            mute
        });
        let data = json!({"text": "y".repeat(50_000)});
        for count in 0..200 {
            machine.bus.publish("NOISE", data.as_object().cloned());
            assert_eq!(other.line().await["event"], "NOISE");
            other.send(&json!({"execute": "echo", "id": count})).await;
            assert_eq!(other.line().await["id"], count);
        }
        let mut mute = flood.await.unwrap();
        let mut rest = Vec::new();
        let end = mute.lines.read_to_end(&mut rest);
        tokio::time::timeout(Duration::from_secs(20), end).await.expect("the end").unwrap();
        assert!(rest.len() < 1 << 20, "{}", rest.len());
    })
    .await;
}

#[tokio::test]
async fn requests_of_a_client_that_left_are_carried_out() {
    local(async {
        let machine = Machine::new();
        let mut client = Client::negotiated(&machine, json!([])).await;
        for _ in 0..3 {
            client.send(&json!({"execute": "slow"})).await;
        }
        drop(client);
        machine.gate.add_permits(3);
        let done = machine.done.acquire_many(3);
        tokio::time::timeout(Duration::from_secs(20), done).await.expect("done").unwrap().forget();
    })
    .await;
}

#[tokio::test]
async fn the_end_of_input_is_not_the_end_of_the_answers() {
    local(async {
        let machine = Machine::new();
        let (client, server) = tokio::io::duplex(4096);
        let options = SessionOptions::default();
        let serve = serve_stream(machine.clone(), machine.bus.clone(), server, options);
        let (mut read, mut write) = tokio::io::split(client);
        write
            .write_all(b"{'execute':'qmp_capabilities'}{'execute':'echo'}{'execute':'echo','id':9}")
            .await
            .unwrap();
        write.shutdown().await.unwrap();
        let mut text = String::new();
        let (_, read) = tokio::join!(serve, read.read_to_string(&mut text));
        read.unwrap();
        assert!(text.ends_with("{\"return\": {}}\r\n{\"return\": {}, \"id\": 9}\r\n"), "{text}");
    })
    .await;
}
