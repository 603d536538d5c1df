//! What the tools work on: a C program and a text, written by rules and chance, the same everywhere.

use crate::random::Random;
use std::fmt::Write as _;

/// A C program of at least `lines` lines, without preprocessor directives, that compiles without
/// warnings that stop it. Functions of four kinds call those before them.
pub(crate) fn program(lines: usize) -> String {
    let mut random = Random::new(59);
    let mut text = String::from(
        "typedef unsigned long u64;\n\
         struct node { struct node *next; u64 key; double weight; int kind; };\n\
         extern void *allocate(u64 size);\n\
         static u64 mix(u64 a, u64 b) { return (a ^ b << 7) * 0x9e3779b97f4a7c15ul + (b >> 3); }\n\
         static double scale_0(const double *v, int n) { return n ? v[0] : 0; }\n\
         static u64 walk_0(struct node *n) { return n ? n->key : 0; }\n\
         static int state_0(int s, const char *p) { return s + *p; }\n\
         u64 fold_0(u64 a, u64 b) { return mix(a, b); }\n",
    );
    let mut index = 1;
    while text.lines().count() < lines {
        let before = random.below(index);
        match random.below(4) {
            0 => vector(&mut text, &mut random, index, before),
            1 => list(&mut text, &mut random, index, before),
            2 => machine(&mut text, &mut random, index, before),
            _ => fold(&mut text, &mut random, index, before),
        }
        index += 1;
    }
    text
}

/// The name of a function of a kind that certainly is defined: kinds have gaps in their numbers, so
/// each function is followed by forwarders for the other kinds.
fn forwarders(text: &mut String, index: usize, but: &str) {
    let previous = index - 1;
    for (kind, line) in [
        (
            "scale",
            "static double scale_{i}(const double *v, int n) { return scale_{p}(v, n) + {i}; }",
        ),
        ("walk", "static u64 walk_{i}(struct node *n) { return walk_{p}(n) ^ {i}; }"),
        ("state", "static int state_{i}(int s, const char *p) { return state_{p}(s ^ {i}, p); }"),
        ("fold", "u64 fold_{i}(u64 a, u64 b) { return fold_{p}(b, a + {i}); }"),
    ] {
        if kind != but {
            let line =
                line.replace("{i}", &index.to_string()).replace("{p}", &previous.to_string());
            let _ = writeln!(text, "{line}");
        }
    }
}

fn vector(text: &mut String, random: &mut Random, index: usize, before: usize) {
    let (a, b, step) = (random.below(90) + 1, random.below(9) + 2, random.below(3) + 1);
    let _ = write!(
        text,
        "static double scale_{index}(const double *v, int n)\n{{\n    double sum = {a}.5, low = v[0];\n    \
         for (int i = 0; i < n; i += {step}) {{\n        double x = v[i] * {b}.25 + sum / {a}.0;\n        \
         if (x < low)\n            low = x;\n        else if (x > {a}00.0)\n            \
         sum -= scale_{before}(v + i, n - i);\n        sum += x * x - low;\n    }}\n    \
         return sum > 0 ? sum : -sum;\n}}\n"
    );
    forwarders(text, index, "scale");
}

fn list(text: &mut String, random: &mut Random, index: usize, before: usize) {
    let (kind, shift) = (random.below(16), random.below(40) + 1);
    let _ = write!(
        text,
        "static u64 walk_{index}(struct node *head)\n{{\n    u64 hash = {index};\n    \
         struct node *previous = 0;\n    while (head) {{\n        struct node *next = head->next;\n        \
         if (head->kind == {kind}) {{\n            hash ^= walk_{before}(next);\n            \
         head->next = previous;\n        }} else {{\n            \
         hash = mix(hash, head->key >> {shift});\n            head->weight += (double)hash;\n        \
         }}\n        previous = head;\n        head = next;\n    }}\n    return hash;\n}}\n"
    );
    forwarders(text, index, "walk");
}

fn machine(text: &mut String, random: &mut Random, index: usize, before: usize) {
    let cases = 4 + random.below(8);
    let _ = write!(
        text,
        "static int state_{index}(int state, const char *p)\n{{\n    int count = 0;\n    \
         for (; *p; p++) {{\n        switch ((state * 7 + *p) % {}) {{\n",
        cases + 1
    );
    for case in 0..cases {
        let (next, weight) = (random.below(cases), random.below(100));
        let _ = match random.below(3) {
            0 => writeln!(text, "        case {case}: state = {next}; count += {weight}; break;"),
            1 => writeln!(text, "        case {case}: count ^= *p << {}; break;", weight % 8),
            _ => writeln!(
                text,
                "        case {case}: if (count > {weight}) state ^= {next}; /* on */"
            ),
        };
    }
    let _ = write!(
        text,
        "        default: count += state_{before}(state + 1, p + 1) & 15; break;\n        }}\n    \
         }}\n    return count * state;\n}}\n"
    );
    forwarders(text, index, "state");
}

fn fold(text: &mut String, random: &mut Random, index: usize, before: usize) {
    let (rows, rotate, odd) = (random.below(6) + 3, random.below(60) + 1, random.next() | 1);
    let _ = write!(
        text,
        "u64 fold_{index}(u64 a, u64 b)\n{{\n    u64 table[{rows}][4];\n    int row, column;\n    \
         for (row = 0; row < {rows}; row++)\n        for (column = 0; column < 4; column++)\n            \
         table[row][column] = mix(a + row, b * column) % 0x{odd:x}ul;\n    \
         for (row = 1; row < {rows}; row++) {{\n        u64 *now = table[row], *then = table[row - 1];\n        \
         now[0] += then[3] << {rotate} | then[3] >> {};\n        now[1] ^= then[0] & ~then[2];\n        \
         if (now[2] > then[1])\n            now[3] = fold_{before}(now[2], walk_{before}((void *)0));\n    \
         }}\n    return table[{}][3] + (u64)state_{before}((int)a, \"text {index}\")\n           \
         + (u64)scale_{before}((const double *)allocate(b), 8);\n}}\n",
        64 - rotate,
        rows - 1
    );
    forwarders(text, index, "fold");
}

/// `size` bytes of text that compresses about as well as English does.
pub(crate) fn text(size: usize) -> String {
    const SYLLABLES: &[&str] = &[
        "ra", "he", "ti", "on", "ster", "ing", "le", "mo", "qua", "vi", "den", "per", "al", "cu",
        "ons", "fa", "ble", "no", "si", "tor", "e", "a", "un", "est", "gra", "po", "li", "men",
    ];
    let mut random = Random::new(61);
    let words: Vec<String> = (0..2_000)
        .map(|_| {
            (0..1 + random.below(4)).map(|_| SYLLABLES[random.below(SYLLABLES.len())]).collect()
        })
        .collect();
    let mut text = String::with_capacity(size + 32);
    let mut column = 0;
    while text.len() < size {
        // Low numbers are far more frequent, as words are.
        let rank = random.below(words.len()) * random.below(words.len()) / words.len();
        let word = &words[rank];
        text.push_str(word);
        column += word.len() + 1;
        text.push(if column > 90 { '\n' } else { ' ' });
        if column > 90 {
            column = 0;
        }
    }
    text.truncate(size);
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_are_as_asked() {
        assert_eq!(super::text(10_000).len(), 10_000);
        let lines = super::program(5_000).lines().count();
        assert!((5_000..5_060).contains(&lines), "{lines}");
        assert_eq!(super::program(1_000), super::program(1_000));
    }
}
