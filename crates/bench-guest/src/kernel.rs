//! Programs whose time is the kernel's: system calls, processes, page faults, files.

#![allow(
    unsafe_code,
    reason = "fork and fresh mappings, which the standard library keeps to itself"
)]

use crate::{Done, Iteration, Place, Program, simple};
use anyhow::{Context as _, Result, ensure};
use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::process::Command;
use std::time::Duration;

pub(crate) const PROGRAMS: &[Program] = &[
    Program { name: "syscall", about: "getppid", make: system_calls },
    Program { name: "pipe", about: "a byte to and fro between two processes", make: pipe },
    Program { name: "fork", about: "fork, exit and wait", make: forks },
    Program { name: "exec", about: "a static program started and awaited", make: exec },
    Program { name: "fault", about: "fresh pages touched", make: faults },
    Program { name: "files", about: "small files made, read, renamed, removed", make: files },
];

/// How long this process, and those that it started and awaited, have been running on a CPU.
pub(crate) fn cpu_time() -> Duration {
    let mut sum = Duration::ZERO;
    for who in [libc::RUSAGE_SELF, libc::RUSAGE_CHILDREN] {
        // SAFETY: all zeroes is a usage, which the kernel then overwrites.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(who, &raw mut usage);
            usage
        };
        for time in [usage.ru_utime, usage.ru_stime] {
            sum += Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1_000);
        }
    }
    sum
}

fn system_calls(_: &Place) -> Result<Iteration> {
    simple(|| {
        for _ in 0..2_000 {
            // SAFETY: getppid has no arguments and can't fail.
            unsafe { libc::syscall(libc::SYS_getppid) };
        }
        0
    })
}

/// The second process ends when the first does, which closes its pipe.
fn pipe(_: &Place) -> Result<Iteration> {
    let (question_reader, question) = io::pipe()?;
    let (answer, answer_writer) = io::pipe()?;
    // SAFETY: the child only reads, writes, closes and exits, whatever other threads hold.
    match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()).context("fork"),
        0 => {
            drop((question, answer));
            echo(question_reader, answer_writer)
        }
        _ => drop((question_reader, answer_writer)),
    }
    let (mut question, mut answer) = (question, answer);
    Ok(Box::new(move || {
        let mut byte = [1];
        for _ in 0..100 {
            question.write_all(&byte)?;
            answer.read_exact(&mut byte)?;
        }
        Ok(Done { units: 1, time: None, check: byte[0].into() })
    }))
}

/// Sends back, with one added, what comes, up to the end.
fn echo(mut questions: PipeReader, mut answers: PipeWriter) -> ! {
    let mut byte = [0];
    while questions.read_exact(&mut byte).is_ok() {
        byte[0] = byte[0].wrapping_add(1);
        if answers.write_all(&byte).is_err() {
            break;
        }
    }
    // SAFETY: ends this process at once.
    unsafe { libc::_exit(0) }
}

fn forks(_: &Place) -> Result<Iteration> {
    Ok(Box::new(|| {
        for number in 0..8 {
            // SAFETY: the child only exits.
            let child = unsafe { libc::fork() };
            ensure!(child != -1, "fork: {}", io::Error::last_os_error());
            if child == 0 {
                // SAFETY: ends the child at once.
                unsafe { libc::_exit(number) }
            }
            let mut status = 0;
            // SAFETY: the child is ours and `status` is a place for its status.
            ensure!(unsafe { libc::waitpid(child, &raw mut status, 0) } == child, "waitpid");
            ensure!(libc::WEXITSTATUS(status) == number, "the child's status is {status}");
        }
        Ok(Done { units: 1, time: None, check: 0 })
    }))
}

fn exec(_: &Place) -> Result<Iteration> {
    let program = std::env::current_exe()?;
    Ok(Box::new(move || {
        for _ in 0..3 {
            let status = Command::new(&program).arg("nothing").status()?;
            ensure!(status.success(), "the program ended with {status}");
        }
        Ok(Done { units: 1, time: None, check: 0 })
    }))
}

fn faults(_: &Place) -> Result<Iteration> {
    const SIZE: usize = 2 << 20;
    Ok(Box::new(|| {
        // SAFETY: a fresh mapping anywhere, which nothing else refers to; each page is written once
        // within its bounds before it goes.
        unsafe {
            let mapping = libc::mmap(
                std::ptr::null_mut(),
                SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            ensure!(mapping != libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
            // Pages of 4 KiB on every machine.
            libc::madvise(mapping, SIZE, libc::MADV_NOHUGEPAGE);
            let bytes = mapping.cast::<u8>();
            for page in (0..SIZE).step_by(4_096) {
                bytes.add(page).write_volatile(1);
            }
            libc::munmap(mapping, SIZE);
        }
        Ok(Done { units: 1, time: None, check: 0 })
    }))
}

fn files(place: &Place) -> Result<Iteration> {
    let folder = place.work.join(format!("bench-files-{}", std::process::id()));
    Ok(Box::new(move || {
        fs::create_dir(&folder)?;
        let mut read = 0;
        for index in 0..10 {
            let (name, other) =
                (folder.join(format!("a{index}")), folder.join(format!("b{index}")));
            File::create(&name)?.write_all(&[7; 3_000])?;
            fs::rename(&name, &other)?;
            read += fs::read(&other)?.len() as u64 + fs::metadata(&other)?.len();
            fs::remove_file(&other)?;
        }
        fs::remove_dir(&folder)?;
        Ok(Done { units: 1, time: None, check: read })
    }))
}
