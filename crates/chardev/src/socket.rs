//! Stream sockets as QEMU's options describe them: Unix and TCP, server and client, or passed by number.
//!
//! Everything here is synchronous and knows no character device: [`crate::Chardev`] runs it on its
//! thread, and the QMP server hands the listeners to its own loop.
//!
//! A server's Unix socket replaces a socket file that a dead process left, but never a file of another
//! kind, and is removed when the listener is dropped, unless someone has replaced it meanwhile.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::{ChardevError, Notice};

/// Where a socket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketAddress {
    /// A path in the file system.
    Unix(PathBuf),
    /// A TCP host and port.
    Inet(InetAddress),
    /// A descriptor that the parent process passed: a listening socket for a server, a connected one for
    /// a client.
    Fd(RawFd),
}

/// A TCP host and port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InetAddress {
    /// Name or number; empty: every address of this host.
    pub host: String,
    /// Port number.
    pub port: u16,
    /// Servers try the ports from `port` to this one.
    pub to: Option<u16>,
    /// Only, or not, by IPv4.
    pub ipv4: Option<bool>,
    /// Only, or not, by IPv6.
    pub ipv6: Option<bool>,
}

impl InetAddress {
    fn resolve(&self, passive: bool) -> Result<Vec<SocketAddr>, ChardevError> {
        let host = match (self.host.as_str(), passive, self.ipv6) {
            ("", true, Some(true)) => "::",
            ("", true, _) => "0.0.0.0",
            ("", false, _) => "localhost",
            (host, _, _) => host,
        };
        let fail = |reason: String| ChardevError::Resolve { address: self.to_string(), reason };
        let found = (host, self.port).to_socket_addrs().map_err(|error| {
            let text = error.to_string();
            fail(text.rsplit(": ").next().unwrap_or(&text).to_owned())
        })?;
        // Either family asked for excludes the other one, unless both are.
        let v4 = self.ipv4.unwrap_or(self.ipv6 != Some(true));
        let v6 = self.ipv6.unwrap_or(self.ipv4 != Some(true));
        let usable: Vec<_> =
            found.filter(|address| if address.is_ipv4() { v4 } else { v6 }).collect();
        if usable.is_empty() {
            return Err(fail("Address family for hostname not supported".to_owned()));
        }
        Ok(usable)
    }
}

impl fmt::Display for InetAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The parsed options of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketSpec {
    /// Where it is.
    pub address: SocketAddress,
    /// Whether it listens (`server=on`).
    pub server: bool,
    /// Whether a server holds up the start until the first client is there (`wait=on`).
    pub wait: bool,
    /// How long a client waits before it tries again (`reconnect=`); `None`: it doesn't.
    pub reconnect: Option<Duration>,
    /// Whether TCP sends small writes at once (`nodelay`).
    pub nodelay: bool,
}

impl SocketSpec {
    /// A server that doesn't wait for its first client.
    pub fn server(address: SocketAddress) -> SocketSpec {
        SocketSpec { address, server: true, wait: false, reconnect: None, nodelay: false }
    }

    /// A client that doesn't try again.
    pub fn client(address: SocketAddress) -> SocketSpec {
        SocketSpec { address, server: false, wait: false, reconnect: None, nodelay: false }
    }

    /// Refuses options that contradict each other.
    pub fn check(&self) -> Result<(), ChardevError> {
        if self.server && self.reconnect.is_some() {
            let text = "'reconnect' option is incompatible with socket in server listen mode";
            return Err(ChardevError::Option(text.to_owned()));
        }
        if !self.server && self.wait {
            let text = "'wait' option is incompatible with socket in client connect mode";
            return Err(ChardevError::Option(text.to_owned()));
        }
        Ok(())
    }

    /// What `query-chardev` calls the socket while nobody is connected.
    pub fn disconnected(&self) -> String {
        let server = if self.server { ",server=on" } else { "" };
        match &self.address {
            SocketAddress::Unix(path) => format!("disconnected:unix:{}{server}", path.display()),
            SocketAddress::Inet(inet) => format!("disconnected:tcp:{inet}{server}"),
            SocketAddress::Fd(fd) => format!("disconnected:fd:{fd}{server}"),
        }
    }
}

