//! The dialect, byte by byte, against what QEMU 7.2 answered.
//!
//! `golden/dialect.jsonl` holds our inputs and QEMU's observed output. The ignored test
//! `record_from_qemu` writes it anew:
//! `cargo test -p qmp --test dialect -- --ignored record_from_qemu`.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use qmp::QmpError;
use qmp::events::EventBus;
use qmp::json::{JsonError, Limits, Parser};
use qmp::server::{CommandInfo, Service, SessionOptions, serve_stream};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};

/// Some bytes, so many times: keeps the large inputs short on paper.
type Piece = (Vec<u8>, usize);

struct Case {
    negotiated: bool,
    pieces: Vec<Piece>,
}

impl Case {
    fn bytes(&self) -> Vec<u8> {
        self.pieces.iter().flat_map(|(bytes, count)| bytes.repeat(*count)).collect()
    }

    fn to_json(&self) -> Value {
        let pieces: Vec<Value> =
            self.pieces.iter().map(|(bytes, count)| json!([latin1(bytes), count])).collect();
        json!({"negotiated": self.negotiated, "input": pieces})
    }
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|b| char::from(*b)).collect()
}

fn bytes_of(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}

fn case(bytes: &[u8]) -> Case {
    Case { negotiated: true, pieces: vec![(bytes.to_vec(), 1)] }
}

/// What ends a case: out of any string, to a fresh start, a request whose answer is known.
const RESET: &[u8] = b"\n\xff\n{\"execute\": \"nope\", \"id\": \"END\"}";
const NEGOTIATION: &[u8] = b"{\"execute\": \"qmp_capabilities\"}";

