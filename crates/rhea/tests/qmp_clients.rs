//! Monitors as clients meet them: every way to have one, several at a time, and clients that
//! behave badly.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;
use testkit::{Vm, VmBuilder};

fn binary() -> PathBuf {
    testkit::binary(env!("CARGO_BIN_EXE_rhea"))
}

fn paused() -> Result<VmBuilder> {
    Ok(VmBuilder::new(&binary())?.args(["-S"]))
}

/// A command line without the monitor and the serial console that [`VmBuilder::new`] gives.
fn without_monitor() -> Result<VmBuilder> {
    Ok(VmBuilder::bare(&binary())?.args(["-nodefaults", "-display", "none", "-accel", "tcg", "-S"]))
}

fn is_qemu(vm: &mut Vm) -> Result<bool> {
    let version = vm.qmp()?.query("query-version")?;
    Ok(version["package"].as_str().is_some_and(|package| package.contains("Debian")))
}

#[test]
fn monitor_on_tcp() {
    testkit::run("monitor_on_tcp", || {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let tcp = format!("tcp:127.0.0.1:{port},server=on,wait=off");
        let mut vm = paused()?.args(["-qmp", &tcp]).spawn()?;
        vm.qmp()?;
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        ensure!(line.starts_with("{\"QMP\": {") && line.ends_with("}\r\n"), "{line:?}");
        stream.write_all(b"{\"execute\":\"qmp_capabilities\",\"id\":1}")?;
        line.clear();
        reader.read_line(&mut line)?;
        ensure!(line == "{\"return\": {}, \"id\": 1}\r\n", "{line:?}");
        Ok(())
    });
}

#[test]
fn monitor_on_standard_input_and_output() {
    testkit::run("monitor_on_standard_input_and_output", || {
        let mut vm = without_monitor()?.args(["-qmp", "stdio"]).spawn()?;
        vm.serial.wait_for("\"capabilities\": [\"oob\"]}}\r\n")?;
        vm.serial.send("{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"quit\"}\n")?;
        vm.serial.wait_for("{\"return\": {}}\r\n")?;
        vm.serial.wait_for("\"host-qmp-quit\"")?;
        ensure!(vm.wait_exit()?.success());
        Ok(())
    });
}

/// A pretty monitor answers on several lines; `-mon` takes any character device.
#[test]
fn monitor_on_a_character_device() {
    testkit::run("monitor_on_a_character_device", || {
        let builder = without_monitor()?;
        let path = |name: &str| builder.path(name).display().to_string();
        let plain = format!("socket,id=plain,path={},server=on,wait=off", path("qmp.sock"));
        let pretty = format!("socket,id=pretty,path={},server=on,wait=off", path("pretty.sock"));
        let mut vm = builder
            .args(["-chardev", &plain, "-mon", "chardev=plain,mode=control"])
            .args(["-chardev", &pretty, "-mon", "chardev=pretty,mode=control,pretty=on"])
            .spawn()?;
        ensure!(vm.qmp()?.query("query-status")?["status"] == "prelaunch");
        let stream = vm.connect("pretty.sock")?;
        let mut pretty = testkit::Serial::new(stream.try_clone()?, stream);
        pretty.wait_for("{\r\n    \"QMP\": {\r\n        \"version\": {\r\n")?;
        pretty.wait_for("\r\n}\r\n")?;
        pretty.send("{\"execute\":\"qmp_capabilities\",\"id\":5}")?;
        let reply = pretty.wait_for("\r\n}\r\n")? + "}";
        let reply: Value = serde_json::from_str(&reply)?;
        ensure!(reply == json!({"return": {}, "id": 5}), "{reply}");
        Ok(())
    });
}