/// A listening socket without its options, for event loops that want to own one.
#[derive(Debug)]
pub enum Listening {
    /// By path.
    Unix(UnixListener),
    /// By host and port.
    Tcp(TcpListener),
}

/// The socket file of a Unix server, known by its inode.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            // Nothing is left to do if someone was faster.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

/// A listening socket.
#[derive(Debug)]
pub struct SocketListener {
    listening: Listening,
    file: Option<SocketFile>,
    /// The options, with the port that was found.
    spec: SocketSpec,
}

impl SocketListener {
    /// Listens as `spec` says. The listener is non-blocking.
    pub fn bind(spec: &SocketSpec) -> Result<SocketListener, ChardevError> {
        spec.check()?;
        let mut spec = spec.clone();
        let mut file = None;
        let listening = match &mut spec.address {
            SocketAddress::Unix(path) => {
                let (listener, bound) = bind_unix(path)?;
                file = Some(bound);
                Listening::Unix(listener)
            }
            SocketAddress::Inet(inet) => {
                let listener = bind_tcp(inet)?;
                if let Ok(local) = listener.local_addr() {
                    inet.port = local.port();
                    inet.host = local.ip().to_string();
                }
                Listening::Tcp(listener)
            }
            SocketAddress::Fd(fd) => adopt_listener(*fd)?,
        };
        let listener = SocketListener { listening, file, spec };
        listener.set_nonblocking(true).map_err(|source| ChardevError::System {
            what: "Failed to make the socket non-blocking",
            source,
        })?;
        Ok(listener)
    }

    fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        match &self.listening {
            Listening::Unix(listener) => listener.set_nonblocking(on),
            Listening::Tcp(listener) => listener.set_nonblocking(on),
        }
    }

    /// The next client, blocking when asked to (`WouldBlock` when there is none and it isn't).
    pub fn accept(&self, block: bool) -> io::Result<SocketStream> {
        if block {
            self.set_nonblocking(false)?;
        }
        let accepted = match &self.listening {
            Listening::Unix(listener) => listener.accept().map(|(s, _)| SocketStream::Unix(s)),
            Listening::Tcp(listener) => listener.accept().map(|(s, _)| SocketStream::Tcp(s)),
        };
        if block {
            self.set_nonblocking(true)?;
        }
        let stream = accepted?;
        if self.spec.nodelay {
            stream.set_nodelay()?;
        }
        Ok(stream)
    }

    /// With `wait=on`, blocks until the first client is there, and says so before.
    pub fn wait_if_asked(
        &self,
        notify: &dyn Fn(&Notice),
    ) -> Result<Option<SocketStream>, ChardevError> {
        if !self.spec.wait {
            return Ok(None);
        }
        notify(&Notice::Waiting { filename: self.spec.disconnected() });
        let accepted = self.accept(true);
        let what = "Failed to accept a connection";
        accepted.map(Some).map_err(|source| ChardevError::System { what, source })
    }

    /// The same socket once more. It shares the non-blocking mode with this one.
    pub fn try_clone(&self) -> io::Result<Listening> {
        Ok(match &self.listening {
            Listening::Unix(listener) => Listening::Unix(listener.try_clone()?),
            Listening::Tcp(listener) => Listening::Tcp(listener.try_clone()?),
        })
    }

    /// The options, with the address that was bound in place of the one asked for.
    pub fn spec(&self) -> &SocketSpec {
        &self.spec
    }

    /// What `query-chardev` calls a connection that this listener accepted.
    pub fn connected(&self, stream: &SocketStream) -> String {
        match (&self.spec.address, stream) {
            (SocketAddress::Unix(path), _) => format!("unix:{},server=on", path.display()),
            (_, stream) => stream.describe(true),
        }
    }

    /// The path of the socket file, if there is one.
    pub fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| file.path.as_path())
    }
}

impl AsFd for SocketListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.listening {
            Listening::Unix(listener) => listener.as_fd(),
            Listening::Tcp(listener) => listener.as_fd(),
        }
    }
}

