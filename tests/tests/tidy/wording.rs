//! Counts wording that the house style replaces: words of prose, names in code, openings of doc comments;
//! and named local closures.
//!
//! Prose is what people read: comments, string literals and documentation, without code in backticks.
//! Only product sources count, without their tests.

use std::fmt::Write as _;
use std::path::PathBuf;

use super::{files_below, is_test, none, read, root, shown};

const LIMITS: &str = "tests/tests/tidy/limits.txt";
const PRODUCT: [&str; 4] = ["common", "certs", "hub", "spoke"];
/// Places of one kind that a failed test lists.
const PLACES_SHOWN_MAX: usize = 20;

/// Every count equals its limit: a change may only lower it, and then lowers the limit too.
#[test]
fn replaced_words_and_named_closures_only_decrease() {
    let table = read(&root().join(LIMITS));
    let product = Product::read();
    let mut counted = String::new();
    let mut differences = Vec::new();

    for line in table.lines() {
        let Some(limit) = Limit::parse(line) else {
            let _ = writeln!(counted, "{line}");
            continue;
        };
        let places = product.places(limit.kind, &limit.text);
        let _ = writeln!(counted, "{}\t{}", limit.key(), places.len());
        differences.extend(limit.difference(&places));
    }

    none(&format!("{counted}\nshould be {LIMITS}, which differs"), differences);
}

/// What a line of the table limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A word or phrase of prose.
    Word,
    /// A word inside an identifier.
    Name,
    /// The first word of a doc comment.
    Opening,
    /// Named local closures of a crate.
    Closures,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Name, Self::Opening, Self::Closures, Self::Word];

    fn prefix(self) -> &'static str {
        match self {
            Self::Word => "",
            Self::Name => "name: ",
            Self::Opening => "opening: ",
            Self::Closures => "closures: ",
        }
    }
}

/// A line of the table.
#[derive(Debug)]
struct Limit {
    kind: Kind,
    text: String,
    allowed: usize,
}

impl Limit {
    /// Reads a line; `None` for comments and empty lines.
    fn parse(line: &str) -> Option<Self> {
        if line.is_empty() || line.starts_with('#') {
            return None;
        }
        let (key, count) = line.split_once('\t').unwrap_or_else(|| panic!("{line:?} has no tab"));
        let kind = Kind::ALL.into_iter().find(|kind| key.starts_with(kind.prefix())).unwrap();
        let text = key.strip_prefix(kind.prefix()).unwrap().to_owned();
        let allowed = count.parse().unwrap_or_else(|_| panic!("{line:?} has no count"));
        Some(Self { kind, text, allowed })
    }

    fn key(&self) -> String {
        format!("{}{}", self.kind.prefix(), self.text)
    }

    fn difference(&self, places: &[String]) -> Option<String> {
        let (key, allowed, count) = (self.key(), self.allowed, places.len());
        if count > allowed {
            let shown = places.get(..PLACES_SHOWN_MAX).unwrap_or(places).join("\n    ");
            return Some(format!("{key}: {count}, at most {allowed} are allowed\n    {shown}"));
        }
        (count < allowed).then(|| format!("{key}: {count}; lower the limit of {allowed}"))
    }
}

/// Everything that is counted.
struct Product {
    sources: Vec<(PathBuf, Source)>,
    documentation: Vec<(PathBuf, Vec<Passage>)>,
}

