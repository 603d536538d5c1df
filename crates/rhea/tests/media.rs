//! Drives and their media from outside: what the monitor says of them, and how they change. Each answer is
//! compared with the peer's, but for what only the peer can know (names of its nodes, numbers of its
//! devices). Needs no guest.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use testkit::VmBuilder;

fn binary() -> PathBuf {
    testkit::binary(env!("CARGO_BIN_EXE_rhea"))
}

/// Runs `body` on a stopped machine with two images, `disk` and `cd`, in its folder.
fn with_machine(
    binary: &Path,
    arguments: &[&str],
    body: impl FnOnce(&mut testkit::Vm) -> Result<()>,
) -> Result<()> {
    let builder = stopped(binary)?;
    let folder = builder.path("").display().to_string();
    for (name, len) in [("disk", 4 << 20), ("cd", 2 << 20), ("other", 1 << 20)] {
        std::fs::write(builder.path(name), vec![b'0'; len])?;
    }
    let arguments = arguments.iter().map(|text| text.replace("FOLDER/", &folder));
    let mut vm = builder.args(arguments).spawn()?;
    body(&mut vm)
}

/// A machine with all that is there by default, which does not start.
fn stopped(binary: &Path) -> Result<VmBuilder> {
    let builder = VmBuilder::bare(binary)?;
    let qmp = format!("unix:{},server=on,wait=off", builder.path("qmp.sock").display());
    Ok(builder.args(["-S", "-display", "none", "-accel", "tcg", "-serial", "null", "-qmp", &qmp]))
}

/// An answer without what differs between programs.
fn plain(mut value: Value, folder: &str) -> Value {
    fn walk(value: &mut Value, folder: &str) {
        match value {
            Value::Object(members) => {
                for key in ["node-name", "actual-size", "timestamp", "format-specific"] {
                    members.remove(key);
                }
                for key in ["qdev", "id"] {
                    let number = members.get_mut(key).filter(|path| {
                        path.as_str().is_some_and(|path| path.starts_with("/machine/unattached"))
                    });
                    if let Some(path) = number {
                        *path = json!("unattached");
                    }
                }
                members.values_mut().for_each(|value| walk(value, folder));
            }
            Value::Array(items) => items.iter_mut().for_each(|value| walk(value, folder)),
            Value::String(text) => *text = text.replace(folder, "FOLDER/"),
            _ => {}
        }
    }
    walk(&mut value, folder);
    value
}

/// What the program answers to `commands`, and the trays that moved.
fn answers(
    binary: &Path,
    arguments: &[&str],
    commands: &[(&str, Value)],
) -> Result<(Vec<Value>, Vec<Value>)> {
    let mut all = (Vec::new(), Vec::new());
    with_machine(binary, arguments, |vm| {
        let folder = vm.path("").display().to_string();
        let qmp = vm.qmp()?;
        for (command, given) in commands {
            let text = given.to_string().replace("FOLDER/", &folder);
            let request = format!("{{\"execute\": \"{command}\", \"arguments\": {text}}}\n");
            qmp.send(request.as_bytes())?;
            all.0.push(plain(qmp.reply()?, &folder));
        }
        let trays = qmp.take_events();
        let moved = trays.into_iter().filter(|event| event["event"] == "DEVICE_TRAY_MOVED");
        all.1 = moved.map(|event| plain(event, &folder)).collect();
        Ok(())
    })?;
    Ok(all)
}

/// Compares the answers of both programs.
fn compare(name: &str, arguments: &[&str], commands: &[(&str, Value)]) {
    let Some(peer) = testkit::peer() else {
        testkit::skip(name, "no qemu-system-x86_64");
        return;
    };
    testkit::run(name, || {
        let ours = answers(&binary(), arguments, commands)?;
        let theirs = answers(&peer, arguments, commands)?;
        for (((command, given), ours), theirs) in commands.iter().zip(&ours.0).zip(&theirs.0) {
            ensure!(ours == theirs, "{command} {given}\nours:   {ours}\ntheirs: {theirs}");
        }
        ensure!(ours.1 == theirs.1, "ours:   {:?}\ntheirs: {:?}", ours.1, theirs.1);
        Ok(())
    });
}

#[test]
fn drives_are_shown_as_by_the_peer() {
    let query = [("query-block", json!({}))];
    let name = "drives_are_shown_as_by_the_peer";
    compare(name, &[], &query);
    compare(name, &["-nodefaults"], &query);
    compare(
        name,
        &[
            "-drive",
            "file=FOLDER/disk,format=raw,if=ide",
            "-drive",
            "file=FOLDER/cd,format=raw,media=cdrom",
            "-drive",
            "file=FOLDER/other,format=raw,if=virtio,readonly=on",
            "-drive",
            "if=none,id=spare",
        ],
        &query,
    );
    compare(name, &["-device", "ide-cd,id=mycd,bus=ide.1", "-drive", "if=floppy"], &query);
}