const HANDPICKED: &[&[u8]] = &[
    b"{foo}", b"[1,}", b"\"a\n", b"}", b"]", b":", b",", b"1", b"1.", b"1.5", b"01", b"-", b"-a", b"-0",
    b"-01", b"0e1", b"0.e", b"0.5e1", b"1e", b"1e+", b"1e-", b"1e5", b"1E5", b"1e5.0", b"1.5.5", b"--1",
    b"1-", b"\"\\x\"", b"\"\\u12\"", b"\"\\u12g4\"", b"\"\\ud800\"", b"\"\\udc00\"", b"\"\\ud800\\u0041\"",
    b"\"\\ud800x\"", b"\"\\ud800\\n\"", b"\"\\ud800\\uzzzz\"", b"\"\\ud800\\ud800\"", b"\"\\ud83f\\udfff\"",
    b"\"\\ud83d\\ude00\"", b"\"\\u 123\"", b"\"\\u0x41\"", b"\"\\u+041\"", b"\"\\uffff\"", b"\"\\ufdd0\"",
    b"\"\\u\xc3\xa9\xc3\xa9\xc3\xa9\"", b"\"\\u\xc3\xa9\xc3\"", b"\"\\u\"", b"\"\\", b"'\\u12'", b"\"\xc3\"",
    b"\"\xc0\x80\"", b"\"\xc0\x81\"", b"\"\xed\xa0\x80\"", b"\"\xef\xbf\xbe\"", b"\"\xf4\x90\x80\x80\"",
    b"\"\xf8\x88\x80\x80\x80\"", b"\"\xe0\x80\x80\"", b"\"\x80\"", b"\"ok\xc3(end\"", b"\"a\xc3(\n",
    b"\"\xed\xa0\x80x\n", b"\"\xf8\x88\x80\x80\x80x\n", b"\"\xfc\x84\x80\x80\x80\x80x\n",
    b"\"\xc3\xa9\xc3\xc3\n", b"\"\xe2\x82\n", b"\"\xf0\x9f\x98\n", b"\"\x80\x80\n", b"\"\xc0\xaf\n",
    b"\"\xf4\x90\x80\x80\n", b"\"\xc0\x80x\n", b"\"\xf0\x9f\x98\x80\n", b"{\"a\" 1}", b"{\"a\":}", b"{1:2}",
    b"{\"a\":1,}", b"{\"a\":1 \"b\"}", b"{\"a\":1]", b"[1 2]", b"[,]", b"[1,]", b"{,}", b"{\"a\",}", b"{:}",
    b"{\"a\":1,\"a\":2}", b"{\"a\":{\"b\":1,\"b\":2},\"a\":1}", b"nul", b"nulL", b"True", b"%d", b"%%", b"#",
    b"\xef\xbb\xbf{}", b"abc def", b"+1", b".5", b"Infinity", b"NaN", b"-Infinity", b"{{}:1}", b"{[]:1}",
    b"{[1 2]:1}", b"{null:1}", b"{true:1}", b"{tru:1}", b"{\"\\x\":1}", b"[{]}", b"[}", b"{]", b"{]}", b"[[}]]",
    b"{\"x\":tru}", b"{\"x\":1.e}", b"{ \"a\": }}", b"\t1\x0b2", b"1\x002", b"{\"execute\":\"query-name\"\x01}",
    b"{\"execute\":\"query-name\"\xff{\"execute\":\"query-name\"}", b"{\"a\n\":1}{\"b\":2}", b"{\"a\":\"\\\n\"}",
    b"'a'b'c'", b"{\"id\":7,\"execute\":\"nope\",", b"truefalse", b"true false", b"\xc3\xa9",
    b"{\"x\":\xc3\xa9}", b"/*c*/{}", b"//c\n{}", b"#!\n{}", b"''", b"\"\"", b"'\"'", b"\"'\"", b"'\\''", b"'\\\"'",
    b"{\"\":1}", b"{'execute':'no\\'pe','id':'a\"b'}", b"{\"execute\":\"nope\\u00e9\\u0000x\"}",
    b"{\"execute\":\"nope\",\"zoo\\u00e9\":1}", b"{\"\\u0000\":1}", b"{\"execute\":\"\"}",
    // Identities of all kinds, and how they are written.
    b"{\"execute\":\"nope\",\"id\":1.5}", b"{\"execute\":\"nope\",\"id\":0.1}",
    b"{\"execute\":\"nope\",\"id\":1e300}", b"{\"execute\":\"nope\",\"id\":1e-7}",
    b"{\"execute\":\"nope\",\"id\":1e-400}", b"{\"execute\":\"nope\",\"id\":-0}",
    b"{\"execute\":\"nope\",\"id\":-0.0}", b"{\"execute\":\"nope\",\"id\":1e2}",
    b"{\"execute\":\"nope\",\"id\":123456789012345678901234567890}",
    b"{\"execute\":\"nope\",\"id\":18446744073709551615}", b"{\"execute\":\"nope\",\"id\":18446744073709551616}",
    b"{\"execute\":\"nope\",\"id\":9223372036854775808}", b"{\"execute\":\"nope\",\"id\":-9223372036854775808}",
    b"{\"execute\":\"nope\",\"id\":-9223372036854775809}", b"{\"execute\":\"nope\",\"id\":5e-324}",
    b"{\"execute\":\"nope\",\"id\":1.7976931348623157e308}", b"{\"execute\":\"nope\",\"id\":0.0001}",
    b"{\"execute\":\"nope\",\"id\":0.00001}", b"{\"execute\":\"nope\",\"id\":12345678901234567.0}",
    b"{\"execute\":\"nope\",\"id\":123456789012345678.0}", b"{\"execute\":\"nope\",\"id\":null}",
    b"{\"execute\":\"nope\",\"id\":true}", b"{\"execute\":\"nope\",\"id\":[]}", b"{\"execute\":\"nope\",\"id\":{}}",
    b"{\"execute\":\"nope\",\"id\":[[1],{\"b\":[1,{}]}]}",
    b"{\"execute\":\"nope\",\"id\":\"\\u0000\\b\\f\\n\\r\\t\\/\\\"\\\\\\u007f\\u0080\\u00e9\\ud83d\\ude00\\u001f\"}",
    b"{\"execute\":\"nope\",\"id\":\"\xc3\xa9\xf0\x9f\x98\x80\x7f\xc0\x80\xef\xbf\xbd\"}",
    // Structure.
    b"{\"execute\":\"nope\",\"exec-oob\":\"nope\"}", b"{\"exec-oob\":\"nope\",\"id\":1}", b"{\"execute\":1}",
    b"{}", b"{\"id\":\"x\"}", b"{\"execute\":\"nope\",\"arguments\":[]}", b"{\"execute\":\"nope\",\"arguments\":null}",
    b"{\"execute\":\"qmp_capabilities\",\"id\":3}", b"{\"execute\":\"query-name\",\"id\":[]}",
    b"{\"execute\":\"query-name\",\"arguments\":{},\"id\":\"a\"}{\"execute\":\"query-name\",\"id\":\"b\"}",
    b"{\"execute\":\"query-name\"}{\"execute\":\"query-name\"}\r\n{\"execute\":\"query-name\"}{}",
    b"{\"EXECUTE\":\"query-name\"}", b"[{\"execute\":\"query-name\"}]", b"\"query-name\"",
];

