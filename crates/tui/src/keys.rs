//! What a terminal says was typed, as keys of a PC's keyboard with the layout of the United States.

use input::Key;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// What something typed means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Typed {
    /// These keys together.
    Keys(Vec<Key>),
    /// Another of the machine's screens, counted from 0.
    Screen(usize),
    /// The end.
    Quit,
    Nothing,
}

/// Characters on the keys beside letters and digits: without and with Shift, and the key's name.
const CHARACTERS: &[(char, char, &str)] = &[
    ('1', '!', "1"),
    ('2', '@', "2"),
    ('3', '#', "3"),
    ('4', '$', "4"),
    ('5', '%', "5"),
    ('6', '^', "6"),
    ('7', '&', "7"),
    ('8', '*', "8"),
    ('9', '(', "9"),
    ('0', ')', "0"),
    ('-', '_', "minus"),
    ('=', '+', "equal"),
    ('[', '{', "bracket_left"),
    (']', '}', "bracket_right"),
    (';', ':', "semicolon"),
    ('\'', '"', "apostrophe"),
    ('`', '~', "grave_accent"),
    ('\\', '|', "backslash"),
    (',', '<', "comma"),
    ('.', '>', "dot"),
    ('/', '?', "slash"),
    (' ', ' ', "spc"),
];

/// The key that has `character` on it, and whether with Shift.
fn key_of(character: char) -> Option<(Key, bool)> {
    if character.is_ascii_alphabetic() {
        let name = character.to_ascii_lowercase().to_string();
        return Some((Key::from_name(&name)?, character.is_ascii_uppercase()));
    }
    let &(plain, _, name) =
        CHARACTERS.iter().find(|(plain, shifted, _)| [*plain, *shifted].contains(&character))?;
    Some((Key::from_name(name)?, character != plain))
}

/// The name of a key that is no character's.
fn name_of(code: KeyCode) -> Option<String> {
    let name = match code {
        KeyCode::Backspace => "backspace",
        KeyCode::Enter => "ret",
        KeyCode::Left => "left",
        KeyCode::Right => "right",
        KeyCode::Up => "up",
        KeyCode::Down => "down",
        KeyCode::Home => "home",
        KeyCode::End => "end",
        KeyCode::PageUp => "pgup",
        KeyCode::PageDown => "pgdn",
        KeyCode::Tab | KeyCode::BackTab => "tab",
        KeyCode::Delete => "delete",
        KeyCode::Insert => "insert",
        KeyCode::Esc => "esc",
        KeyCode::F(number) => return Some(format!("f{number}")),
        _ => return None,
    };
    Some(name.to_owned())
}

/// What `event` means.
pub(crate) fn typed(event: KeyEvent) -> Typed {
    if event.kind == KeyEventKind::Release {
        return Typed::Nothing;
    }
    let has = |modifier| event.modifiers.contains(modifier);
    let (ctrl, alt) = (has(KeyModifiers::CONTROL), has(KeyModifiers::ALT));
    if let KeyCode::Char(character) = event.code {
        if ctrl && alt && character.eq_ignore_ascii_case(&'q') {
            return Typed::Quit;
        }
        if let Some(digit) = character.to_digit(10).filter(|&digit| alt && !ctrl && digit > 0) {
            return Typed::Screen(digit as usize - 1);
        }
    }
    let found = match event.code {
        KeyCode::Char(character) => key_of(character),
        code => name_of(code).and_then(|name| Key::from_name(&name)).map(|key| (key, false)),
    };
    let Some((key, shifted)) = found else { return Typed::Nothing };
    let shift = shifted || has(KeyModifiers::SHIFT) || event.code == KeyCode::BackTab;
    let mut keys = Vec::new();
    keys.extend(ctrl.then_some(Key::Ctrl));
    keys.extend(alt.then_some(Key::Alt));
    keys.extend(shift.then_some(Key::Shift));
    keys.push(key);
    Typed::Keys(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(code: KeyCode, modifiers: KeyModifiers) -> Typed {
        typed(KeyEvent::new(code, modifiers))
    }

    #[test]
    fn characters_become_keys() {
        let none = KeyModifiers::NONE;
        let key = |name: &str| Key::from_name(name).unwrap();
        assert_eq!(press(KeyCode::Char('a'), none), Typed::Keys(vec![key("a")]));
        assert_eq!(press(KeyCode::Char('A'), none), Typed::Keys(vec![Key::Shift, key("a")]));
        assert_eq!(
            press(KeyCode::Char('|'), none),
            Typed::Keys(vec![Key::Shift, key("backslash")])
        );
        let ctrl = KeyModifiers::CONTROL;
        assert_eq!(press(KeyCode::Char('c'), ctrl), Typed::Keys(vec![Key::Ctrl, key("c")]));
        assert_eq!(press(KeyCode::F(12), none), Typed::Keys(vec![key("f12")]));
        assert_eq!(press(KeyCode::Char('2'), KeyModifiers::ALT), Typed::Screen(1));
        assert_eq!(press(KeyCode::Char('q'), KeyModifiers::ALT | ctrl), Typed::Quit);
        assert_eq!(press(KeyCode::Char('ß'), none), Typed::Nothing);
    }

    #[test]
    fn every_printable_character_has_a_key() {
        assert!((b' '..=b'~').all(|c| key_of(c.into()).is_some()));
    }
}
