//! Forms of YAML: scalars in every place, and structures.

const SCALARS: &str = include_str!("scalars.txt");
const STRUCTURES: &str = include_str!("structures.txt");

/// Words with a meaning in a version of YAML.
const WORDS: [&str; 11] = ["true", "false", "yes", "no", "on", "off", "y", "n", "null", "t", "f"];

/// The places of a scalar; `S` stands for it.
const PLACES: [&str; 12] = [
    "a: S\n",
    "S: 1\n",
    "- S\n",
    "a: {b: S}\n",
    "a: [S, 1]\n",
    "a: {S: 1}\n",
    "a: {S}\n",
    "? S\n: 1\n",
    "a: &x S\nb: *x\n",
    "a: !!str S\n",
    "a:\n  S # comment\n",
    "--- S\n",
];

/// Every form, as bytes of a file.
pub(crate) fn all() -> Vec<Vec<u8>> {
    let scalars = rows(SCALARS).map(str::to_owned).chain(WORDS.into_iter().flat_map(cases));
    let placed = scalars.flat_map(|scalar| PLACES.map(|place| place.replace('S', &scalar)));
    let placed = placed.map(String::into_bytes);
    placed.chain(rows(STRUCTURES).map(decoded)).collect()
}

fn rows(text: &str) -> impl Iterator<Item = &str> {
    text.lines().skip(1)
}

/// A word in lower case, in upper case, with either first letter, and with alternating letters.
fn cases(word: &str) -> [String; 5] {
    let with = |is_upper: fn(usize) -> bool| {
        let letters = word.chars().enumerate();
        letters.map(|(at, c)| if is_upper(at) { c.to_ascii_uppercase() } else { c }).collect()
    };
    [
        with(|_| false),
        with(|_| true),
        with(|at| at == 0),
        with(|at| at % 2 == 1),
        with(|at| at == 2),
    ]
}

/// Decodes the escapes of a row.
fn decoded(row: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = row;
    while let Some((before, escaped)) = rest.split_once('\\') {
        bytes.extend(before.bytes());
        let (kind, after) = escaped.split_at(1);
        rest = after;
        match kind {
            "n" => bytes.push(b'\n'),
            "t" => bytes.push(b'\t'),
            "r" => bytes.push(b'\r'),
            "\\" => bytes.push(b'\\'),
            "x" => {
                let (digits, after) = after.split_at(2);
                bytes.push(u8::from_str_radix(digits, 16).expect("a byte"));
                rest = after;
            }
            "u" => {
                let (digits, after) = after.trim_start_matches('{').split_once('}').expect("`}`");
                let code = u32::from_str_radix(digits, 16).expect("a code point");
                let character = char::from_u32(code).expect("a character");
                bytes.extend(character.to_string().bytes());
                rest = after;
            }
            // Escapes of YAML in quotes.
            other => {
                bytes.push(b'\\');
                bytes.extend(other.bytes());
            }
        }
    }
    bytes.extend(rest.bytes());
    bytes
}
