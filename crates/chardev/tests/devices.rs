//! Character devices from the outside: what goes in in front comes out behind, and the reverse.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use chardev::socket::{SocketAddress, SocketSpec};
use chardev::{
    CharBackend, CharEvent, CharReceiver, Chardev, ChardevSpec, Mux, Notice, OUTPUT_BYTES,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// A device model that writes down what it gets, and takes as much as the test allows.
#[derive(Default)]
struct Log {
    state: Mutex<(Vec<u8>, Vec<CharEvent>, usize)>,
    changed: Condvar,
    room: AtomicUsize,
}

struct Front(Arc<Log>);

impl CharReceiver for Front {
    fn can_receive(&self) -> usize {
        self.0.room.load(Ordering::SeqCst)
    }

    fn receive(&self, data: &[u8]) {
        assert!(!data.is_empty() && data.len() <= self.can_receive());
        self.0.state.lock().unwrap().0.extend(data);
        self.0.changed.notify_all();
    }

    fn event(&self, event: CharEvent) {
        self.0.state.lock().unwrap().1.push(event);
        self.0.changed.notify_all();
    }

    fn writable(&self) {
        self.0.state.lock().unwrap().2 += 1;
        self.0.changed.notify_all();
    }
}

impl Log {
    fn attach(backend: &dyn CharBackend, room: usize) -> Arc<Log> {
        let log = Arc::new(Log::default());
        log.room.store(room, Ordering::SeqCst);
        backend.set_receiver(Box::new(Front(log.clone())));
        log
    }

    fn wait(&self, what: impl Fn(&(Vec<u8>, Vec<CharEvent>, usize)) -> bool) {
        let state = self.state.lock().unwrap();
        let (state, timeout) =
            self.changed.wait_timeout_while(state, PATIENCE, |state| !what(state)).unwrap();
        assert!(!timeout.timed_out(), "{state:?}");
    }

    fn wait_bytes(&self, bytes: &[u8]) {
        self.wait(|state| state.0 == bytes);
    }

    fn wait_events(&self, events: &[CharEvent]) {
        self.wait(|state| state.1 == events);
    }
}

fn open(spec: &ChardevSpec) -> Arc<Chardev> {
    Chardev::open("c0", spec, &|_| {}).unwrap()
}

fn unix_server(path: &Path) -> ChardevSpec {
    ChardevSpec::Socket(SocketSpec::server(SocketAddress::Unix(path.to_owned())))
}

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn null_swallows() {
    let null = open(&ChardevSpec::Null);
    assert_eq!(null.write(&[0; 1 << 20]), 1 << 20);
    assert_eq!((null.filename().as_str(), null.frontend_open()), ("null", false));
    let _log = Log::attach(&*null, 1);
    assert!(null.info().frontend_open);
}

#[test]
fn a_file_is_written_and_appended_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    for (append, text) in [(false, "one "), (true, "two"), (false, "three")] {
        let file = open(&ChardevSpec::File { path: path.clone(), append });
        assert_eq!(file.filename(), "file");
        assert_eq!(file.write(text.as_bytes()), text.len());
        drop(file);
        let expected = if append { "one two" } else { text };
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
    }
    let spec = ChardevSpec::File { path: dir.path().join("no/such"), append: false };
    let error = Chardev::open("c0", &spec, &|_| {}).unwrap_err().to_string();
    assert!(error.ends_with("no/such': No such file or directory"), "{error}");
}

#[test]
fn a_ring_keeps_the_last_bytes() {
    let error = Chardev::open("c0", &ChardevSpec::Ringbuf { size: 5 }, &|_| {}).unwrap_err();
    assert_eq!(error.to_string(), "size of ringbuf chardev must be power of two");
    let ring = open(&ChardevSpec::Ringbuf { size: 4 });
    assert_eq!(ring.write(b"abc"), 3);
    assert_eq!(ring.write(b"defg"), 4);
    assert_eq!(ring.take_output(), b"defg");
    assert_eq!(ring.put_input(b"xyz"), 0);
    let log = Log::attach(&*ring, 2);
    assert_eq!(ring.put_input(b"xyz"), 2);
    log.wait_bytes(b"xy");
}

#[test]
fn a_server_socket_serves_one_client_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let device = open(&unix_server(&path));
    assert_eq!(device.filename(), format!("disconnected:unix:{},server=on", path.display()));
    assert_eq!(device.write(b"nobody reads this"), 17);
    let log = Log::attach(&*device, 100);
    for round in 1..=2 {
        let mut client = connect(&path);
        log.wait(|state| state.1.len() == 2 * round - 1);
        assert_eq!(device.filename(), format!("unix:{},server=on", path.display()));
        client.write_all(b"in").unwrap();
        log.wait_bytes(&b"in".repeat(round));
        assert_eq!(device.write(b"out"), 3);
        let mut answer = [0; 3];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"out");
        drop(client);
        log.wait(|state| state.1.len() == 2 * round);
    }
    use CharEvent::{Closed, Opened};
    log.wait_events(&[Opened, Closed, Opened, Closed]);
    drop(device);
    assert!(!path.exists());
}

#[test]
fn input_waits_until_it_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let device = open(&unix_server(&path));
    let log = Log::attach(&*device, 0);
    let mut client = connect(&path);
    client.write_all(b"hello").unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert!(log.state.lock().unwrap().0.is_empty());
    log.room.store(1, Ordering::SeqCst);
    device.accept_input();
    log.wait_bytes(b"hello");
}