const BEFORE_NEGOTIATION: &[&[u8]] = &[
    b"{\"execute\":\"nope\"}", b"{\"execute\":\"query-name\",\"id\":1}", b"{\"exec-oob\":\"qmp_capabilities\"}", b"[]",
    b"{bar}", b"{\"execute\":1}", b"{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[]}}",
    b"{\"execute\":\"qmp_capabilities\",\"arguments\":{\"x\":[]}}",
    b"{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":1}}",
    b"{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":{}}}",
    b"{\"execute\":\"qmp_capabilities\",\"arguments\":[]}",
    b"{\"execute\":\"qmp_capabilities\",\"id\":[0]}{\"execute\":\"qmp_capabilities\"}{\"execute\":\"query-name\"}",
    b"{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\",\"oob\"]}}{\"exec-oob\":\"query-name\",\"id\":3}",
    b"{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\"]}}{\"exec-oob\":\"nope\"}{\"exec-oob\":1}",
    b"{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\"]}}{\"execute\":\"query-name\",\"exec-oob\":\"x\"}",
    b"{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\"]}}{\"exec-oob\":\"qmp_capabilities\"}",
    b"{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\"]}}{\"exec-oob\":\"query-name\",\"arguments\":[]}",
    b"{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\"]}}{\"foo\":1,\"exec-oob\":\"nope\"}",
];

fn large_cases() -> Vec<Case> {
    let large = |pieces: &[(&[u8], usize)]| Case {
        negotiated: true,
        pieces: pieces.iter().map(|(bytes, count)| (bytes.to_vec(), *count)).collect(),
    };
    vec![
        large(&[(b"[", 1024), (b"]", 1024)]),
        large(&[(b"[", 1025)]),
        large(&[(b"[", 1026), (b"]", 1)]),
        large(&[(b"{\"a\":", 1023), (b"[]", 1), (b"}", 1023)]),
        large(&[(b"{\"a\":", 1024), (b"[]", 1)]),
        large(&[(b"{\"execute\":\"nope\",\"id\":", 1), (b"[", 1023), (b"]", 1023), (b"}", 1)]),
        large(&[(b"{\"execute\":\"nope\",\"id\":", 1), (b"[", 1024)]),
        large(&[(b" \t\r\n", 10_000)]),
    ]
}

/// Every input, the same list on each run.
fn corpus() -> Vec<Case> {
    let mut cases: Vec<Case> = HANDPICKED.iter().map(|bytes| case(bytes)).collect();
    cases.extend(BEFORE_NEGOTIATION.iter().map(|bytes| Case { negotiated: false, ..case(bytes) }));
    for byte in 0..=255_u8 {
        cases.push(case(&[byte]));
        for (before, after) in [
            (&b"\"a"[..], &b"b\""[..]),
            (b"\"\\", b"\""),
            (b"1", b" "),
            (b"{\"a\":", b"}"),
            (b"x", b"{}"),
        ] {
            cases.push(case(&[before, &[byte], after].concat()));
        }
    }
    let sample = b"{\"execute\": 'nope', \"id\": [1.5e3, true, {\"k\": \"\\u00e9\"}]}";
    for at in 0..sample.len() {
        cases.push(case(&sample[..at]));
        cases.push(case(&[&sample[..at], &sample[at + 1..]].concat()));
        for other in b"{]:,\"'x0 \n" {
            let mut mutated = sample.to_vec();
            mutated[at] = *other;
            cases.push(case(&mutated));
        }
    }
    cases.extend(large_cases());
    cases
}

/// Knows what the corpus asks of QEMU's machine `none`.
struct Bare;

impl Service for Bare {
    fn version(&self) -> Value {
        json!({})
    }

    fn command(&self, name: &str) -> Option<CommandInfo> {
        (name == "query-name").then_some(CommandInfo { allow_oob: false })
    }

    async fn execute(&self, _: &str, _: Map<String, Value>) -> Result<Value, QmpError> {
        Ok(json!({}))
    }
}

