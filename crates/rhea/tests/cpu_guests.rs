//! The CPU's guests (`cpu-guests`) on whole machines: each topic, on CPU models that differ in what it is
//! about. `docs/src/cpu-exactness.md` has what other machines make of them.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use testkit::VmBuilder;

/// What all models of 64 bits run.
const EVERYWHERE: &str = "max";
/// Models that a topic runs on besides.
const BESIDES: &[(&str, &[&str])] = &[
    ("apic", &["qemu64,+x2apic,+tsc-deadline", "qemu64,-x2apic"]),
    (
        "hyperv",
        &[
            "max,hv-passthrough",
            "qemu64,kvm=off,hv-relaxed,hv-vapic,hv-spinlocks=0x1fff,hv-vpindex,hv-runtime,hv-time,\
             hv-synic,hv-stimer,hv-reset,hv-frequencies,hv-tlbflush,hv-ipi,hv-crash",
            "Haswell,hv-passthrough",
            "EPYC,hv-time,hv-vpindex",
            "qemu64,hv-relaxed",
        ],
    ),
    ("fpu", &["EPYC", "Haswell", "qemu64"]),
    ("keys", &["EPYC-Milan", "qemu64"]),
    ("kvm", &["max,kvm=off", "qemu64,-kvmclock,-kvm-asyncpf-int", "Haswell"]),
    ("la57", &["Icelake-Server", "qemu64"]),
    ("lam", &["max,-la57", "qemu64"]),
    ("msr", &["Icelake-Server", "qemu64"]),
    ("paging", &["IvyBridge,phys-bits=36,host-phys-bits=off"]),
    ("paging32", &["IvyBridge,phys-bits=36,host-phys-bits=off", "qemu64"]),
    ("pcid", &["qemu64,+pcid,+invpcid", "qemu64,-pcid,+invpcid", "qemu64,-pcid,-invpcid"]),
    ("pmu", &["Skylake-Server,pmu=on", "EPYC,pmu=on"]),
    ("smp", &["qemu64"]),
    ("svm", &["EPYC", "EPYC,-npt", "EPYC-Milan,+svm", "max,+monitor", "Haswell"]),
    ("svm_edges", &["EPYC", "EPYC,-npt", "max,-vnmi,-nrip-save", "qemu64,+svm"]),
    ("syscall", &["Opteron_G1,vendor=AuthenticAMD", "Haswell"]),
    ("system", &["qemu64,+umip", "Opteron_G1", "max,+rdpru"]),
    ("topology", &["EPYC", "Haswell", "qemu64"]),
    ("vm86", &["qemu64"]),
    ("xsave", &["Haswell", "EPYC-Milan", "qemu64"]),
];
/// What topics' machines have besides.
const MACHINES: &[(&str, &[&str])] = &[
    ("hyperv", &["-smp", "2", "-device", "hyperv-testdev"]),
    ("ioapic", &["-smp", "2"]),
    ("smp", &["-smp", "4"]),
    ("topology", &["-smp", "8,sockets=2,cores=2,threads=2"]),
    ("vmport", &["-machine", "vmport=on"]),
];
/// What `isa-debug-exit` makes of a guest's zero.
const CONTENT: i32 = 1;

fn run(name: &str, image: &[u8], model: &str, accel: &str) -> Result<()> {
    let binary: PathBuf = testkit::binary(env!("CARGO_BIN_EXE_rhea"));
    let builder = VmBuilder::new(&binary)?;
    let kernel = builder.path("guest.elf");
    std::fs::write(&kernel, image)?;
    let kernel = kernel.display().to_string();
    let builder = builder
        .args(["-m", "128", "-no-reboot", "-cpu", model, "-kernel", &kernel])
        .args(["-accel", accel])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-device", "pc-testdev"]);
    let besides = MACHINES.iter().find(|(topic, _)| *topic == name);
    let builder =
        besides.into_iter().fold(builder, |builder, (_, args)| builder.args(args.iter().copied()));
    let mut vm = builder.spawn()?;
    let text = vm.serial.wait_for("DONE")?;
    let status = vm.wait_exit()?;
    let told = vm.stderr();
    ensure!(status.code() == Some(CONTENT), "{name} on {model}, {accel}: {status}\n{text}\n{told}");
    Ok(())
}

#[test]
fn every_topic_is_as_the_manuals_say() {
    testkit::run("every_topic_is_as_the_manuals_say", || {
        for (name, image) in cpu_guests::TOPICS {
            let besides = BESIDES.iter().find(|(topic, _)| topic == name);
            let besides = besides.map_or(&[][..], |(_, models)| *models);
            for model in [EVERYWHERE].iter().chain(besides) {
                run(name, image, model, "soft")?;
            }
        }
        Ok(())
    });
}

/// A topic that takes as long in step as all others.
const LONG: &str = "paging";

/// Has both engines run the topics that `wanted` wants, in step.
fn in_step(test: &str, wanted: fn(&str) -> bool) {
    testkit::run(test, || {
        for (name, image) in cpu_guests::TOPICS.iter().filter(|(name, _)| wanted(name)) {
            run(name, image, EVERYWHERE, "soft,check=on")?;
        }
        Ok(())
    });
}

#[test]
fn every_topic_is_the_same_to_both_engines() {
    in_step("every_topic_is_the_same_to_both_engines", |name| name != LONG);
}

#[test]
#[ignore = "takes half a minute"]
fn paging_is_the_same_to_both_engines() {
    in_step("paging_is_the_same_to_both_engines", |name| name == LONG);
}

#[test]
fn every_model_beside_is_of_a_topic() {
    for (topic, _) in BESIDES {
        assert!(cpu_guests::TOPICS.iter().any(|(name, _)| name == topic), "{topic}");
    }
}
