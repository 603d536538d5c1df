//! A small guest of our own, ready to boot: a PVH ELF kernel that greets on the first serial port,
//! counts timer interrupts, and writes and reads back a virtio disk.
//!
//! Its source is in `guest/`; the build script compiles it with the same rustc, without a standard
//! library, so that it needs no tool beyond cargo. It reports each thing it did on a line of its own
//! that begins with `guest:`, and then shows a sign of life each second until it is powered off.

/// The ELF image.
pub const IMAGE: &[u8] = include_bytes!(env!("DEMO_GUEST_ELF"));

#[cfg(test)]
mod tests {
    #[test]
    fn the_image_is_an_elf_with_a_pvh_note() {
        assert_eq!(&super::IMAGE[..4], b"\x7fELF");
        // Name size 4, descriptor size 4, type 18 (XEN_ELFNOTE_PHYS32_ENTRY), name "Xen".
        let note = b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0";
        assert!(super::IMAGE.windows(note.len()).any(|w| w == note));
    }
}