async fn our_answer(case: &Case) -> String {
    let (client, server) = tokio::io::duplex(1 << 16);
    let bus = EventBus::new();
    let serve = serve_stream(Arc::new(Bare), bus, server, SessionOptions::default());
    let converse = async {
        let (read, mut write) = tokio::io::split(client);
        let mut lines = tokio::io::BufReader::new(read);
        let mut line = String::new();
        lines.read_line(&mut line).await.unwrap();
        let send = async {
            if case.negotiated {
                write.write_all(NEGOTIATION).await.unwrap();
            }
            for (bytes, count) in &case.pieces {
                write.write_all(&bytes.repeat(*count)).await.unwrap();
            }
            write.write_all(RESET).await.unwrap();
            write
        };
        let receive = async {
            if case.negotiated {
                line.clear();
                lines.read_line(&mut line).await.unwrap();
                assert_eq!(line, "{\"return\": {}}\r\n");
            }
            let mut answer = String::new();
            loop {
                line.clear();
                lines.read_line(&mut line).await.unwrap();
                if line.contains("\"END\"") || line.is_empty() {
                    return answer;
                }
                answer.push_str(&line);
            }
        };
        tokio::join!(send, receive).1
    };
    tokio::select! {
        answer = converse => answer,
        () = serve => panic!("the session ended"),
    }
}

fn golden_path() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/dialect.jsonl")
}

fn golden() -> Vec<(Case, String)> {
    let text = std::fs::read_to_string(golden_path()).unwrap();
    text.lines()
        .map(|line| {
            let record: Value = serde_json::from_str(line).unwrap();
            let pieces = record["input"].as_array().unwrap().iter().map(|piece| {
                let count = usize::try_from(piece[1].as_u64().unwrap()).unwrap();
                (bytes_of(piece[0].as_str().unwrap()), count)
            });
            let negotiated = record["negotiated"].as_bool().unwrap();
            let case = Case { negotiated, pieces: pieces.collect() };
            (case, record["qemu"].as_str().unwrap().to_owned())
        })
        .collect()
}

#[tokio::test]
async fn answers_what_qemu_answers() {
    let golden = golden();
    assert_eq!(
        golden.len(),
        corpus().len(),
        "the golden file is older than the corpus: record anew"
    );
    let mut different = String::new();
    for (case, qemu) in &golden {
        let ours = our_answer(case).await;
        if ours != *qemu {
            writeln!(different, "{}\n  QEMU {qemu:?}\n  Rhea {ours:?}", case.to_json()).unwrap();
        }
    }
    assert!(different.is_empty(), "{different}");
}

fn parse(chunks: &[&[u8]]) -> Vec<Result<Value, JsonError>> {
    let mut parser = Parser::new();
    let mut results = Vec::new();
    for chunk in chunks {
        let mut rest = *chunk;
        while let Some(result) = parser.next(&mut rest) {
            results.push(result);
        }
        assert!(rest.is_empty());
    }
    results
}