impl Product {
    fn read() -> Self {
        let files = PRODUCT.iter().flat_map(|name| files_below(&root().join(name), "rs"));
        let sources = files
            .filter(|file| !is_test(file))
            .map(|file| {
                let text = read(&file);
                let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
                let source = Source::parse(product);
                (file, source)
            })
            .collect();
        let mut pages = files_below(&root().join("docs"), "md");
        pages.extend(files_below(&root().join("docs"), "yaml"));
        pages.extend(files_below(&root().join("kind-clusters"), "md"));
        let top = std::fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path());
        pages.extend(top.filter(|path| path.extension().is_some_and(|found| found == "md")));
        pages.sort();
        let documentation = pages.into_iter().map(|page| {
            let passages = paragraphs(&read(&page));
            (page, passages)
        });
        Self { sources, documentation: documentation.collect() }
    }

    /// Where something occurs, once for each occurrence.
    fn places(&self, kind: Kind, text: &str) -> Vec<String> {
        match kind {
            Kind::Word => self.word(text),
            Kind::Name => self.in_code(|source| source.names(text)),
            Kind::Opening => self.in_code(|source| source.openings(text)),
            Kind::Closures => {
                let directory = root().join(text);
                let mut closures = Vec::new();
                for (file, source) in &self.sources {
                    if file.starts_with(&directory) {
                        closures.extend(places(file, source.closures()));
                    }
                }
                closures
            }
        }
    }

    fn word(&self, word: &str) -> Vec<String> {
        let sources = self.sources.iter().map(|(file, source)| (file, &source.prose));
        let pages = self.documentation.iter().map(|(file, passages)| (file, passages));
        let mut found = Vec::new();
        for (file, passages) in sources.chain(pages) {
            for passage in passages {
                let times = occurrences(&passage.text, word);
                found.extend(places(file, std::iter::repeat_n(passage.line, times)));
            }
        }
        found
    }

    fn in_code(&self, lines: impl Fn(&Source) -> Vec<usize>) -> Vec<String> {
        let sources = self.sources.iter();
        sources.flat_map(|(file, source)| places(file, lines(source)).collect::<Vec<_>>()).collect()
    }
}

fn places(
    file: &std::path::Path,
    lines: impl IntoIterator<Item = usize>,
) -> impl Iterator<Item = String> {
    lines.into_iter().map(move |line| format!("{}:{line}", shown(file)))
}

/// Text that people read, in lowercase with single spaces.
#[derive(Debug, PartialEq, Eq)]
struct Passage {
    line: usize,
    text: String,
    is_doc: bool,
}

/// A Rust file, taken apart.
#[derive(Debug, Default)]
struct Source {
    prose: Vec<Passage>,
    /// The rest, with its line breaks: comments and the content of literals are blank.
    code: String,
}

impl Source {
    fn parse(text: &str) -> Self {
        Lexer { rest: text, line: 1, source: Self::default(), comment: None }.run()
    }

    /// Lines of the doc comments that open with this word.
    fn openings(&self, word: &str) -> Vec<usize> {
        let opens = |passage: &&Passage| {
            let first = passage.text.split(|c: char| !c.is_alphanumeric()).next();
            passage.is_doc && first.is_some_and(|first| first.eq_ignore_ascii_case(word))
        };
        self.prose.iter().filter(opens).map(|passage| passage.line).collect()
    }

    /// Lines of the identifiers that contain this word or its plural.
    fn names(&self, word: &str) -> Vec<usize> {
        let mut found = Vec::new();
        let lines = self.code.lines().enumerate();
        for (index, line) in lines.filter(|(_, line)| contains_ignoring_case(line, word)) {
            for name in line.split(|c: char| !is_identifier(c)) {
                let words = words_of(name);
                let times = words.iter().filter(|part| part.trim_end_matches('s') == word).count();
                found.extend(std::iter::repeat_n(index + 1, times));
            }
        }
        found
    }

    /// Lines of `let name = |…|`, also with `mut`, `async`, `move` or a type.
    fn closures(&self) -> Vec<usize> {
        let mut found = Vec::new();
        for (at, _) in self.code.match_indices("let ") {
            let before = self.code[..at].chars().next_back();
            if !before.is_some_and(is_identifier) && is_named_closure(&self.code[at + 4..]) {
                found.push(self.code[..at].matches('\n').count() + 1);
            }
        }
        found
    }
}

/// True when what follows `let ` is a name that is bound to a closure.
fn is_named_closure(binding: &str) -> bool {
    let binding = binding.trim_start();
    let binding = binding.strip_prefix("mut ").unwrap_or(binding).trim_start();
    let after_name = binding.trim_start_matches(is_identifier);
    if after_name.len() == binding.len() {
        return false;
    }
    let mut value = after_name.trim_start();
    if value.starts_with(':') {
        let end = value.find(['=', ';']).unwrap_or(value.len());
        value = &value[end..];
    }
    let Some(mut value) = value.strip_prefix('=').map(str::trim_start) else { return false };
    for keyword in ["async ", "move "] {
        value = value.strip_prefix(keyword).unwrap_or(value).trim_start();
    }
    value.starts_with('|')
}

fn is_identifier(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn contains_ignoring_case(line: &str, word: &str) -> bool {
    let (line, word) = (line.as_bytes(), word.as_bytes());
    line.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word))
}