fn bind_unix(path: &Path) -> Result<(UnixListener, SocketFile), ChardevError> {
    check_unix_path(path)?;
    let fail = |source| ChardevError::Bind { address: path.display().to_string(), source };
    if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        std::fs::remove_file(path).map_err(fail)?;
    }
    let listener = UnixListener::bind(path).map_err(fail)?;
    let identity = identity(path).map_err(fail)?;
    Ok((listener, SocketFile { path: path.to_owned(), identity }))
}

fn check_unix_path(path: &Path) -> Result<(), ChardevError> {
    if path.as_os_str().len() >= 108 {
        return Err(ChardevError::PathTooLong { path: path.display().to_string() });
    }
    Ok(())
}

fn bind_tcp(inet: &InetAddress) -> Result<TcpListener, ChardevError> {
    let last = inet.to.unwrap_or(inet.port);
    if last < inet.port {
        let text = format!("port range 'to={last}' ends before port {}", inet.port);
        return Err(ChardevError::Option(text));
    }
    let mut error = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for port in inet.port..=last {
        for mut address in inet.resolve(true)? {
            address.set_port(port);
            match TcpListener::bind(address) {
                Ok(listener) => return Ok(listener),
                Err(refused) => error = refused,
            }
        }
        if error.kind() != io::ErrorKind::AddrInUse {
            break;
        }
    }
    Err(match inet.to {
        Some(_) => ChardevError::NoPort { source: error },
        None => ChardevError::Bind { address: inet.to_string(), source: error },
    })
}

/// Whether the descriptor is a stream socket that listens, and its family.
fn inspect(fd: &OwnedFd, number: RawFd) -> Result<(AddressFamily, bool), ChardevError> {
    let refuse = |problem: &str| ChardevError::Fd { fd: number, problem: problem.to_owned() };
    match sockopt::socket_type(fd) {
        Ok(SocketType::STREAM) => {}
        Ok(_) => return Err(refuse("is not a stream socket")),
        Err(_) => return Err(refuse("is not a socket")),
    }
    let family = sockopt::socket_domain(fd).map_err(|_| refuse("has no address family"))?;
    let listens = sockopt::socket_acceptconn(fd).map_err(|_| refuse("is not a socket"))?;
    match family {
        AddressFamily::UNIX | AddressFamily::INET | AddressFamily::INET6 => Ok((family, listens)),
        _ => Err(refuse("is neither a Unix nor a TCP socket")),
    }
}

fn adopt_listener(number: RawFd) -> Result<Listening, ChardevError> {
    let fd = crate::fd::duplicate(number)?;
    match inspect(&fd, number)? {
        (_, false) => {
            Err(ChardevError::Fd { fd: number, problem: "is not a listening socket".to_owned() })
        }
        (AddressFamily::UNIX, true) => Ok(Listening::Unix(fd.into())),
        (_, true) => Ok(Listening::Tcp(fd.into())),
    }
}

fn adopt_stream(number: RawFd) -> Result<SocketStream, ChardevError> {
    let fd = crate::fd::duplicate(number)?;
    match inspect(&fd, number)? {
        (_, true) => Err(ChardevError::Fd {
            fd: number,
            problem: "is a listening socket: say server=on".to_owned(),
        }),
        (AddressFamily::UNIX, false) => Ok(SocketStream::Unix(fd.into())),
        (_, false) => Ok(SocketStream::Tcp(fd.into())),
    }
}

/// A connected socket.
#[derive(Debug)]
pub enum SocketStream {
    /// By path.
    Unix(UnixStream),
    /// By host and port.
    Tcp(TcpStream),
}

