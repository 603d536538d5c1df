//! Linux as a host: KVM in the guest runs guests of its own, with nested paging and without.
//!
//! The guest comes from `cargo xtask guests storage-linux nested-initramfs`; without it these tests are
//! skipped, loudly. `RHEA_BIN=qemu-system-x86_64` proves the tests on QEMU.

use anyhow::ensure;
use testkit::{Guest, VmBuilder};

/// Boots Linux with CPU model `cpu` and has it run nested guests; `paging` is what KVM says of it.
fn nested(name: &str, cpu: &str, paging: &str) {
    let images = testkit::workspace().join("guest/images");
    let guest =
        Guest { kernel: images.join("storage-linux"), initrd: images.join("nested-initramfs") };
    if !guest.kernel.is_file() || !guest.initrd.is_file() {
        let reason = "no guest: run `cargo xtask guests storage-linux nested-initramfs`";
        return testkit::skip(name, reason);
    }
    testkit::run(name, || {
        let builder = VmBuilder::new(&testkit::binary(env!("CARGO_BIN_EXE_rhea")))?;
        let mut vm = builder.args(["-cpu", cpu]).linux(&guest, "commands").spawn()?;
        vm.serial.wait_for("rhea-guest: commands\r\n")?;
        vm.serial.send("dmesg | grep -c 'kvm.*Nested Paging enabled'\n")?;
        vm.serial.wait_for(&format!("{paging}\r\nrhea-guest: status"))?;
        vm.serial.send("kvm-test\n")?;
        let said = vm.serial.wait_for("kvm-test: done")?;
        ensure!(!said.contains("failed"), "{said}");
        ensure!(said.matches("passed").count() == 7, "{said}");
        Ok(())
    });
}

#[test]
fn kvm_runs_guests_with_nested_paging() {
    nested("kvm_runs_guests_with_nested_paging", "max", "1");
}

/// Without it KVM keeps page tables that shadow the guest's.
#[test]
fn kvm_runs_guests_with_shadow_paging() {
    nested("kvm_runs_guests_with_shadow_paging", "qemu64", "0");
}