/// The words of an identifier in lowercase: `SpokeDoor`, `spoke_door` and `SPOKE_DOOR` have the same.
fn words_of(name: &str) -> Vec<String> {
    let mut words = Vec::new();
    for part in name.split('_') {
        let is_constant = !part.chars().any(char::is_lowercase);
        let mut word = String::new();
        for c in part.chars() {
            if c.is_uppercase() && !is_constant && !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            word.extend(c.to_lowercase());
        }
        words.push(word);
    }
    words.retain(|word| !word.is_empty());
    words
}

/// How often a word or phrase occurs in lowercase text, as whole words.
fn occurrences(text: &str, phrase: &str) -> usize {
    let is_whole = |at: usize| {
        let before = text[..at].chars().next_back();
        let after = text[at + phrase.len()..].chars().next();
        !before.is_some_and(is_identifier) && !after.is_some_and(is_identifier)
    };
    text.match_indices(phrase).filter(|(at, _)| is_whole(*at)).count()
}

/// The paragraphs of a Markdown page, without blocks of code.
fn paragraphs(page: &str) -> Vec<Passage> {
    let mut passages = Vec::new();
    let mut open: Option<(usize, String)> = None;
    let mut is_code = false;
    for (index, line) in page.lines().chain([""]).enumerate() {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        if is_fence || is_code || line.trim().is_empty() {
            passages.extend(open.take().map(|(line, text)| passage(line, &text, false)));
        } else {
            let (_, text) = open.get_or_insert_with(|| (index + 1, String::new()));
            text.push_str(line);
            text.push('\n');
        }
    }
    passages
}

fn passage(line: usize, text: &str, is_doc: bool) -> Passage {
    let text = without_code(text).to_lowercase();
    let words: Vec<&str> = text.split_whitespace().collect();
    Passage { line, text: words.join(" "), is_doc }
}

/// The text without what is between backticks; a backtick that is never closed is text.
fn without_code(text: &str) -> String {
    let mut prose = String::new();
    let mut rest = text;
    while let Some(start) = rest.find('`') {
        let fence_length = rest[start..].len() - rest[start..].trim_start_matches('`').len();
        let (fence, inside) = rest[start..].split_at(fence_length);
        prose.push_str(&rest[..start]);
        match inside.find(fence) {
            Some(end) => {
                // Something stands there that joins no words.
                prose.push('`');
                rest = &inside[end + fence_length..];
            }
            None => rest = inside,
        }
    }
    prose + rest
}

/// Takes a Rust file apart. Knows comments, literals and nothing else of the language.
struct Lexer<'a> {
    rest: &'a str,
    line: usize,
    source: Source,
    /// The comment that the next line may continue.
    comment: Option<Comment>,
}

struct Comment {
    marker: &'static str,
    first_line: usize,
    last_line: usize,
    text: String,
}

