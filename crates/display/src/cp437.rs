//! Code page 437, the character set of a PC's text mode, as its font shows it.

/// The glyphs, sixteen a line.
const GLYPHS: &str = "\
    \u{a0}☺☻♥♦♣♠•◘○◙♂♀♪♫☼\
    ►◄↕‼¶§▬↨↑↓→←∟↔▲▼\
    \u{20}!\"#$%&'()*+,-./\
    0123456789:;<=>?\
    @ABCDEFGHIJKLMNO\
    PQRSTUVWXYZ[\\]^_\
    `abcdefghijklmno\
    pqrstuvwxyz{|}~⌂\
    ÇüéâäàåçêëèïîìÄÅ\
    ÉæÆôöòûùÿÖÜ¢£¥₧ƒ\
    áíóúñÑªº¿⌐¬½¼¡«»\
    ░▒▓│┤╡╢╖╕╣║╗╝╜╛┐\
    └┴┬├─┼╞╟╚╔╩╦╠═╬╧\
    ╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀\
    αßΓπΣσµτΦΘΩδ∞φε∩\
    ≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// The character that glyph `code` shows; blanks of any kind are spaces.
pub fn to_char(code: u8) -> char {
    match GLYPHS.chars().nth(code.into()) {
        None | Some('\u{a0}') => ' ',
        Some(glyph) => glyph,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_glyph() {
        assert_eq!(GLYPHS.chars().count(), 256);
        assert!((0x20..0x7f).all(|code| to_char(code) == char::from(code)));
        assert_eq!([0xb3, 0xc4, 0xdb, 0xe1, 0xff].map(to_char), ['│', '─', '█', 'ß', ' ']);
    }
}