impl SocketStream {
    /// Connects as a client, blocking until it is refused or accepted.
    pub fn connect(spec: &SocketSpec) -> Result<SocketStream, ChardevError> {
        spec.check()?;
        let stream = match &spec.address {
            SocketAddress::Unix(path) => {
                check_unix_path(path)?;
                let fail =
                    |source| ChardevError::Connect { address: path.display().to_string(), source };
                SocketStream::Unix(UnixStream::connect(path).map_err(fail)?)
            }
            SocketAddress::Inet(inet) => {
                let addresses = inet.resolve(false)?;
                let fail = |source| ChardevError::Connect { address: inet.to_string(), source };
                SocketStream::Tcp(TcpStream::connect(&addresses[..]).map_err(fail)?)
            }
            SocketAddress::Fd(fd) => adopt_stream(*fd)?,
        };
        if spec.nodelay {
            stream.set_nodelay().map_err(|source| ChardevError::System {
                what: "Failed to set TCP_NODELAY",
                source,
            })?;
        }
        Ok(stream)
    }

    fn set_nodelay(&self) -> io::Result<()> {
        match self {
            SocketStream::Unix(_) => Ok(()),
            SocketStream::Tcp(stream) => stream.set_nodelay(true),
        }
    }

    /// Switches between blocking and not.
    pub fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        match self {
            SocketStream::Unix(stream) => stream.set_nonblocking(on),
            SocketStream::Tcp(stream) => stream.set_nonblocking(on),
        }
    }

    /// What `query-chardev` calls the connection.
    pub fn describe(&self, server: bool) -> String {
        let server = if server { ",server=on" } else { "" };
        match self {
            SocketStream::Unix(stream) => {
                let local = stream.local_addr().ok();
                let path = local.as_ref().and_then(|address| address.as_pathname());
                format!("unix:{}{server}", path.map(Path::to_string_lossy).unwrap_or_default())
            }
            SocketStream::Tcp(stream) => {
                let end = |address: io::Result<SocketAddr>| match address {
                    Ok(address) => bracketed(address),
                    Err(_) => "?".to_owned(),
                };
                let (local, peer) = (end(stream.local_addr()), end(stream.peer_addr()));
                format!("tcp:{local}{server} <-> {peer}")
            }
        }
    }

    /// Ends both directions, whoever else holds the descriptor.
    pub fn shutdown(&self) {
        // Fails only when the peer has gone already.
        let _ = match self {
            SocketStream::Unix(stream) => stream.shutdown(std::net::Shutdown::Both),
            SocketStream::Tcp(stream) => stream.shutdown(std::net::Shutdown::Both),
        };
    }
}

fn bracketed(address: SocketAddr) -> String {
    match address.ip() {
        IpAddr::V4(ip) => format!("{ip}:{}", address.port()),
        IpAddr::V6(ip) => format!("[{ip}]:{}", address.port()),
    }
}

impl AsFd for SocketStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            SocketStream::Unix(stream) => stream.as_fd(),
            SocketStream::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl Read for &SocketStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            SocketStream::Unix(stream) => (&*stream).read(buffer),
            SocketStream::Tcp(stream) => (&*stream).read(buffer),
        }
    }
}

impl Write for &SocketStream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            SocketStream::Unix(stream) => (&*stream).write(buffer),
            SocketStream::Tcp(stream) => (&*stream).write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket that was opened as its options say, and its first connection if there is one already.
#[derive(Debug)]
pub enum Endpoint {
    /// A listening socket.
    Listener(SocketListener, Option<SocketStream>),
    /// A socket that connects, again and again if the options say so.
    Connector(SocketSpec, Option<SocketStream>),
}

impl Endpoint {
    /// Opens what `spec` describes. A server with `wait=on` blocks until its first client is there;
    /// `notify` gets what the user should know meanwhile. `label` names the character device or monitor
    /// in it.
    pub fn open(
        label: &str,
        spec: &SocketSpec,
        notify: &dyn Fn(&Notice),
    ) -> Result<Endpoint, ChardevError> {
        if spec.server {
            let listener = SocketListener::bind(spec)?;
            let first = listener.wait_if_asked(notify)?;
            return Ok(Endpoint::Listener(listener, first));
        }
        match SocketStream::connect(spec) {
            Ok(stream) => Ok(Endpoint::Connector(spec.clone(), Some(stream))),
            Err(error) if spec.reconnect.is_some() => {
                let reason = error.to_string();
                notify(&Notice::Unconnected { label: label.to_owned(), reason });
                Ok(Endpoint::Connector(spec.clone(), None))
            }
            Err(error) => Err(error),
        }
    }

