//! Any bytes as a schema: everything that can be done with it, none of which may panic.
//!
//! `cargo +nightly fuzz run --fuzz-dir fuzz/qapi check`; the files of `schema/` are good seeds.
#![no_main]

use std::io;
use std::path::Path;

use libfuzzer_sys::fuzz_target;

/// The bytes up to a zero are the root, the rest is the file `sub.json`.
struct Input<'a>(&'a [u8]);

impl qapi::Files for Input<'_> {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut parts = self.0.splitn(2, |b| *b == 0);
        let (root, sub) = (parts.next(), parts.next());
        let part = match path.to_str() {
            Some("root.json") => root,
            Some("sub.json") => sub,
            _ => None,
        };
        part.map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fuzz_target!(|data: &[u8]| {
    let outcome = qapi::check_files(&Input(data), Path::new("root.json"));
    let _ = outcome.render(true);
    if outcome.is_ok() {
        let _ = qapi::dump::dump(&outcome.schema);
        let _ = qapi::introspect::introspect(&outcome.schema, &|_| true);
        let _ = qapi::doc::pages(&outcome.schema);
    }
});
