//! Debian's programs as people use them: what they compute in a guest with the default processor is what they
//! compute on the host, with the C library's, OpenSSL's and numpy's choice of instructions for x86-64-v3.
//!
//! The guest comes from `cargo xtask guests storage-linux workloads workloads-initramfs`; without it these
//! tests are skipped, loudly. The disk with many languages comes from `cargo xtask guests languages.img`.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use testkit::{Guest, Vm, VmBuilder};

/// Where the guest has the programs.
const IN_GUEST: &str = "/workloads";

/// Boots the guest to where it takes commands, or skips the test.
fn with_guest(name: &str, body: impl FnOnce(&mut Vm) -> Result<()>) {
    let images = testkit::workspace().join("guest/images");
    let guest =
        Guest { kernel: images.join("storage-linux"), initrd: images.join("workloads-initramfs") };
    if !guest.kernel.is_file() || !guest.initrd.is_file() {
        let reason =
            "no guest: run `cargo xtask guests storage-linux workloads workloads-initramfs`";
        return testkit::skip(name, reason);
    }
    testkit::run(name, || {
        let builder = VmBuilder::new(&testkit::binary(env!("CARGO_BIN_EXE_rhea")))?;
        let builder = builder.linux(&guest, "commands").args(["-m", "1024", "-smp", "2"]);
        let mut vm = builder.spawn()?;
        vm.serial.wait_for("rhea-guest: commands\r\n")?;
        body(&mut vm)
    });
}

/// What `command` prints in the guest; it has to end well.
fn output(vm: &mut Vm, command: &str) -> Result<String> {
    vm.serial.send(&format!("{command}\n"))?;
    let said = vm.serial.wait_for("rhea-guest: status ")?;
    vm.serial.wait_for("0\r\n")?;
    let said = said.replace('\r', "");
    Ok(said.strip_suffix("rhea-guest: status ").unwrap_or(&said).to_owned())
}

#[test]
fn programs_compute_what_they_compute_on_the_host() {
    if !is_x86_64_v3() {
        let name = "programs_compute_what_they_compute_on_the_host";
        return testkit::skip(name, "the host's processor is not of level x86-64-v3");
    }
    with_guest("programs_compute_what_they_compute_on_the_host", |vm| {
        let folder = testkit::workspace().join("guest/images/workloads");
        let host = Command::new("sh").arg(folder.join("results")).arg(&folder).output()?;
        let told = String::from_utf8_lossy(&host.stderr);
        ensure!(host.status.success(), "on the host: {}\n{told}", host.status);
        let host = String::from_utf8(host.stdout)?;
        ensure!(host.contains("x86-64-v3 (supported, searched)"), "{host}");
        ensure!(host.lines().count() > 35, "{host}");
        let guest = output(vm, &format!("sh {IN_GUEST}/results {IN_GUEST}"))?;
        let differs = |(host, guest): &(&str, &str)| host != guest;
        let difference = host.lines().zip(guest.lines()).find(differs);
        ensure!(difference.is_none(), "host and guest differ: {difference:?}");
        ensure!(host.lines().count() == guest.lines().count(), "{guest}");
        Ok(())
    });
}

#[cfg(target_arch = "x86_64")]
fn is_x86_64_v3() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

#[cfg(not(target_arch = "x86_64"))]
fn is_x86_64_v3() -> bool {
    false
}

/// stress-ng compares what it computes with what it knows.
#[test]
fn stress_ng_finds_no_mistake() {
    with_guest("stress_ng_finds_no_mistake", |vm| {
        let stress = format!(
            "{IN_GUEST}/lib/ld-linux-x86-64.so.2 --library-path {IN_GUEST}/lib {IN_GUEST}/bin/stress-ng \
             --temp-path /tmp --verify 2>&1"
        );
        let others = "--vecmath 1 --vecmath-ops 200 --vecwide 1 --vecwide-ops 20 --fp 1 --fp-ops 20 \
             --matrix 1 --matrix-ops 50 --crypt 1 --crypt-ops 20 --atomic 1 --atomic-ops 20 \
             --bsearch 1 --bsearch-ops 20 --qsort 1 --qsort-ops 2 --zlib 1 --zlib-ops 4";
        for what in ["--cpu 0 --cpu-method all --cpu-ops 200", others] {
            let said = output(vm, &format!("{stress} {what}"))?;
            ensure!(said.contains("successful run completed"), "{said}");
            ensure!(!said.contains("fail:") && !said.contains("error:"), "{said}");
        }
        Ok(())
    });
}

/// What the compilers and virtual machines of many languages make, they make the same of as on the host where
/// the disk was made.
#[test]
#[ignore = "minutes, and a disk of 2 GB"]
fn languages_compute_what_they_compute_on_the_host() {
    testkit::run("languages_compute_what_they_compute_on_the_host", || {
        let disk = testkit::workspace().join("guest/images/languages.img");
        ensure!(disk.is_file(), "no disk: run `cargo xtask guests languages.img`");
        let guest = Guest::find().context("no guest: run `cargo xtask guest`")?;
        let builder = VmBuilder::new(&testkit::binary(env!("CARGO_BIN_EXE_rhea")))?;
        let drive = format!("file={},if=virtio,format=raw,snapshot=on", disk.display());
        let builder = builder.linux(&guest, "commands");
        let mut vm = builder.args(["-m", "3072", "-smp", "2", "-drive", &drive]).spawn()?;
        vm.serial.wait_for("rhea-guest: commands\r\n")?;
        let mounts = "mount -t ext4 /dev/vda /mnt && mount -t proc proc /mnt/proc && \
             mount -t devtmpfs dev /mnt/dev && mount -t tmpfs tmp /mnt/tmp";
        output(&mut vm, mounts)?;
        vm.serial.send("chroot /mnt sh /languages/results > /tmp/results\n")?;
        let done = vm.serial.comes_within("rhea-guest: status 0\r\n", Duration::from_secs(1500));
        ensure!(done, "the languages have not come to an end");
        let difference = output(&mut vm, "diff /mnt/languages/expected /tmp/results; true")?;
        ensure!(difference.trim().is_empty(), "guest and host differ:\n{difference}");
        Ok(())
    });
}

#[test]
fn openssl_measures_itself() {
    with_guest("openssl_measures_itself", |vm| {
        let said = output(
            vm,
            &format!(
                "OPENSSL_CONF=/dev/null {IN_GUEST}/lib/ld-linux-x86-64.so.2 --library-path {IN_GUEST}/lib \
                 {IN_GUEST}/bin/openssl speed -seconds 1 -bytes 16384 -evp aes-256-gcm 2>&1"
            ),
        )?;
        let line = said.lines().find(|line| line.starts_with("AES-256-GCM"));
        ensure!(line.is_some_and(|line| line.trim_end().ends_with('k')), "{said}");
        Ok(())
    });
}