#[test]
fn media_change_as_with_the_peer() {
    let change = |device: &str, file: &str| {
        let file = format!("FOLDER/{file}");
        ("blockdev-change-medium", json!({"device": device, "filename": file, "format": "raw"}))
    };
    let query = || ("query-block", json!({}));
    compare(
        "media_change_as_with_the_peer",
        &[
            "-drive",
            "file=FOLDER/disk,format=raw,if=ide",
            "-drive",
            "file=FOLDER/cd,format=raw,media=cdrom,index=2",
        ],
        &[
            ("eject", json!({"device": "ide0-hd0"})),
            ("eject", json!({"device": "nope"})),
            ("eject", json!({"id": "nope"})),
            ("eject", json!({})),
            ("eject", json!({"id": "a", "device": "b"})),
            change("ide0-hd0", "other"),
            change("ide1-cd0", "missing"),
            query(),
            change("ide1-cd0", "other"),
            query(),
            ("eject", json!({"device": "ide1-cd0"})),
            ("eject", json!({"device": "ide1-cd0"})),
            query(),
            ("blockdev-close-tray", json!({"device": "ide1-cd0"})),
            ("blockdev-open-tray", json!({"device": "ide1-cd0"})),
            ("blockdev-open-tray", json!({"device": "ide1-cd0"})),
            ("blockdev-close-tray", json!({"device": "floppy0"})),
            ("blockdev-remove-medium", json!({"id": "nope"})),
            change("floppy0", "other"),
            query(),
            ("eject", json!({"device": "floppy0"})),
            query(),
            ("eject", json!({"device": "sd0"})),
            (
                "blockdev-change-medium",
                json!({"device": "ide1-cd0", "filename": "FOLDER/cd", "format": "raw",
                       "read-only-mode": "read-write"}),
            ),
            query(),
            (
                "blockdev-change-medium",
                json!({"device": "ide1-cd0", "filename": "FOLDER/cd", "format": "foo"}),
            ),
        ],
    );
}

#[test]
fn disks_are_resized_as_by_the_peer() {
    let resize =
        |device: &str, size: i64| ("block_resize", json!({"device": device, "size": size}));
    let query = || ("query-block", json!({}));
    compare(
        "disks_are_resized_as_by_the_peer",
        &[
            "-drive",
            "file=FOLDER/disk,format=raw,if=none,id=scratch",
            "-device",
            "virtio-blk-pci,drive=scratch,id=vda",
            "-drive",
            "file=FOLDER/other,format=raw,if=ide",
        ],
        &[
            resize("scratch", 2 << 20),
            resize("scratch", 1000),
            query(),
            resize("ide0-hd0", 8 << 20),
            query(),
            resize("ide0-hd0", -1),
            resize("nope", 512),
            resize("vda", 512),
            resize("", 512),
            resize("floppy0", 512),
            resize("scratch", 1 << 62),
            ("block_resize", json!({"size": 512})),
            ("block_resize", json!({"node-name": "nope", "size": 512})),
            ("block_resize", json!({"device": "scratch", "node-name": "nope", "size": 512})),
            ("block_resize", json!({"device": "scratch"})),
        ],
    );
}

/// A snapshot only reads its image, so others may read it too, and none may write.
#[test]
fn a_snapshot_leaves_the_image_to_be_read_by_others() {
    testkit::run("a_snapshot_leaves_the_image_to_be_read_by_others", || {
        let arguments = ["-drive", "file=FOLDER/disk,format=raw,if=ide", "-snapshot"];
        with_machine(&binary(), &arguments, |vm| {
            let drives = vm.qmp()?.query("query-block")?;
            let inserted = &drives[0]["inserted"];
            ensure!(inserted["ro"] == false && inserted["backing_file_depth"] == 1, "{inserted}");
            let disk = vm.path("disk").display().to_string();
            ensure!(inserted["backing_file"] == disk.as_str(), "{inserted}");
            let drive = format!("file={disk},format=raw,if=ide,snapshot=on");
            let mut second = stopped(&binary())?.args(["-drive", &drive]).spawn()?;
            let status = second.qmp()?.query("query-status")?;
            ensure!(status["status"] == "prelaunch", "{status}");
            let drive = format!("file={disk},format=raw,if=ide");
            let mut third = stopped(&binary())?.args(["-drive", &drive]).spawn()?;
            ensure!(third.wait_exit()?.code() == Some(1), "a writer of an image that is read");
            ensure!(third.stderr().contains("lock"), "{}", third.stderr());
            Ok(())
        })
    });
}