#[test]
fn output_nobody_reads_is_bounded_and_room_is_announced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let device = open(&unix_server(&path));
    let log = Log::attach(&*device, 1);
    let mut client = connect(&path);
    log.wait_events(&[CharEvent::Opened]);
    let mut sent: Vec<u8> = Vec::new();
    let chunk: Vec<u8> = (0..=255).cycle().take(OUTPUT_BYTES).collect();
    // The kernel's buffer fills first, then ours.
    loop {
        let count = device.write(&chunk);
        sent.extend(&chunk[..count]);
        if count == 0 {
            // The thread may not have filled the kernel's buffer yet.
            std::thread::sleep(Duration::from_millis(50));
            if device.write(&chunk[..1]) == 0 {
                break;
            }
            sent.extend(&chunk[..1]);
        }
    }
    assert!(sent.len() < 64 * OUTPUT_BYTES);
    let mut received = vec![0; sent.len()];
    client.read_exact(&mut received).unwrap();
    assert!(sent == received);
    log.wait(|state| state.2 > 0);
    assert_eq!(device.write(b"again"), 5);
}

#[test]
fn what_was_written_before_the_end_arrives() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let device = open(&unix_server(&path));
    let log = Log::attach(&*device, 1);
    let mut client = connect(&path);
    log.wait_events(&[CharEvent::Opened]);
    assert_eq!(device.write(&[7; 50_000]), 50_000);
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        client.read_to_end(&mut all).map(|_| all)
    });
    drop(device);
    assert!(reader.join().unwrap().unwrap() == [7; 50_000]);
}

#[test]
fn a_client_socket_connects_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let reconnect = Some(Duration::from_millis(5));
    let spec = SocketSpec { reconnect, ..SocketSpec::client(SocketAddress::Unix(path.clone())) };
    let notices = Mutex::new(Vec::new());
    let device = Chardev::open("uc", &ChardevSpec::Socket(spec), &|notice| {
        notices.lock().unwrap().push(notice.to_string());
    })
    .unwrap();
    assert_eq!(
        notices.into_inner().unwrap(),
        [format!(
            "Unable to connect character device uc: Failed to connect to '{}': \
             No such file or directory",
            path.display()
        )]
    );
    assert_eq!(device.filename(), format!("disconnected:unix:{}", path.display()));
    let log = Log::attach(&*device, 10);
    let listener = UnixListener::bind(&path).unwrap();
    for round in 1..=2 {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"x").unwrap();
        log.wait_bytes(&b"x".repeat(round));
    }
}

#[test]
fn a_server_may_wait_for_its_first_client() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let ChardevSpec::Socket(spec) = unix_server(&path) else { panic!("not a socket") };
    let spec = ChardevSpec::Socket(SocketSpec { wait: true, ..spec });
    let client = Mutex::new(None);
    let device = Chardev::open("c0", &spec, &|notice| {
        assert_eq!(
            notice.to_string(),
            format!("waiting for connection on: disconnected:unix:{},server=on", path.display())
        );
        *client.lock().unwrap() = Some(connect(&path));
    })
    .unwrap();
    assert!(device.is_connected());
}

#[test]
fn a_pty_tells_its_path_and_carries_bytes_unchanged() {
    let path = Mutex::new(String::new());
    let device = Chardev::open("p", &ChardevSpec::Pty, &|notice| {
        let Notice::Redirected { path: found, label } = notice else { panic!("{notice}") };
        assert_eq!(label, "p");
        path.lock().unwrap().clone_from(found);
    })
    .unwrap();
    let path = path.into_inner().unwrap();
    assert_eq!(device.filename(), format!("pty:{path}"));
    let log = Log::attach(&*device, 100);
    let mut terminal = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    log.wait_events(&[CharEvent::Opened]);
    terminal.write_all(b"\x03\r\n\x00").unwrap();
    log.wait_bytes(b"\x03\r\n\x00");
    assert_eq!(device.write(b"hi"), 2);
    let mut answer = [0; 2];
    terminal.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hi");
    drop(terminal);
    log.wait_events(&[CharEvent::Opened, CharEvent::Closed]);
}

#[test]
fn a_multiplexer_goes_round_with_ctrl_a() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let quits = Arc::new(AtomicUsize::new(0));
    let counter = quits.clone();
    let spec = ChardevSpec::Mux(Box::new(unix_server(&path)));
    let mux = Mux::open("m", &spec, &|_| {}, move || {
        counter.fetch_add(1, Ordering::SeqCst);
    })
    .unwrap();
    assert_eq!((mux.info().filename.as_str(), mux.base().label()), ("mux", "m-base"));
    let (serial, monitor) = (mux.port(), mux.port());
    let first = Log::attach(&*serial, 16);
    let second = Log::attach(&*monitor, 0);
    let mut client = connect(&path);
    client.write_all(b"ab\x01ccd\x01\x01\x01bx\x01c\x01\x01e\x01x").unwrap();
    first.wait_bytes(b"ab\x01e");
    // The monitor wants nothing yet; its input waits, and Ctrl-A works nevertheless.
    while quits.load(Ordering::SeqCst) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    second.wait_events(&[CharEvent::Opened, CharEvent::Break]);
    assert!(second.state.lock().unwrap().0.is_empty());
    second.room.store(16, Ordering::SeqCst);
    monitor.accept_input();
    second.wait_bytes(b"cd\x01x");
    assert_eq!(monitor.write(b"1"), 1);
    assert_eq!(serial.write(b"2"), 1);
    let mut answer = [0; 2];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"12");
    client.write_all(b"\x01h").unwrap();
    let mut help = [0; 10];
    client.read_exact(&mut help).unwrap();
    assert!(help.starts_with(b"\r\nC-a h"));
}
