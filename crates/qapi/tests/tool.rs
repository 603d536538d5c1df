//! The binary `qapi` as its users run it: exit status, output, and what a finding looks like.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn qapi(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_qapi")).args(args).output().expect("it runs")
}

fn schema() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../schema/rhea.json").display().to_string()
}

#[test]
fn check_tells_valid_from_invalid() {
    let ok = qapi(&["check", &schema()]);
    assert_eq!(ok.status.code(), Some(0));
    assert!(ok.stdout.is_empty() && ok.stderr.is_empty());
    let missing = qapi(&["check", "does-not-exist.json"]);
    assert_eq!(missing.status.code(), Some(1));
    let text = String::from_utf8(missing.stderr).unwrap();
    assert!(text.starts_with("error: can't read schema file 'does-not-exist.json': "), "{text}");
}

#[test]
fn findings_show_the_source() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.json");
    std::fs::write(
        &file,
        "# A schema with a mistake\n{ 'struct': 'Disk',\n  'data': { 'size': 'itn' } }\n",
    )
    .unwrap();
    let out = qapi(&["check", file.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(1));
    let text = String::from_utf8(out.stderr).unwrap().replace(file.to_str().unwrap(), "bad.json");
    assert_eq!(
        text,
        "\
error: member 'size' uses the unknown type 'itn'
 --> bad.json:3:21
  |
3 |   'data': { 'size': 'itn' } }
  |                     ^^^^^
  |
  = help: did you mean 'int'?

1 error, 0 warnings
"
    );
}

#[test]
fn wrong_usage_is_told_from_a_wrong_schema() {
    for args in [
        &[][..],
        &["chek", "x.json"],
        &["check"],
        &["check", "a.json", "b.json"],
        &["check", "-o", "x", "a.json"],
        &["doc", "x.json"],
        &["doc", "x.json", "-o"],
        &["introspect", "-D"],
        &["dump", "--pretty", "x.json"],
    ] {
        let out = qapi(args);
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        assert!(String::from_utf8(out.stderr).unwrap().contains("usage: qapi check FILE"));
    }
    let help = qapi(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8(help.stdout).unwrap().starts_with("usage:"));
}

#[test]
fn dump_and_introspect_print_json() {
    let out = qapi(&["dump", &schema()]);
    assert_eq!(out.status.code(), Some(0));
    let dump: Value = serde_json::from_slice(&out.stdout).unwrap();
    let definitions = dump["definitions"].as_array().unwrap();
    let stop = definitions.iter().find(|d| d["name"] == "stop").unwrap();
    assert_eq!((&stop["kind"], &stop["module"]), (&"command".into(), &"misc".into()));
    let out = qapi(&["introspect", &schema()]);
    let introspection: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(introspection.as_array().unwrap().iter().any(|e| e["name"] == "query-status"));
}

#[test]
fn conditions_apply_to_introspection_with_symbols() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("if.json");
    let text = "{ 'command': 'always' }\n{ 'command': 'linux', 'if': 'CONFIG_LINUX' }\n\
        { 'command': 'other', 'if': { 'not': 'CONFIG_LINUX' } }\n";
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    for (args, expected) in [
        (&[][..], &["always", "linux", "other"][..]),
        (&["-D", "CONFIG_LINUX"], &["always", "linux"]),
        (&["-D", "CONFIG_WIN32"], &["always", "other"]),
    ] {
        let out = qapi(&[&["introspect", file], args].concat());
        let json: Vec<Value> = serde_json::from_slice(&out.stdout).unwrap();
        let commands: Vec<&str> = json
            .iter()
            .filter(|e| e["meta-type"] == "command")
            .map(|e| e["name"].as_str().unwrap())
            .collect();
        assert_eq!(commands, expected);
    }
}

#[test]
fn doc_writes_a_page_a_module() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("new/reference");
    let out = qapi(&["doc", &schema(), "-o", target.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
    let page = std::fs::read_to_string(target.join("run-state.md")).unwrap();
    assert!(page.contains("## query-status"));
    let index = std::fs::read_to_string(target.join("index.md")).unwrap();
    assert!(index.contains("[`query-status`](run-state.md#query-status)"));
    // A file where the directory should be.
    let taken = dir.path().join("taken");
    std::fs::write(&taken, "").unwrap();
    let out = qapi(&["doc", &schema(), "-o", taken.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8(out.stderr).unwrap().contains("can't write into"));
}
