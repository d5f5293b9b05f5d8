//! The server under a supervisor that speaks systemd's protocols: readiness, signs of life, a socket that is handed over.

#![cfg(all(feature = "server", feature = "builtin", unix))]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

const CALOTYPE: &str = env!("CARGO_BIN_EXE_calotype");

/// Ends with the test.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server to which `first` is handed as its first socket, which says that it has `count`.
fn with_sockets(first: OwnedFd, count: u32, more: &[&str]) -> Command {
    let mut command = Command::new("sh");
    let script =
        format!("exec 3<&0 4<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS={count} exec \"$0\" serve \"$@\"");
    command.args(["-c", &script, CALOTYPE]).args(more).stdin(first);
    command
}

fn healthz(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    write!(stream, "GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

fn refused(output: &Output, expected: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains(expected), "expected {expected}, got {text}");
}

#[test]
fn readiness_and_signs_of_life_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let next = || {
        let mut message = [0; 4096];
        let length = socket.recv(&mut message).expect("it tells how it is");
        String::from_utf8(message[..length].to_vec()).unwrap()
    };
    let child = Command::new(CALOTYPE)
        .args(["serve", "--address", "127.0.0.1:0"])
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "400000")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut served = Served(child);
    let first = next();
    let mut lines = first.lines();
    assert_eq!(lines.next(), Some("READY=1"));
    let address = lines.next().and_then(|status| status.strip_prefix("STATUS=serving at http://"));
    assert!(healthz(address.unwrap_or(&first)).starts_with("HTTP/1.1 200"));
    for _ in 0..3 {
        assert_eq!(next().trim_end(), "WATCHDOG=1");
    }
    let id = served.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    let mut last = next();
    while last.trim_end() == "WATCHDOG=1" {
        last = next();
    }
    assert_eq!(last.trim_end(), "STOPPING=1");
    assert_eq!(served.0.wait().unwrap().code(), Some(0));
}

#[test]
fn an_open_socket_is_served_in_place_of_the_address() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // The address would be refused: other machines reach it, and there is no token.
    let child = with_sockets(listener.into(), 1, &["--address", "0.0.0.0:0"]).stdout(Stdio::null()).spawn();
    let _served = Served(child.unwrap());
    assert!(healthz(&address).starts_with("HTTP/1.1 200"));
}

#[test]
fn sockets_that_cannot_be_served_are_refused() {
    let listen = |address| OwnedFd::from(TcpListener::bind(address).unwrap());
    let two = with_sockets(listen("127.0.0.1:0"), 2, &[]).output().unwrap();
    refused(&two, "LISTEN_FDS: expected one socket, got 2");
    let open = with_sockets(listen("0.0.0.0:0"), 1, &[]).output().unwrap();
    refused(&open, "address: expected a token, because other machines can reach the address, got 0.0.0.0:");
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let datagrams = with_sockets(datagrams.into(), 1, &[]).output().unwrap();
    refused(&datagrams, "LISTEN_FDS: expected a listening TCP socket");
}