    /// The options, with the address that was bound in place of the one asked for.
    pub fn spec(&self) -> &SocketSpec {
        match self {
            Endpoint::Listener(listener, _) => listener.spec(),
            Endpoint::Connector(spec, _) => spec,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    fn unix(path: &Path) -> SocketSpec {
        SocketSpec::server(SocketAddress::Unix(path.to_owned()))
    }

    fn loopback(port: u16, to: Option<u16>) -> SocketSpec {
        let host = "127.0.0.1".to_owned();
        let inet = InetAddress { host, port, to, ..InetAddress::default() };
        SocketSpec::server(SocketAddress::Inet(inet))
    }

    #[test]
    fn a_stale_socket_is_replaced_and_removed_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let listener = SocketListener::bind(&unix(&path)).unwrap();
        assert_eq!(
            listener.spec().disconnected(),
            format!("disconnected:unix:{},server=on", path.display())
        );
        let client =
            SocketStream::connect(&SocketSpec::client(SocketAddress::Unix(path.clone()))).unwrap();
        let served = listener.accept(false).unwrap();
        assert_eq!(listener.connected(&served), format!("unix:{},server=on", path.display()));
        assert_eq!(client.describe(false), "unix:");
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_that_replaced_ours_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = SocketListener::bind(&unix(&path)).unwrap();
        let second = SocketListener::bind(&unix(&path)).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn files_of_other_kinds_are_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        let error = SocketListener::bind(&unix(&path)).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("Failed to bind socket to {}: Address already in use", path.display())
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "data");
    }

    #[test]
    fn a_port_range_finds_the_next_free_port() {
        let first = SocketListener::bind(&loopback(0, None)).unwrap();
        let SocketAddress::Inet(bound) = &first.spec().address else { panic!("not TCP") };
        assert_ne!(bound.port, 0);
        let taken = SocketListener::bind(&loopback(bound.port, None)).unwrap_err().to_string();
        assert!(taken.ends_with("Address already in use"), "{taken}");
        let to = bound.port.saturating_add(20);
        let second = SocketListener::bind(&loopback(bound.port, Some(to))).unwrap();
        let SocketAddress::Inet(found) = &second.spec().address else { panic!("not TCP") };
        assert!(found.port > bound.port && found.port <= to);
    }

    #[test]
    fn errors_name_object_and_reason() {
        let error = |spec: &SocketSpec| SocketListener::bind(spec).unwrap_err().to_string();
        assert_eq!(
            error(&unix(Path::new("/nonexistent/x"))),
            "Failed to bind socket to /nonexistent/x: No such file or directory"
        );
        assert!(error(&unix(Path::new(&"x".repeat(108)))).contains("is too long"));
        let refused = SocketSpec { reconnect: Some(Duration::from_secs(1)), ..loopback(0, None) };
        assert!(error(&refused).starts_with("'reconnect' option is incompatible"));
        let client = SocketSpec::client(SocketAddress::Unix("/nonexistent/x".into()));
        assert_eq!(
            SocketStream::connect(&client).unwrap_err().to_string(),
            "Failed to connect to '/nonexistent/x': No such file or directory"
        );
    }

    #[test]
    fn a_passed_descriptor_must_be_of_the_right_kind() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let listener =
            SocketListener::bind(&SocketSpec::server(SocketAddress::Fd(tcp.as_raw_fd()))).unwrap();
        drop(tcp);
        let client = TcpStream::connect(address).unwrap();
        let served = listener.accept(true).unwrap();
        assert_eq!(
            listener.connected(&served),
            format!("tcp:{address},server=on <-> {}", client.local_addr().unwrap())
        );
        let wrong = SocketSpec::server(SocketAddress::Fd(client.as_raw_fd()));
        assert!(SocketListener::bind(&wrong).unwrap_err().to_string().contains("listening"));
        let file = tempfile::tempfile().unwrap();
        let wrong = SocketSpec::server(SocketAddress::Fd(file.as_raw_fd()));
        assert!(SocketListener::bind(&wrong).unwrap_err().to_string().contains("is not a socket"));
    }
}