#[test]
fn where_the_stream_is_cut_makes_no_difference() {
    for case in corpus() {
        let bytes = [&case.bytes()[..], RESET].concat();
        if bytes.len() > 4096 {
            continue;
        }
        let whole = parse(&[&bytes]);
        for at in 0..bytes.len() {
            assert_eq!(parse(&[&bytes[..at], &bytes[at..]]), whole, "{:?} at {at}", latin1(&bytes));
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(parse(&single), whole, "{:?}", latin1(&bytes));
    }
}

#[test]
fn infinity_becomes_the_largest_double() {
    // QEMU echoes it as `inf`, which no client can read.
    let value = parse(&[b"[1e400, -1e400]"]).remove(0).unwrap();
    assert_eq!(value, json!([f64::MAX, f64::MIN]));
}

/// Not in the golden file: QEMU reads byte by byte and takes minutes for these.
#[tokio::test]
async fn large_tokens_and_many_of_them_are_refused() {
    let answer = async |pieces: &[(&[u8], usize)]| {
        let pieces = pieces.iter().map(|(bytes, count)| (bytes.to_vec(), *count)).collect();
        our_answer(&Case { negotiated: true, pieces }).await
    };
    let limit = 64 << 20;
    let text = answer(&[(b"\"", 1), (b"x", limit - 3), (b"\"", 1)]).await;
    assert!(text.contains("QMP input must be a JSON object"), "{text}");
    let text = answer(&[(b"\"", 1), (b"x", limit + 5), (b"\"", 1)]).await;
    assert!(text.contains("JSON token size limit exceeded"), "{text}");
    let halves: &[(&[u8], usize)] =
        &[(b"['", 1), (b"x", limit / 2), (b"','", 1), (b"y", limit / 2), (b"']", 1)];
    assert!(answer(halves).await.contains("JSON token size limit exceeded"));
    let text = answer(&[(b"[", 1), (b"1,", (1 << 20) - 1), (b"2]", 1)]).await;
    assert!(text.contains("JSON token count limit exceeded"), "{text}");
    let text = answer(&[(b"[", 1), (b"1,", (1 << 20) - 2), (b"2]", 1)]).await;
    assert!(text.contains("QMP input must be a JSON object"), "{text}");
}

#[test]
fn limits_are_the_callers() {
    let mut parser = Parser::with_limits(Limits { token_bytes: 8, tokens: 4, nesting: 2 });
    let mut outcomes = |mut input: &[u8]| {
        let mut errors = Vec::new();
        while let Some(result) = parser.next(&mut input) {
            errors.push(result.map_err(|error| error.to_string()));
        }
        errors
    };
    assert_eq!(outcomes(b"[[]]"), [Ok(json!([[]]))]);
    assert_eq!(outcomes(b"[[["), [Err("JSON nesting depth limit exceeded".to_owned())]);
    assert_eq!(outcomes(b"[1,2]")[0], Err("JSON token count limit exceeded".to_owned()));
    assert_eq!(outcomes(b"'xxxxxxx'")[0], Err("JSON token size limit exceeded".to_owned()));
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_survived(bytes: Vec<u8>, cut: proptest::sample::Index) {
        let at = cut.index(bytes.len() + 1);
        proptest::prop_assert_eq!(parse(&[&bytes]), parse(&[&bytes[..at], &bytes[at..]]));
    }

    #[test]
    fn near_json_is_survived(text in "[\\[\\]{}:,\"'\\\\0-9eu.ntrfals\\x00-\\x1f\u{e9} -]{0,80}") {
        let bytes = text.as_bytes();
        let singles: Vec<&[u8]> = bytes.chunks(1).collect();
        proptest::prop_assert_eq!(parse(&[bytes]), parse(&singles));
    }

    #[test]
    fn what_is_written_is_read_back(text: String, number: f64, integer: i64) {
        let text: String = text.chars().filter(|c| {
            let code = u32::from(*c);
            code & 0xFFFE != 0xFFFE && !(0xFDD0..=0xFDEF).contains(&code)
        }).collect();
        let value = json!({"s": text, "n": number, "i": integer, "l": [null, true, {}]});
        let mut compact = Vec::new();
        qmp::json::write_compact(&value, &mut compact);
        proptest::prop_assert!(compact.iter().all(|b| (0x20..0x7F).contains(b)));
        let read = parse(&[&compact]).remove(0).unwrap();
        // An integral double is written without a point, as QEMU does.
        proptest::prop_assert_eq!(read["n"].as_f64(), value["n"].as_f64());
        proptest::prop_assert_eq!(&read["s"], &value["s"]);
        proptest::prop_assert_eq!(&read["i"], &value["i"]);
        proptest::prop_assert_eq!(&read["l"], &value["l"]);
        let mut pretty = Vec::new();
        qmp::json::write_pretty(&value, &mut pretty);
        proptest::prop_assert_eq!(parse(&[&pretty]).remove(0).unwrap(), read);
    }
}

/// Sends the corpus to the QEMU installed here and writes its answers down.
#[test]
#[ignore = "needs qemu-system-x86_64 7.2; rewrites the golden file"]
fn record_from_qemu() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("qmp");
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-S", "-nodefaults", "-display", "none", "-machine", "none", "-qmp"])
        .arg(format!("unix:{},server=on,wait=off", socket.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !socket.exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut text = String::new();
    for case in corpus() {
        eprintln!("{}", case.to_json());
        let mut record = case.to_json();
        record["qemu"] = qemus_answer(&socket, &case).into();
        writeln!(text, "{record}").unwrap();
    }
    qemu.kill().unwrap();
    qemu.wait().unwrap();
    std::fs::write(golden_path(), text).unwrap();
}

fn qemus_answer(socket: &Path, case: &Case) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(600))).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    if case.negotiated {
        stream.write_all(NEGOTIATION).unwrap();
        line.clear();
        lines.read_line(&mut line).unwrap();
        assert_eq!(line, "{\"return\": {}}\r\n");
    }
    let bytes = case.bytes();
    let sender = std::thread::spawn(move || {
        stream.write_all(&bytes).unwrap();
        stream.write_all(RESET).unwrap();
    });
    let mut answer = String::new();
    loop {
        line.clear();
        lines.read_line(&mut line).unwrap_or_else(|e| panic!("{e}: {} {answer}", case.to_json()));
        if line.contains("\"END\"") || line.is_empty() {
            break;
        }
        answer.push_str(&line);
    }
    sender.join().unwrap();
    answer
}