/// Beyond QEMU: each client of one socket has a session of its own, and events reach all of them.
#[test]
fn many_clients_on_one_socket() {
    testkit::run("many_clients_on_one_socket", || {
        let mut vm = paused()?.spawn()?;
        if is_qemu(&mut vm)? {
            testkit::skip("many_clients_on_one_socket", "QEMU serves one client a socket");
            return Ok(());
        }
        let mut clients = Vec::new();
        for _ in 0..16 {
            clients.push(vm.connect_raw("qmp.sock")?);
        }
        // Each negotiates for itself.
        let error = clients[0].query("query-status").unwrap_err();
        let error = error.downcast_ref::<testkit::QmpError>().context("an error answer")?;
        ensure!(error.class == "CommandNotFound", "{error}");
        let mut clients =
            clients.into_iter().map(testkit::Qmp::negotiated).collect::<Result<Vec<_>>>()?;
        for client in &mut clients {
            ensure!(client.query("query-status")?["status"] == "prelaunch");
        }
        clients[3].query("cont")?;
        for client in &mut clients {
            client.event("RESUME")?;
        }
        drop(clients);
        vm.qmp()?.event("RESUME")?;
        ensure!(vm.qmp()?.query("query-status")?["status"] == "running");
        Ok(())
    });
}

fn resident_kib(vm: &Vm) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", vm.pid()))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("a number")?.parse()?)
}

/// A client that asks for much and reads nothing costs bounded memory and nobody else an answer.
#[test]
fn client_that_never_reads_harms_nobody() {
    testkit::run("client_that_never_reads_harms_nobody", || {
        let builder = paused()?;
        let other = format!("unix:{},server=on,wait=off", builder.path("other.sock").display());
        let mut vm = builder.args(["-qmp", &other]).spawn()?;
        vm.qmp()?.query("query-qmp-schema")?;
        let before = resident_kib(&vm)?;
        let mut deaf = vm.connect("other.sock")?;
        deaf.write_all(b"{\"execute\":\"qmp_capabilities\"}\n")?;
        deaf.set_write_timeout(Some(Duration::from_millis(300)))?;
        // Until nothing more is taken, or enough was: each answer is over 100 KiB.
        let requests = b"{\"execute\":\"query-qmp-schema\"}\n".repeat(1000);
        for _ in 0..100 {
            match deaf.write_all(&requests) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("the deaf client"),
            }
            ensure!(vm.qmp()?.query("query-status")?["status"] == "prelaunch");
        }
        for command in ["cont", "stop", "query-status", "query-commands"] {
            vm.qmp()?.query(command)?;
        }
        let grown = resident_kib(&vm)?.saturating_sub(before);
        ensure!(grown < 64 << 10, "{grown} KiB for a client that does not read");
        // It is served on when it reads at last.
        let mut buffer = vec![0; 1 << 20];
        deaf.set_read_timeout(Some(testkit::deadline()))?;
        for _ in 0..10 {
            ensure!(deaf.read(&mut buffer)? > 0, "the session was closed");
        }
        drop(deaf);
        vm.qmp()?.query("query-status")?;
        Ok(())
    });
}

/// A token past 64 MiB is an error, not a matter of memory; the session goes on.
#[test]
fn endless_token_is_refused() {
    testkit::run("endless_token_is_refused", || {
        let mut vm = paused()?.spawn()?;
        if is_qemu(&mut vm)? {
            testkit::skip("endless_token_is_refused", "QEMU reads by the byte: it takes minutes");
            return Ok(());
        }
        let qmp = vm.qmp()?;
        qmp.send(b"{\"execute\": \"")?;
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..65 {
            qmp.send(&piece)?;
        }
        qmp.send(b"\"}\n")?;
        let reply = qmp.reply()?;
        ensure!(reply["error"]["class"] == "GenericError", "{reply}");
        let text = reply["error"]["desc"].as_str().unwrap_or_default();
        ensure!(text.contains("limit exceeded"), "{reply}");
        // What was left of the token may give more errors; then there are answers again.
        qmp.send(b"\n{\"execute\":\"query-name\",\"id\":\"after\"}\n")?;
        while qmp.reply()?["id"] != "after" {}
        Ok(())
    });
}

/// A client that leaves in the middle of a request leaves nothing behind.
#[test]
fn next_client_starts_afresh() {
    testkit::run("next_client_starts_afresh", || {
        let mut vm = paused()?.spawn()?;
        for cut in
            ["{\"execute\":\"qmp_capabilities\"}{\"execute\":\"query-", "[[[[", "\"\\u00", ""]
        {
            let mut stream = vm.connect("qmp.sock")?;
            stream.write_all(cut.as_bytes())?;
            drop(stream);
            let mut next = vm.connect_raw("qmp.sock")?.negotiated()?;
            ensure!(next.query("query-name")? == json!({}));
        }
        Ok(())
    });
}
