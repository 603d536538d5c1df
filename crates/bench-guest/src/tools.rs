//! Debian's programs. All are started by the dynamic linker that came with them, with the libraries
//! that came with them, so that every machine runs the same code.
//!
//! `--tools` has `bin/` with the programs and `lib/` with `ld-linux-x86-64.so.2` and the libraries.
//! Programs choose among their own routines by CPUID: a CPU that says that it has AVX-512 runs other
//! code than one that doesn't. That is as users meet it, and part of the comparison.

use crate::random::fnv;
use crate::{Done, Iteration, Place, Program, source};
use anyhow::{Context as _, Result, bail};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

pub(crate) const PROGRAMS: &[Program] = &[
    Program {
        name: "gcc",
        about: "gcc -O2 of 5,000 lines of C: compiler and assembler",
        make: gcc,
    },
    Program { name: "gzip", about: "gzip -6 of 256 KiB of text", make: gzip },
    Program { name: "gunzip", about: "the same unpacked", make: gunzip },
    Program { name: "zstd", about: "zstd -5 of 1 MiB of text", make: zstd },
    Program { name: "sha256sum", about: "SHA-256 of 1 MiB, in plain C", make: sha256sum },
    Program { name: "aes", about: "openssl speed: AES-256-GCM, 16 KiB", make: aes },
    Program { name: "sha512", about: "openssl speed: SHA-512, 16 KiB", make: sha512 },
    Program { name: "rsa", about: "openssl speed: RSA-2048 signatures", make: rsa },
];

/// The tools, and the folder with their files.
struct Tools {
    tools: PathBuf,
    work: PathBuf,
}

impl Tools {
    /// Makes a folder for this process, with `input`.
    fn new(place: &Place, input: &str, contents: &str) -> Result<Self> {
        let work = place.work.join(format!("bench-tools-{}", std::process::id()));
        fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
        fs::write(work.join(input), contents)?;
        let tools = fs::canonicalize(&place.tools)
            .with_context(|| format!("no tools in {}", place.tools.display()))?;
        Ok(Self { tools, work })
    }

    fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let library = self.tools.join("lib");
        let mut command = Command::new(library.join("ld-linux-x86-64.so.2"));
        command
            .arg("--library-path")
            .arg(&library)
            .arg(self.tools.join("bin").join(name))
            .args(arguments)
            .current_dir(&self.work)
            .env("LC_ALL", "C")
            .env("OPENSSL_CONF", "/dev/null")
            .stdin(Stdio::null());
        command
    }

    /// Runs a tool with its output in the file `output`.
    fn run(&self, name: &str, arguments: &[&str], output: &str) -> Result<()> {
        let file = File::create(self.work.join(output))?;
        let ended = self.command(name, arguments).stdout(file).output()?;
        if !ended.status.success() {
            let told = String::from_utf8_lossy(&ended.stderr).replace('\n', "; ");
            bail!("{name} ended with {}: {told}", ended.status);
        }
        Ok(())
    }

    /// What is in a file, as one number.
    fn check(&self, file: &str) -> Result<u64> {
        Ok(fnv(&fs::read(self.work.join(file))?))
    }
}

impl Drop for Tools {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.work);
    }
}

/// An iteration is one run of a tool, which writes a file.
fn one_run(tools: Tools, name: &'static str, arguments: &'static [&'static str]) -> Iteration {
    Box::new(move || {
        tools.run(name, arguments, "output")?;
        Ok(Done { units: 1, time: None, check: tools.check("output")? })
    })
}

fn gcc(place: &Place) -> Result<Iteration> {
    let tools = Tools::new(place, "program.c", &source::program(5_000))?;
    Ok(Box::new(move || {
        // What gcc's driver would start; the source needs no preprocessing.
        tools.run(
            "cc1",
            &["-quiet", "-fpreprocessed", "-O2", "program.c", "-o", "program.s"],
            "messages",
        )?;
        tools.run("as", &["program.s", "-o", "program.o"], "messages")?;
        Ok(Done { units: 1, time: None, check: tools.check("program.o")? })
    }))
}

fn gzip(place: &Place) -> Result<Iteration> {
    let tools = Tools::new(place, "text", &source::text(256 << 10))?;
    Ok(one_run(tools, "gzip", &["-6", "-n", "-c", "text"]))
}

fn gunzip(place: &Place) -> Result<Iteration> {
    let tools = Tools::new(place, "text", &source::text(1 << 20))?;
    tools.run("gzip", &["-6", "-n", "-c", "text"], "text.gz")?;
    Ok(one_run(tools, "gzip", &["-d", "-c", "text.gz"]))
}

fn zstd(place: &Place) -> Result<Iteration> {
    let tools = Tools::new(place, "text", &source::text(1 << 20))?;
    Ok(one_run(tools, "zstd", &["-5", "-q", "--single-thread", "-c", "text"]))
}

fn sha256sum(place: &Place) -> Result<Iteration> {
    let tools = Tools::new(place, "text", &source::text(1 << 20))?;
    Ok(one_run(tools, "sha256sum", &["text"]))
}

fn aes(place: &Place) -> Result<Iteration> {
    speed(place, &["-bytes", "16384", "-evp", "aes-256-gcm"], "+R:")
}

fn sha512(place: &Place) -> Result<Iteration> {
    speed(place, &["-bytes", "16384", "-evp", "sha512"], "+R:")
}

fn rsa(place: &Place) -> Result<Iteration> {
    speed(place, &["rsa2048"], "+R1:")
}

/// `openssl speed`, which counts and measures by itself; for programs it prints
/// `+R:COUNT:NAME:SECONDS`.
fn speed(place: &Place, what: &'static [&'static str], mark: &'static str) -> Result<Iteration> {
    let tools = Tools::new(place, "nothing", "")?;
    // Whole seconds are what it takes.
    let seconds = (place.seconds.ceil() as u64).max(1).to_string();
    Ok(Box::new(move || {
        let output = tools
            .command("openssl", &["speed", "-elapsed", "-mr", "-seconds", &seconds])
            .args(what)
            .output()?;
        let told =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        let mut fields = told
            .lines()
            .find_map(|line| line.strip_prefix(mark))
            .with_context(|| format!("openssl speed has no {mark} in what it says: {told}"))?
            .split(':');
        let units = fields.next().unwrap_or_default().parse().context("openssl's count")?;
        let time = fields.next_back().unwrap_or_default().trim().parse().context("its time")?;
        Ok(Done { units, time: Some(Duration::from_secs_f64(time)), check: 0 })
    }))
}
