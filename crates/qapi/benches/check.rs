//! How long a schema of the size of QEMU's takes: over 20,000 lines in 20 files.
//!
//! The goal is 30 ms for reading and checking it from the root file.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::io;
use std::path::{Path, PathBuf};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use qapi::{Files, check_files};

struct Memory(HashMap<PathBuf, Vec<u8>>);

impl Files for Memory {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.0.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// One module: documented enums, structs, unions, commands and events that use each other and
/// the module before.
fn module(number: usize) -> String {
    let mut text = String::new();
    for i in 0..20 {
        let id = format!("{number}x{i}");
        let other = format!("{}x{i}", number.saturating_sub(1));
        let _ = write!(
            text,
            "##\n# @Kind{id}:\n#\n# What a thing can be.\n#\n# @first: the first\n#\n# @second: the second\n#     with more to say\n#\n# Since: 1.0\n##\n{{ 'enum': 'Kind{id}', 'data': [ 'first', 'second' ] }}\n\n\
             ##\n# @Thing{id}:\n#\n# A thing with members.\n#\n# @name: its name\n#\n# @kind: its kind\n#\n# @size: its size\n#     in bytes\n#\n# Since: 1.0\n##\n{{ 'struct': 'Thing{id}',\n  'data': {{ 'name': 'str',\n            'kind': 'Kind{id}',\n            '*size': 'uint64' }} }}\n\n\
             ##\n# @Choice{id}:\n#\n# A choice.\n#\n# @tag: which\n##\n{{ 'union': 'Choice{id}',\n  'base': {{ 'tag': 'Kind{id}' }},\n  'discriminator': 'tag',\n  'data': {{ 'first': 'Thing{other}' }} }}\n\n"
        );
        let _ = write!(
            text,
            "##\n# @query-t{id}:\n#\n# Tells the things.\n#\n# @name: only the thing of this name\n#\n# Returns: the things\n#\n# Since: 1.0\n#\n# Example:\n#\n#     -> {{ \"execute\": \"query-t{id}\" }}\n#     <- {{ \"return\": [] }}\n##\n{{ 'command': 'query-t{id}',\n  'data': {{ '*name': 'str' }},\n  'returns': [ 'Thing{id}' ] }}\n"
        );
    }
    text
}

fn schema() -> (Memory, usize, usize) {
    let mut files = HashMap::new();
    let mut root = String::from("{ 'pragma': { 'doc-required': true } }\n");
    for number in 0..18 {
        let _ = writeln!(root, "{{ 'include': 'm{number}.json' }}");
        files.insert(PathBuf::from(format!("m{number}.json")), module(number).into_bytes());
    }
    files.insert(PathBuf::from("root.json"), root.into_bytes());
    let lines = files.values().map(|t| t.iter().filter(|b| **b == b'\n').count()).sum();
    let bytes = files.values().map(Vec::len).sum();
    (Memory(files), lines, bytes)
}

fn check(c: &mut Criterion) {
    let (files, lines, bytes) = schema();
    assert!(lines > 20_000, "{lines}");
    let outcome = check_files(&files, Path::new("root.json"));
    assert!(outcome.diagnostics.is_empty(), "{}", outcome.render(false));
    let mut group = c.benchmark_group("check");
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function(format!("{lines} lines"), |b| {
        b.iter(|| check_files(black_box(&files), Path::new("root.json")));
    });
    group.bench_function("introspect", |b| {
        b.iter(|| qapi::introspect::introspect(black_box(&outcome.schema), &|_| true));
    });
    group.finish();
}

criterion_group!(benches, check);
criterion_main!(benches);
