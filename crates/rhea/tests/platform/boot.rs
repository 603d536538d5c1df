//! `-kernel` with firmware, and what the guest then knows.

use super::{OVMF_CODE, OVMF_VARIABLES, SEABIOS, binary, start, with_guest};
use anyhow::{Result, ensure};
use testkit::VmBuilder;

#[test]
fn seabios_boots_the_kernel_of_the_command_line() {
    with_guest("seabios_boots_the_kernel_of_the_command_line", &[SEABIOS], |guest| {
        let smbios = "type=1,serial=ds=nocloud;s=/seed,product=A & B,,C";
        let mut vm = start(guest, &["-bios", "bios-256k.bin", "-smbios", smbios])?;
        let read = |vm: &mut testkit::Vm, name: &str| {
            vm.serial.run(&format!("cat /sys/class/dmi/id/{name}"))
        };
        ensure!(read(&mut vm, "bios_vendor")? == "SeaBIOS");
        ensure!(read(&mut vm, "product_serial")? == "ds=nocloud;s=/seed");
        ensure!(read(&mut vm, "product_name")? == "A & B,C");
        // A reset comes here again.
        vm.qmp()?.query("system_reset")?;
        vm.serial.wait_for("rhea-guest: commands\r\n")?;
        ensure!(read(&mut vm, "bios_vendor")? == "SeaBIOS");
        Ok(())
    });
}

#[test]
fn ovmf_in_named_flash_boots_the_kernel_of_the_command_line() {
    let name = "ovmf_in_named_flash_boots_the_kernel_of_the_command_line";
    with_guest(name, &[OVMF_CODE, OVMF_VARIABLES], |guest| {
        let folder = tempfile::tempdir()?;
        let variables = folder.path().join("variables.fd");
        std::fs::copy(OVMF_VARIABLES, &variables)?;
        let code = format!("if=none,id=code,format=raw,readonly=on,file={OVMF_CODE}");
        let variables = format!("if=none,id=variables,format=raw,file={}", variables.display());
        let flash = "pflash0=code,pflash1=variables";
        let drives = ["-drive", &code, "-drive", &variables, "-machine", flash, "-m", "384"];
        let mut vm = start(guest, &drives)?;
        ensure!(vm.serial.run("cat /sys/firmware/efi/fw_platform_size")? == "64");
        ensure!(vm.serial.run("grep -c rhea.test=commands /proc/cmdline")? == "1");
        let tables = vm.serial.run("ls /sys/firmware/acpi/tables; ls /sys/firmware/dmi/tables")?;
        ensure!(tables.contains("FACP") && tables.contains("DMI"), "{tables}");
        Ok(())
    });
}

/// Kernels that firmware can't boot are refused, not forgotten.
#[test]
fn firmware_takes_no_other_kernels() {
    testkit::run("firmware_takes_no_other_kernels", || -> Result<()> {
        let builder = VmBuilder::bare(&binary())?.code(testkit::bare::SPIN)?;
        let mut vm = builder.args(["-display", "none", "-bios", "bios-256k.bin"]).spawn()?;
        ensure!(vm.wait_exit()?.code() == Some(1));
        let said = vm.stderr();
        ensure!(said.contains("firmware boots Linux bzImages only"), "{said}");
        Ok(())
    });
}

/// As many CPUs as a machine can have: firmware finds them all, and so does Linux.
#[test]
fn linux_runs_on_64_cpus() {
    with_guest("linux_runs_on_64_cpus", &[SEABIOS], |guest| {
        let mut vm = start(guest, &["-smp", "64", "-bios", "bios-256k.bin"])?;
        ensure!(vm.serial.run("nproc")? == "64");
        // The last of them does work.
        let worker = "taskset -c 63 sh -c 'set -- $(cat /proc/self/stat); shift 38; echo $1'";
        // On a busy host the kernel complains in between.
        ensure!(vm.serial.run(worker)?.lines().any(|line| line.trim() == "63"));
        Ok(())
    });
}

/// Every CPU that there may be is there, with its socket, core and thread.
#[test]
fn linux_sees_sockets_cores_and_threads() {
    with_guest("linux_sees_sockets_cores_and_threads", &[], |guest| {
        // Three cores leave holes among the APIC ids.
        let smp = "12,sockets=2,cores=3,threads=2";
        let mut vm = start(guest, &["-smp", smp])?;
        ensure!(vm.serial.run("nproc")? == "12");
        let mut column = |name: &str| -> Result<String> {
            vm.serial.run(&format!(
                "for n in 0 1 2 3 4 5 6 7 8 9 10 11; do \
                 cat /sys/devices/system/cpu/cpu$n/topology/{name}; done | tr '\\n' ' '"
            ))
        };
        let packages = column("physical_package_id")?;
        ensure!(packages.trim() == "0 0 0 0 0 0 1 1 1 1 1 1", "{packages}");
        let threads = column("thread_siblings_list")?;
        let expected = "0-1 0-1 2-3 2-3 4-5 4-5 6-7 6-7 8-9 8-9 10-11 10-11";
        ensure!(threads.trim() == expected, "{threads}");
        let cores = column("core_siblings_list")?;
        ensure!(cores.starts_with("0-5 ") && cores.trim().ends_with(" 6-11"), "{cores}");
        Ok(())
    });
}