impl Lexer<'_> {
    fn run(mut self) -> Source {
        while let Some(at) = self.rest.find(['/', '"', '\'']) {
            self.take(at, true);
            if self.rest.starts_with("//") {
                self.line_comment();
            } else if self.rest.starts_with("/*") {
                self.block_comment();
            } else if self.rest.starts_with('"') {
                match self.raw_string_hashes() {
                    Some(hashes) => self.raw_string(hashes),
                    None => self.string(),
                }
            } else if self.rest.starts_with('\'') {
                self.quote();
            } else {
                self.take(1, true);
            }
        }
        self.take(self.rest.len(), true);
        self.end_comment();
        self.source
    }

    /// Number of `#` between the `r`, `br` or `cr` of a raw string and its quote, which comes next.
    fn raw_string_hashes(&self) -> Option<usize> {
        let code = self.source.code.as_str();
        let before = code.trim_end_matches('#');
        let prefix = &before[before.trim_end_matches(is_identifier).len()..];
        matches!(prefix, "r" | "br" | "cr").then_some(code.len() - before.len())
    }

    /// Moves on; what is not code leaves only its line breaks.
    fn take(&mut self, bytes: usize, is_code: bool) -> &str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.rest = rest;
        for c in taken.chars() {
            self.line += usize::from(c == '\n');
            if is_code || c == '\n' {
                self.source.code.push(c);
            }
        }
        if is_code && !taken.trim().is_empty() {
            self.end_comment();
        }
        taken
    }

    fn line_comment(&mut self) {
        let (line, length) = (self.line, self.rest.find('\n').unwrap_or(self.rest.len()));
        let markers = ["//!", "////", "///", "//"];
        let marker = markers.into_iter().find(|marker| self.rest.starts_with(marker)).unwrap();
        let text = self.take(length, false)[marker.len()..].trim().to_owned();
        let continues = |open: &Comment| open.marker == marker && open.last_line + 1 == line;
        if !self.comment.as_ref().is_some_and(continues) {
            self.end_comment();
        }
        let empty = || Comment { marker, first_line: line, last_line: line, text: String::new() };
        let open = self.comment.get_or_insert_with(empty);
        open.last_line = line;
        // A phrase does not go over the end of a paragraph.
        open.text.push_str(if text.is_empty() { "|" } else { &text });
        open.text.push('\n');
    }

    fn end_comment(&mut self) {
        if let Some(Comment { marker, first_line, text, .. }) = self.comment.take() {
            let is_doc = matches!(marker, "///" | "//!");
            self.source.prose.push(passage(first_line, &text, is_doc));
        }
    }

    fn block_comment(&mut self) {
        self.end_comment();
        let (mut depth, mut length) = (0_usize, 0);
        loop {
            let rest = &self.rest[length..];
            if rest.starts_with("/*") {
                (depth, length) = (depth + 1, length + 2);
            } else if rest.starts_with("*/") {
                (depth, length) = (depth - 1, length + 2);
            } else {
                length += rest.chars().next().map_or(0, char::len_utf8);
            }
            if depth == 0 || length >= self.rest.len() {
                break;
            }
        }
        let line = self.line;
        let text = self.take(length, false).to_owned();
        self.source.prose.push(passage(line, &text, false));
    }

    fn raw_string(&mut self, hashes: usize) {
        let closing = format!("\"{}", "#".repeat(hashes));
        let line = self.line;
        self.take(1, false);
        let length = self.rest.find(&closing).unwrap_or(self.rest.len());
        let text = self.take(length, false).to_owned();
        let rest = closing.len().min(self.rest.len());
        self.take(rest, false);
        self.literal(line, &text);
    }

    fn string(&mut self) {
        let line = self.line;
        let mut text = String::new();
        let mut chars = self.rest.char_indices().skip(1).peekable();
        let mut length = self.rest.len();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    length = at + 1;
                    break;
                }
                '\\' => match chars.next() {
                    // The literal continues with the first letter of the next line.
                    Some((_, '\n')) => while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {},
                    Some((_, 'n' | 't' | 'r')) => text.push(' '),
                    Some((_, escaped)) => text.push(escaped),
                    None => {}
                },
                c => text.push(c),
            }
        }
        self.take(length, false);
        self.literal(line, &text);
    }

    /// A string literal is prose but for the names of what is formatted into it.
    fn literal(&mut self, line: usize, text: &str) {
        self.end_comment();
        self.source.code.push('"');
        let mut prose = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            prose.push_str(before);
            if let Some(after) = after.strip_prefix('{') {
                prose.push('{');
                rest = after;
                continue;
            }
            let end = after.find(|c: char| !is_identifier(c) && !"?.:#<>^$*+-".contains(c));
            match end.filter(|end| after[*end..].starts_with('}')) {
                Some(end) => {
                    prose.push('`');
                    rest = &after[end + 1..];
                }
                None => {
                    prose.push('{');
                    rest = after;
                }
            }
        }
        prose.push_str(rest);
        let words: Vec<&str> = prose.split_whitespace().collect();
        let text = words.join(" ").to_lowercase();
        self.source.prose.push(Passage { line, text, is_doc: false });
    }

    /// A character, a byte or a lifetime.
    fn quote(&mut self) {
        let mut chars = self.rest.char_indices().skip(1);
        let length = match (chars.next(), chars.next()) {
            (Some((_, '\\')), Some((escaped, _))) => {
                let from = escaped + 1;
                self.rest.get(from..).and_then(|rest| rest.find('\'')).map(|end| from + end + 1)
            }
            (Some(_), Some((end, '\''))) => Some(end + 1),
            _ => None,
        };
        match length {
            Some(length) => {
                self.take(length, false);
                self.source.code.push('"');
            }
            None => {
                self.take(1, true);
            }
        }
    }
}

fn texts(source: &Source) -> Vec<(usize, &str)> {
    source.prose.iter().map(|passage| (passage.line, passage.text.as_str())).collect()
}

