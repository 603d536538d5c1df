//! The one table of keys: what each key is called, and its code wherever keys have codes.
//!
//! - Names are those of the contract's `QKeyCode`.
//! - evdev: the key codes of Linux's `input-event-codes.h`, which virtio-input carries.
//! - Sets 1 to 3: what a PS/2 keyboard sends when the key goes down (IBM PS/2 Hardware Interface Technical
//!   Reference, "Keyboards"; Microsoft's Keyboard Scan Code Specification 1.3a). A code of `0xe0nn` is
//!   sent as two bytes. Print Screen and Pause, which are sent as longer sequences, have the code of their
//!   last part; the keyboard makes the sequences.
//! - HID: usages of the keyboard page (HID Usage Tables 1.3, chapter 10).
//!
//! A code of zero means that the key has none there.

use serde::{Deserialize, Serialize};

macro_rules! keys {
    ($($key:ident $name:literal $evdev:literal, $set1:literal, $set2:literal, $set3:literal, $hid:literal;)*) => {
        /// A key of a keyboard, by its place rather than by what is printed on it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Key {
            $(
                #[doc = concat!("`", $name, "`")]
                $key,
            )*
        }

        impl Key {
            /// Every key, in the order of the contract.
            pub const ALL: &'static [Self] = &[$(Self::$key),*];

            const fn codes(self) -> &'static Codes {
                match self {
                    $(Self::$key => &Codes {
                        name: $name,
                        evdev: $evdev,
                        set1: $set1,
                        set2: $set2,
                        set3: $set3,
                        hid: $hid,
                    },)*
                }
            }
        }
    };
}

struct Codes {
    name: &'static str,
    evdev: u16,
    set1: u16,
    set2: u16,
    set3: u16,
    hid: u8,
}

/// A set of codes that a PS/2 keyboard can send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScanCodeSet {
    /// Set 1: of the PC and PC/XT.
    One,
    /// Set 2: of the PC/AT, which keyboards start with.
    #[default]
    Two,
    /// Set 3: of the PS/2, one byte a key.
    Three,
}

impl Key {
    /// The key called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|key| key.name() == name)
    }

    /// The key with this number: its code of set 1, with bit 7 set if that has the prefix 0xe0.
    pub fn from_number(number: u8) -> Option<Self> {
        // What Alt with Print Screen sends.
        if number == 0x54 {
            return Some(Self::Sysrq);
        }
        let code = u16::from(number & 0x7f) | if number & 0x80 != 0 { 0xe000 } else { 0 };
        let keys = || Self::ALL.iter().copied().filter(|key| key.codes().set1 == code && code != 0);
        // Of two names for a key, that of the key on all keyboards.
        keys().find(|key| !matches!(key, Self::Asterisk | Self::Sysrq))
    }

    /// The name in the contract.
    pub fn name(self) -> &'static str {
        self.codes().name
    }

    /// The code in Linux's input events.
    pub fn evdev(self) -> u16 {
        self.codes().evdev
    }

    /// The code in a set of scan codes, if the key is in it.
    pub fn scan_code(self, set: ScanCodeSet) -> Option<u16> {
        let codes = self.codes();
        let code = match set {
            ScanCodeSet::One => codes.set1,
            ScanCodeSet::Two => codes.set2,
            ScanCodeSet::Three => codes.set3,
        };
        (code != 0).then_some(code)
    }

    /// The usage on the keyboard page of USB's human interface devices, if there is one.
    pub fn hid_usage(self) -> Option<u8> {
        let usage = self.codes().hid;
        (usage != 0).then_some(usage)
    }
}