#[test]
fn comments_and_strings_are_prose_and_code_is_not() {
    let source = Source::parse(concat!(
        "//! Opens the file\n",
        "//! over two lines.\n",
        "//!\n",
        "//! Another paragraph.\n",
        "\n",
        "// A note.\n",
        "/// Says `nobody` in code.\n",
        "fn nobody<'a>(x: &'a str) -> char { let c = '\"'; let d = '\\''; '/' }\n",
        "/* one /* two */ three */ const A: &str = \"first \\\"quoted\\\" \\\n",
        "    second {anew} {0:?} {{kept}}\";\n",
        "const B: &[u8] = br#\"raw \"// no comment\"#; // at the end\n",
        "let r#match = car\"x\";\n",
    ));

    assert_eq!(
        texts(&source),
        [
            (1, "opens the file over two lines. | another paragraph."),
            (6, "a note."),
            (7, "says ` in code."),
            (9, "/* one /* two */ three */"),
            (9, "first \"quoted\" second ` ` {kept}}"),
            (11, "raw \"// no comment"),
            (11, "at the end"),
            (12, "x"),
        ]
    );
    assert_eq!(source.code.lines().count(), 12);
    assert_eq!(source.names("nobody"), [8]);
    assert_eq!(source.openings("opens"), [1]);
    assert!(source.openings("a").is_empty(), "only doc comments open");
}

#[test]
fn words_are_counted_whole_and_across_lines() {
    let source = Source::parse(
        "/// It is not there any\n/// more. Anymore, ANY MORE, many more.\nfn a() {}\n",
    );

    let text = &source.prose[0].text;
    assert_eq!(occurrences(text, "any more"), 2);
    assert_eq!(occurrences(text, "anymore"), 1);
    assert_eq!(occurrences(text, "more"), 3);
}

#[test]
fn names_are_counted_by_their_words() {
    let source =
        Source::parse("struct SpokeDoor; fn doors(DOOR_MAX: u8, indoor: Outdoor) { door() }");

    assert_eq!(source.names("door"), [1, 1, 1, 1]);
    assert_eq!(words_of("HTTP_PORT"), ["http", "port"]);
    assert_eq!(words_of("listenOnPort"), ["listen", "on", "port"]);
}

#[test]
fn closures_are_counted_when_they_have_a_name() {
    let source = Source::parse(
        "let a = |x| x;\nlet mut b =\n    move || 1;\nlet c = async move |x: u8| x;\n\
         let d: fn(u8) -> u8 = |x| x;\nlet e = f(|x| x);\nlet g = h || i;\nlet s = \"let x = |y|\";\n\
         // let t = |x| x;\nif let Some(x) = y {}\nlet outlet = 1;\nlet (u, v) = w;\nlet k;\n",
    );

    assert_eq!(source.closures(), [1, 2, 4, 5]);
}

#[test]
fn pages_count_without_their_code() {
    let page = "# Title\n\nOne `nobody`\nline.\n\n```sh\nnobody\n```\nAfter ``a ` b`` it.\n";

    let passages = paragraphs(page);

    let texts: Vec<(usize, &str)> = passages.iter().map(|p| (p.line, p.text.as_str())).collect();
    assert_eq!(texts, [(1, "# title"), (3, "one ` line."), (9, "after ` it.")]);
}

#[test]
fn a_count_that_differs_from_its_limit_is_reported() {
    let places: Vec<String> = (1..=30).map(|line| format!("a.rs:{line}")).collect();
    let limit = Limit::parse("opening: What\t3").unwrap();

    assert_eq!((limit.kind, limit.text.as_str(), limit.allowed), (Kind::Opening, "What", 3));
    assert_eq!(limit.difference(&places[..3]), None);
    assert_eq!(limit.difference(&places[..2]).unwrap(), "opening: What: 2; lower the limit of 3");
    let exceeded = limit.difference(&places).unwrap();
    assert!(exceeded.contains("30, at most 3") && exceeded.contains("a.rs:20"), "{exceeded}");
    assert!(!exceeded.contains("a.rs:21"), "{exceeded}");
    assert!(Limit::parse("# a comment").is_none() && Limit::parse("").is_none());
}

#[test]
fn the_table_has_no_line_twice() {
    let table = read(&root().join(LIMITS));
    let keys: Vec<String> = table.lines().filter_map(Limit::parse).map(|it| it.key()).collect();

    let twice = keys.iter().enumerate().filter(|(index, key)| keys[..*index].contains(key));
    none("a line twice", twice.map(|(_, key)| key));
    assert!(!keys.is_empty());
}