keys! {
    // Key, name, evdev, set 1, set 2, set 3, HID.
    Shift "shift" 42, 0x2a, 0x12, 0x12, 0xe1;
    ShiftR "shift_r" 54, 0x36, 0x59, 0x59, 0xe5;
    Alt "alt" 56, 0x38, 0x11, 0x19, 0xe2;
    AltR "alt_r" 100, 0xe038, 0xe011, 0x39, 0xe6;
    Ctrl "ctrl" 29, 0x1d, 0x14, 0x11, 0xe0;
    CtrlR "ctrl_r" 97, 0xe01d, 0xe014, 0x58, 0xe4;
    Menu "menu" 139, 0xe01e, 0, 0x91, 0x76;
    Esc "esc" 1, 0x01, 0x76, 0x08, 0x29;
    N1 "1" 2, 0x02, 0x16, 0x16, 0x1e;
    N2 "2" 3, 0x03, 0x1e, 0x1e, 0x1f;
    N3 "3" 4, 0x04, 0x26, 0x26, 0x20;
    N4 "4" 5, 0x05, 0x25, 0x25, 0x21;
    N5 "5" 6, 0x06, 0x2e, 0x2e, 0x22;
    N6 "6" 7, 0x07, 0x36, 0x36, 0x23;
    N7 "7" 8, 0x08, 0x3d, 0x3d, 0x24;
    N8 "8" 9, 0x09, 0x3e, 0x3e, 0x25;
    N9 "9" 10, 0x0a, 0x46, 0x46, 0x26;
    N0 "0" 11, 0x0b, 0x45, 0x45, 0x27;
    Minus "minus" 12, 0x0c, 0x4e, 0x4e, 0x2d;
    Equal "equal" 13, 0x0d, 0x55, 0x55, 0x2e;
    Backspace "backspace" 14, 0x0e, 0x66, 0x66, 0x2a;
    Tab "tab" 15, 0x0f, 0x0d, 0x0d, 0x2b;
    Q "q" 16, 0x10, 0x15, 0x15, 0x14;
    W "w" 17, 0x11, 0x1d, 0x1d, 0x1a;
    E "e" 18, 0x12, 0x24, 0x24, 0x08;
    R "r" 19, 0x13, 0x2d, 0x2d, 0x15;
    T "t" 20, 0x14, 0x2c, 0x2c, 0x17;
    Y "y" 21, 0x15, 0x35, 0x35, 0x1c;
    U "u" 22, 0x16, 0x3c, 0x3c, 0x18;
    I "i" 23, 0x17, 0x43, 0x43, 0x0c;
    O "o" 24, 0x18, 0x44, 0x44, 0x12;
    P "p" 25, 0x19, 0x4d, 0x4d, 0x13;
    BracketLeft "bracket_left" 26, 0x1a, 0x54, 0x54, 0x2f;
    BracketRight "bracket_right" 27, 0x1b, 0x5b, 0x5b, 0x30;
    Ret "ret" 28, 0x1c, 0x5a, 0x5a, 0x28;
    A "a" 30, 0x1e, 0x1c, 0x1c, 0x04;
    S "s" 31, 0x1f, 0x1b, 0x1b, 0x16;
    D "d" 32, 0x20, 0x23, 0x23, 0x07;
    F "f" 33, 0x21, 0x2b, 0x2b, 0x09;
    G "g" 34, 0x22, 0x34, 0x34, 0x0a;
    H "h" 35, 0x23, 0x33, 0x33, 0x0b;
    J "j" 36, 0x24, 0x3b, 0x3b, 0x0d;
    K "k" 37, 0x25, 0x42, 0x42, 0x0e;
    L "l" 38, 0x26, 0x4b, 0x4b, 0x0f;
    Semicolon "semicolon" 39, 0x27, 0x4c, 0x4c, 0x33;
    Apostrophe "apostrophe" 40, 0x28, 0x52, 0x52, 0x34;
    GraveAccent "grave_accent" 41, 0x29, 0x0e, 0x0e, 0x35;
    Backslash "backslash" 43, 0x2b, 0x5d, 0x5c, 0x31;
    Z "z" 44, 0x2c, 0x1a, 0x1a, 0x1d;
    X "x" 45, 0x2d, 0x22, 0x22, 0x1b;
    C "c" 46, 0x2e, 0x21, 0x21, 0x06;
    V "v" 47, 0x2f, 0x2a, 0x2a, 0x19;
    B "b" 48, 0x30, 0x32, 0x32, 0x05;
    N "n" 49, 0x31, 0x31, 0x31, 0x11;
    M "m" 50, 0x32, 0x3a, 0x3a, 0x10;
    Comma "comma" 51, 0x33, 0x41, 0x41, 0x36;
    Dot "dot" 52, 0x34, 0x49, 0x49, 0x37;
    Slash "slash" 53, 0x35, 0x4a, 0x4a, 0x38;
    Asterisk "asterisk" 55, 0x37, 0x7c, 0x7e, 0x55;
    Spc "spc" 57, 0x39, 0x29, 0x29, 0x2c;
    CapsLock "caps_lock" 58, 0x3a, 0x58, 0x14, 0x39;
    F1 "f1" 59, 0x3b, 0x05, 0x07, 0x3a;
    F2 "f2" 60, 0x3c, 0x06, 0x0f, 0x3b;
    F3 "f3" 61, 0x3d, 0x04, 0x17, 0x3c;
    F4 "f4" 62, 0x3e, 0x0c, 0x1f, 0x3d;
    F5 "f5" 63, 0x3f, 0x03, 0x27, 0x3e;
    F6 "f6" 64, 0x40, 0x0b, 0x2f, 0x3f;
    F7 "f7" 65, 0x41, 0x83, 0x37, 0x40;
    F8 "f8" 66, 0x42, 0x0a, 0x3f, 0x41;
    F9 "f9" 67, 0x43, 0x01, 0x47, 0x42;
    F10 "f10" 68, 0x44, 0x09, 0x4f, 0x43;
    NumLock "num_lock" 69, 0x45, 0x77, 0x76, 0x53;
    ScrollLock "scroll_lock" 70, 0x46, 0x7e, 0x5f, 0x47;
    KpDivide "kp_divide" 98, 0xe035, 0xe04a, 0x77, 0x54;
    KpMultiply "kp_multiply" 55, 0x37, 0x7c, 0x7e, 0x55;
    KpSubtract "kp_subtract" 74, 0x4a, 0x7b, 0x84, 0x56;
    KpAdd "kp_add" 78, 0x4e, 0x79, 0x7c, 0x57;
    KpEnter "kp_enter" 96, 0xe01c, 0xe05a, 0x79, 0x58;
    KpDecimal "kp_decimal" 83, 0x53, 0x71, 0x71, 0x63;
    Sysrq "sysrq" 99, 0xe037, 0xe07c, 0x57, 0x46;
    Kp0 "kp_0" 82, 0x52, 0x70, 0x70, 0x62;
    Kp1 "kp_1" 79, 0x4f, 0x69, 0x69, 0x59;
    Kp2 "kp_2" 80, 0x50, 0x72, 0x72, 0x5a;
    Kp3 "kp_3" 81, 0x51, 0x7a, 0x7a, 0x5b;
    Kp4 "kp_4" 75, 0x4b, 0x6b, 0x6b, 0x5c;
    Kp5 "kp_5" 76, 0x4c, 0x73, 0x73, 0x5d;
    Kp6 "kp_6" 77, 0x4d, 0x74, 0x74, 0x5e;
    Kp7 "kp_7" 71, 0x47, 0x6c, 0x6c, 0x5f;
    Kp8 "kp_8" 72, 0x48, 0x75, 0x75, 0x60;
    Kp9 "kp_9" 73, 0x49, 0x7d, 0x7d, 0x61;
    Less "less" 86, 0x56, 0x61, 0x13, 0x64;
    F11 "f11" 87, 0x57, 0x78, 0x56, 0x44;
    F12 "f12" 88, 0x58, 0x07, 0x5e, 0x45;
    Print "print" 99, 0xe037, 0xe07c, 0x57, 0x46;
    Home "home" 102, 0xe047, 0xe06c, 0x6e, 0x4a;
    Pgup "pgup" 104, 0xe049, 0xe07d, 0x6f, 0x4b;
    Pgdn "pgdn" 109, 0xe051, 0xe07a, 0x6d, 0x4e;
    End "end" 107, 0xe04f, 0xe069, 0x65, 0x4d;
    Left "left" 105, 0xe04b, 0xe06b, 0x61, 0x50;
    Up "up" 103, 0xe048, 0xe075, 0x63, 0x52;
    Down "down" 108, 0xe050, 0xe072, 0x60, 0x51;
    Right "right" 106, 0xe04d, 0xe074, 0x6a, 0x4f;
    Insert "insert" 110, 0xe052, 0xe070, 0x67, 0x49;
    Delete "delete" 111, 0xe053, 0xe071, 0x64, 0x4c;
    Stop "stop" 128, 0xe068, 0xe028, 0x0a, 0x78;
    Again "again" 129, 0xe005, 0, 0x0b, 0x79;
    Props "props" 130, 0xe006, 0, 0x0c, 0x76;
    Undo "undo" 131, 0xe007, 0, 0x10, 0x7a;
    Front "front" 132, 0xe00c, 0, 0, 0x77;
    Copy "copy" 133, 0xe078, 0, 0x18, 0x7c;
    Open "open" 134, 0x64, 0, 0x20, 0x74;
    Paste "paste" 135, 0x65, 0, 0x28, 0x7d;
    Find "find" 136, 0xe041, 0, 0x30, 0x7e;
    Cut "cut" 137, 0xe03c, 0, 0x38, 0x7b;
    Lf "lf" 101, 0x5b, 0, 0, 0;
    Help "help" 138, 0xe075, 0, 0x09, 0x75;
    MetaL "meta_l" 125, 0xe05b, 0xe01f, 0x8b, 0xe3;
    MetaR "meta_r" 126, 0xe05c, 0xe027, 0x8c, 0xe7;
    Compose "compose" 127, 0xe05d, 0xe02f, 0x8d, 0x65;
    Pause "pause" 119, 0xe046, 0xe07e, 0x62, 0x48;
    Ro "ro" 89, 0x73, 0x51, 0, 0x87;
    Hiragana "hiragana" 91, 0x77, 0x62, 0x87, 0x93;
    Henkan "henkan" 92, 0x79, 0x64, 0x86, 0x8a;
    Yen "yen" 124, 0x7d, 0x6a, 0x5d, 0x89;
    Muhenkan "muhenkan" 94, 0x7b, 0x67, 0x85, 0x8b;
    Katakanahiragana "katakanahiragana" 93, 0x70, 0x13, 0x87, 0x88;
    KpComma "kp_comma" 121, 0x7e, 0x6d, 0, 0x85;
    KpEquals "kp_equals" 117, 0x59, 0x0f, 0, 0x67;
    Power "power" 116, 0xe05e, 0xe037, 0, 0x66;
    Sleep "sleep" 142, 0xe05f, 0xe03f, 0, 0;
    Wake "wake" 143, 0xe063, 0xe05e, 0, 0;
    Audionext "audionext" 163, 0xe019, 0xe04d, 0x93, 0;
    Audioprev "audioprev" 165, 0xe010, 0xe015, 0x94, 0;
    Audiostop "audiostop" 166, 0xe024, 0xe03b, 0x98, 0;
    Audioplay "audioplay" 164, 0xe022, 0xe034, 0, 0;
    Audiomute "audiomute" 113, 0xe020, 0xe023, 0x9c, 0x7f;
    Volumeup "volumeup" 115, 0xe030, 0xe032, 0x95, 0x80;
    Volumedown "volumedown" 114, 0xe02e, 0xe021, 0x9d, 0x81;
    Mediaselect "mediaselect" 226, 0xe06d, 0xe050, 0, 0;
    Mail "mail" 155, 0xe06c, 0xe048, 0, 0;
    Calculator "calculator" 140, 0xe021, 0xe02b, 0xa3, 0;
    Computer "computer" 157, 0xe06b, 0xe040, 0, 0;
    AcHome "ac_home" 172, 0xe032, 0xe03a, 0x97, 0;
    AcBack "ac_back" 158, 0xe06a, 0xe038, 0, 0;
    AcForward "ac_forward" 159, 0xe069, 0xe030, 0, 0;
    AcRefresh "ac_refresh" 173, 0xe067, 0xe020, 0, 0;
    AcBookmarks "ac_bookmarks" 156, 0xe066, 0xe018, 0, 0;
    Lang1 "lang1" 122, 0x72, 0, 0, 0x90;
    Lang2 "lang2" 123, 0x71, 0, 0, 0x91;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_lead_back_to_their_keys() {
        for &key in Key::ALL {
            assert_eq!(Key::from_name(key.name()), Some(key));
        }
        assert_eq!(Key::from_name("unmapped"), None);
        assert_eq!(Key::from_number(0x1e), Some(Key::A));
        assert_eq!(Key::from_number(0x37), Some(Key::KpMultiply));
        assert_eq!(Key::from_number(0xb7), Some(Key::Print));
        assert_eq!(Key::from_number(0x54), Some(Key::Sysrq));
        assert_eq!(Key::from_number(0x45), Some(Key::NumLock));
        assert_eq!(Key::from_number(0xc6), Some(Key::Pause));
        assert_eq!(Key::from_number(0xd3), Some(Key::Delete));
        assert_eq!(Key::from_number(0), None);
        assert_eq!(Key::from_number(0x80), None);
    }

    /// No two keys share a code, but for the two pairs that are one key under two names, and keys that
    /// other keyboards have in one place.
    #[test]
    fn codes_are_distinct() {
        type Code = fn(Key) -> u16;
        let codes: [(&str, Code); 5] = [
            ("evdev", Key::evdev),
            ("set 1", |key| key.codes().set1),
            ("set 2", |key| key.codes().set2),
            ("set 3", |key| key.codes().set3),
            ("hid", |key| key.codes().hid.into()),
        ];
        let doubles = [
            (Key::Asterisk, Key::KpMultiply),
            (Key::Sysrq, Key::Print),
            (Key::Hiragana, Key::Katakanahiragana),
            (Key::Menu, Key::Props),
        ];
        for (set, code) in codes {
            for (i, &a) in Key::ALL.iter().enumerate() {
                for &b in &Key::ALL[i + 1..] {
                    let same = code(a) != 0 && code(a) == code(b);
                    assert!(!same || doubles.contains(&(a, b)), "{set}: {a:?} and {b:?}");
                }
            }
        }
    }
}
